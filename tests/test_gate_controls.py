"""Models that must be refused, each by the checks that are there for it, and one that must pass: the teacher itself."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import HashEncoder, write_rows
from tiny import WORDS, make_model_folder

from leafembed.errors import DataError, NonFiniteError
from leafembed.evidence import Behaviour, Contamination
from leafembed.judge.behaviour import TEXTS, observe
from leafembed.judge.evaluate import evaluate
from leafembed.judge.floors import BagOfWords, RandomEncoder
from leafembed.judge.gate import check
from leafembed.judge.tasks import load_tasks
from leafembed.learn.overlap import EvaluationTexts, JudgedSet
from leafembed.recipe import GateConfig
from leafembed.ship.encoder import BundleEncoder
from leafembed.text import normalise_text

TYPES = ("STS", "BitextMining", "Classification", "Retrieval")
RULES = GateConfig(min_mean_retention=0.9, min_retention=dict.fromkeys(TYPES, 0.9), languages=("en", "de"))
BATCH, TAIL = "least cosine of a text alone and in a batch", "response to the end of a text, of the teacher's"
RETENTION = {"mean retention", *(f"retention of {kind}" for kind in TYPES)}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Collapsed(HashEncoder):
    """Every text has the same vector."""

    def encode(self, texts, *, prompt_name=None):
        return np.repeat(super().encode(["same"]), len(texts), axis=0)


class Shuffled(HashEncoder):
    """Good vectors, returned in another order."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def encode(self, texts, *, prompt_name=None):
        return super().encode(texts)[self.rng.permutation(len(texts))]


class Truncated(HashEncoder):
    """Reads eight words of a text, whatever it says of itself."""

    def encode(self, texts, *, prompt_name=None):
        return super().encode([" ".join(text.split()[:8]) for text in texts])


class PaddingDependent(HashEncoder):
    """Reads padding as a word. As real encoders do, it sorts by length, so that its batches pad little."""

    def encode(self, texts, *, prompt_name=None):
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].split()))
        vectors = np.empty((len(texts), self.ref.dim), dtype=np.float32)
        for start in range(0, len(order), 16):
            rows = order[start : start + 16]
            longest = max(len(texts[i].split()) for i in rows)
            filled = [f"{texts[i]}{' [PAD]' * (longest - len(texts[i].split()))}" for i in rows]
            vectors[rows] = super().encode(filled)
        return vectors


class EnglishOnly(HashEncoder):
    """Knows English; what it makes of German says nothing."""

    def encode(self, texts, *, prompt_name=None):
        german = np.array([text.startswith("de") for text in texts])
        return np.where(german[:, None], RandomEncoder(self.ref.dim, seed=3).encode(texts), super().encode(texts))


class NotANumber(HashEncoder):
    """One value of one vector is missing."""

    def __init__(self, value=np.nan):
        super().__init__()
        self.value = value

    def encode(self, texts, *, prompt_name=None):
        vectors = super().encode(texts)
        vectors[-1, 3] = self.value
        return vectors


@pytest.fixture(scope="module")
def tasks(eval_data, tmp_path_factory):
    root = shutil.copytree(eval_data, tmp_path_factory.mktemp("controls") / "eval")
    rng = np.random.default_rng(5)
    documents = [[f"en{i}" for i in rng.choice(500, 6, replace=False)] for _ in range(30)]
    start = " ".join(f"start{i}" for i in range(8))  # what tells these documents apart comes after eight words
    folder = root / "retrieval" / "long_en"
    write_rows(
        folder / "corpus.jsonl", [{"id": f"d{i}", "text": f"{start} {' '.join(d)}"} for i, d in enumerate(documents)]
    )
    write_rows(
        folder / "queries.jsonl",
        [{"id": f"q{i}", "text": " ".join(d[:5]), "lang": "en"} for i, d in enumerate(documents)],
    )
    write_rows(folder / "qrels.jsonl", [{"qid": f"q{i}", "did": f"d{i}", "score": 1} for i in range(30)])
    return load_tasks(root, ["sts/toy.test", "bitext/toy", "classification/toy", "retrieval/*"])


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return [" ".join(f"w{i}" for i in rng.integers(900, size=n)) for n in rng.integers(4, 40, size=200)]


@pytest.fixture(scope="module")
def judged(tasks, texts):
    """Judge a student as a run does: its scores, its behaviour, and the overlap of some training text."""
    teacher = HashEncoder(name="teacher")
    reference = evaluate(teacher, tasks)
    floors = {"floor: random": RandomEncoder(128), "floor: bag of words": BagOfWords()}
    floors["floor: static table"] = HashEncoder(dim=6)
    scored = {name: evaluate(floor, tasks) for name, floor in floors.items()}

    def judge(student, *, training=("nothing of the kind",), rules=RULES):
        evaluation = EvaluationTexts({task.id: JudgedSet(task.scored, task.texts) for task in tasks})
        evaluation.judge([[normalise_text(text)] for text in training])
        return check(
            evaluate(student, tasks),
            reference,
            rules,
            floors=scored,
            fp32=reference,
            int8_cosine=1.0,
            contamination=[Contamination(**entry) for entry in evaluation.touched()],
            behaviour=observe(student, teacher, texts),
        )

    return judge


def failed(result):
    return {one.name for one in result.failed}


def test_the_teacher_as_its_own_student_passes_at_exactly_one(judged):
    result = judged(HashEncoder(), rules=GateConfig(**{**_plain(RULES), "min_retention": dict.fromkeys(TYPES, 1.0)}))
    assert result.passed
    values = {one.name: one.value for one in result.checks}
    assert {values[name] for name in RETENTION} == {1.0}
    assert "mean above floor: bag of words" not in values  # which beats this teacher in the mean
    assert values[TAIL] == 1.0
    assert values[BATCH] == pytest.approx(1, abs=1e-6)
    assert {values[f"contamination of {task}"] for task in ("sts/toy.test", "retrieval/long_en")} == {0.0}


def _plain(rules):
    return {name: getattr(rules, name) for name in rules.__dataclass_fields__}


def test_every_floor_is_judged_in_every_declared_language(judged):
    names = [one.name for one in judged(HashEncoder()).checks]
    for lang in RULES.languages:
        assert f"results in language {lang}" in names
        for floor in ("floor: random", "floor: static table"):
            for kind in ("STS", "Retrieval"):
                assert f"{kind} in {lang} above {floor}" in names


class Random(RandomEncoder):
    """Text by text, so that it does not matter what is read together."""

    encode_together = RandomEncoder.encode


def test_a_random_student(judged):
    names = failed(judged(Random(128, seed=7)))
    assert names > RETENTION
    assert {f"{kind} above floor: static table" for kind in TYPES} < names
    assert not {BATCH, TAIL} & names


def test_a_collapsed_student(judged):
    names = failed(judged(Collapsed()))
    assert names > RETENTION | {TAIL}
    assert "Retrieval in de above floor: static table" in names
    assert BATCH not in names


def test_a_student_that_loses_the_order(judged):
    names = failed(judged(Shuffled()))
    assert names > RETENTION | {BATCH}


def test_a_student_that_reads_eight_tokens(judged):
    # The other tasks do not notice: what they ask for is in the first eight words.
    of_retrieval = {"retention of Retrieval", "Retrieval in en above floor: static table"}
    of_retrieval |= {"INT8 drop in Retrieval", "INT8 drop in Retrieval in en"}
    assert failed(judged(Truncated())) == {*of_retrieval, TAIL}


def test_a_student_that_reads_eight_tokens_is_found_without_a_task_of_long_texts(judged, tasks, texts):
    short = [task for task in tasks if task.type == "STS"]
    teacher = evaluate(HashEncoder(), short)
    seen = observe(Truncated(), HashEncoder(), texts)
    result = check(evaluate(Truncated(), short), teacher, GateConfig(beat_floors=False), floors={}, behaviour=seen)
    assert failed(result) == {TAIL}


def test_a_student_that_depends_on_padding(judged):
    assert failed(judged(PaddingDependent())) == {BATCH}


def test_a_student_that_knows_english_only(judged):
    names = failed(judged(EnglishOnly()))
    assert {"STS in de above floor: static table", "Retrieval in de above floor: static table"} <= names
    assert {"mean retention", "retention of STS", "retention of Retrieval"} <= names
    assert not {name for name in names if " in en " in name or "deu-eng" in name}
    assert not {BATCH, TAIL} & names


def test_a_student_trained_on_the_test(judged, tasks):
    (sts,) = [task for task in tasks if task.id == "sts/toy.test"]
    stolen = [f"Once more: {pair[0]}!" for pair in sorted(sts.scored)][:12]
    assert failed(judged(HashEncoder(), training=stolen)) == {"contamination of sts/toy.test"}
    assert judged(HashEncoder(), training=stolen[:5]).passed  # 5 of 120 items


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_raises(tasks, texts, value):
    student = NotANumber(value)
    with pytest.raises(NonFiniteError, match=r"hash on sts/toy\.test"):
        evaluate(student, tasks)
    for encoder, teacher in ((student, HashEncoder()), (HashEncoder(), student)):
        with pytest.raises(NonFiniteError, match="hash observed"):
            observe(encoder, teacher, texts)
    for values in ((value, 0.1, 0.1), (1.0, value, 0.1), (1.0, 0.1, value)):
        with pytest.raises(NonFiniteError):
            Behaviour(32, *values)


class Counting(HashEncoder):
    def __init__(self, **changes):
        super().__init__()
        self.ref = type(self.ref)(**{**_plain(self.ref), **changes})
        self.seen = []

    def encode(self, texts, *, prompt_name=None):
        self.seen += texts
        return super().encode(texts, prompt_name=prompt_name)


def test_ends_are_changed_within_what_both_models_read(texts):
    student, teacher = Counting(max_seq_length=60), Counting(max_seq_length=40, prompts={"q": "query: "})
    observe(student, teacher, texts, prompt_name="q")
    assert max(map(len, teacher.seen)) == 40 - len("query: ")
    assert set(teacher.prompts_seen) == {"q"}
    assert set(student.prompts_seen) == {None}
    assert len(teacher.seen) == 2 * TEXTS


def test_texts_of_all_lengths_share_a_forward_pass_with_the_longest(texts, tmp_path, monkeypatch):
    words = sorted({word for text in texts for word in text.split()})
    encoder = BundleEncoder(make_model_folder(tmp_path / "m", vocab=[*WORDS, *words], max_seq_length=64), threads=1)
    encoder.batch_tokens, encoder.batch_size, passes = 48, 1, []  # by itself it would compute every text apart
    embed = encoder.embed_tokens
    monkeypatch.setattr(
        encoder, "embed_tokens", lambda ids, **how: passes.append([*map(len, ids)]) or embed(ids, **how)
    )
    seen = observe(encoder, HashEncoder(), texts)
    assert seen.texts == TEXTS
    lengths = [encoder.count_tokens([text])[0] for text in (min(texts, key=len), max(texts, key=len))]
    pairs = [pair for pair in passes if len(pair) == 2]
    assert len(pairs) == TEXTS - 1
    assert {pair[1] for pair in pairs} == {lengths[1]}
    assert pairs[0] == lengths


def test_a_bundle_that_reads_padding_is_found_beside_a_text_that_fills_its_budget(tmp_path):
    settings = {"first_token_only": True, "padding_side": "left", "max_seq_length": 2_048}
    encoder = BundleEncoder(make_model_folder(tmp_path / "m", **settings), threads=1)
    texts = ["red green one", "blue red two", "green blue three", "red " * 1_500 + "blue"]
    assert observe(encoder, HashEncoder(), texts).batch_cosine < 0.9
    assert observe(BundleEncoder(make_model_folder(tmp_path / "n", max_seq_length=2_048), threads=1), HashEncoder(),
                   texts).batch_cosine > 0.9999  # fmt: skip


def test_torch_computes_texts_together_when_told_to(tmp_path):
    from families import bert

    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.learn.teacher import TorchEncoder

    model = load_sentence_transformer(bert(tmp_path / "bert"))
    encoder = TorchEncoder(model, describe(model, tmp_path / "bert", name="b"), precision="fp32", batch_tokens=16)
    texts, passes = ["en1", "en2 en3 " * 10], []
    hook = model[0].register_forward_pre_hook(lambda _, inputs: passes.append(tuple(inputs[0]["input_ids"].shape)))
    apart, together = encoder.encode(texts), encoder.encode_together(texts)
    hook.remove()
    assert [shape[0] for shape in passes] == [1, 1, 2]
    assert passes[0][1] == passes[2][1] > passes[1][1]
    assert encoder.batch_tokens == 16
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_texts_that_show_nothing_are_an_error():
    with pytest.raises(DataError, match="got 1 different texts, expected at least 2"):
        observe(HashEncoder(), HashEncoder(), ["one", "one"])
    with pytest.raises(DataError, match="all 2 end alike"):
        observe(HashEncoder(), HashEncoder(), ["abcdef", "xbcdef"])


def test_a_teacher_that_does_not_react_cannot_be_held_against(judged, tasks):
    report = evaluate(HashEncoder(), tasks)
    with pytest.raises(DataError, match=r"the teacher's vectors change by 0\.0e"):
        check(report, report, RULES, floors={"floor: r": evaluate(RandomEncoder(8), tasks)},
              behaviour=Behaviour(32, 1.0, 0.2, 0.0))  # fmt: skip


def test_contamination_must_be_known_of_every_task(tasks):
    report = evaluate(HashEncoder(), tasks)
    with pytest.raises(ValueError, match=r"contamination of sts/toy\.test was not measured"):
        check(report, report, GateConfig(beat_floors=False), floors={}, contamination=[])
