from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import write_rows
from families import FAMILIES, bert, gemma, toy_recipe, toy_texts
from tokenizers import Tokenizer

from leafembed import measured
from leafembed.errors import ModelError, RecipeError
from leafembed.judge.evaluate import evaluate
from leafembed.judge.tasks import scored_items
from leafembed.learn.models import describe, fingerprint_folder, load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import TorchEncoder
from leafembed.learn.vocabulary import REPORT, prune_student, read_report, with_tokens_of
from leafembed.measured import vocabulary_facts
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import StudentConfig
from leafembed.reports_vocabulary import VocabularyReport
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.quantize import quantize
from leafembed.steps import begin, build_floors


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A teacher of each architecture and its pruned student, saved and loaded back."""
    root = tmp_path_factory.mktemp(request.param)
    teacher = load_sentence_transformer(FAMILIES[request.param].build(root / "teacher"))
    layers = tuple(range(teacher[0].auto_model.config.num_hidden_layers))
    rows = len(teacher[0].tokenizer)
    texts = toy_texts(200)
    held_out = [(text, text[:2]) for text in toy_texts(120, seed=5)]
    sample = Sample((), np.zeros((0, 32), dtype=np.float32), texts[:150], held_out)  # no head is fitted to none
    config = StudentConfig(layers=layers, vocab_size=rows - 60, prompts="teacher")
    init_student(config, teacher, sample, root / "student")
    return teacher, load_sentence_transformer(root / "student"), root / "student", rows - 60


def test_the_students_table_and_config_fit_its_tokenizer(family):
    teacher, student, _, size = family
    model, tokenizer = student[0].auto_model, student[0].tokenizer
    table = model.get_input_embeddings()
    assert size - 12 <= len(tokenizer) == model.config.vocab_size == table.num_embeddings == len(table.weight) <= size
    old = teacher[0].auto_model.get_input_embeddings().weight
    for token in tokenizer.get_vocab():
        new_id, old_id = tokenizer.convert_tokens_to_ids(token), teacher[0].tokenizer.convert_tokens_to_ids(token)
        assert torch.equal(table.weight[new_id], old[old_id])
    for role in ("pad_token", "eos_token", "bos_token", "unk_token", "cls_token", "sep_token"):
        assert getattr(tokenizer, role) == getattr(teacher[0].tokenizer, role)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        before = getattr(teacher[0].auto_model.config, name, None)
        after = getattr(model.config, name, None)
        if isinstance(before, int) and before < len(old):
            assert after == tokenizer.convert_tokens_to_ids(teacher[0].tokenizer.convert_ids_to_tokens(before))
    assert student.max_seq_length == teacher.max_seq_length
    assert student.prompts == teacher.prompts
    assert tokenizer.padding_side == teacher[0].tokenizer.padding_side


def test_vectors_are_the_teachers_where_the_tokens_are(family):
    teacher, student, folder, _ = family
    texts = toy_texts(120, seed=5)
    same = [t for t in texts if teacher[0].tokenizer.tokenize(t) == student[0].tokenizer.tokenize(t)]
    report = read_report(folder)
    total = VocabularyReport.from_dict(report).total
    assert total.texts == len(texts)
    assert total.identical == len(same)
    assert len(same) >= 10
    cosines = np.sum(teacher.encode(same) * student.encode(same), axis=1)
    assert cosines.min() > 1 - 1e-6
    if len(same) < len(texts):
        others = [t for t in texts if t not in same]
        assert np.sum(teacher.encode(others) * student.encode(others), axis=1).mean() < 1 - 1e-6


def test_a_teacher_cut_to_a_students_tokens_is_like_the_student_of_all_layers(family):
    teacher, student, _, size = family
    texts = toy_texts(40, seed=7)
    before, rows = teacher.encode(texts), len(teacher[0].tokenizer)
    cut = with_tokens_of(student, teacher)
    assert len(cut[0].tokenizer) == cut[0].auto_model.get_input_embeddings().num_embeddings == size
    np.testing.assert_allclose(cut.encode(texts), student.encode(texts), atol=1e-5)
    same = [cut.tokenizer.tokenize(text) == teacher.tokenizer.tokenize(text) for text in texts]
    assert [bool(np.allclose(*pair, atol=1e-5)) for pair in zip(cut.encode(texts), before, strict=True)] == same
    assert len(teacher[0].tokenizer) == rows
    assert np.array_equal(teacher.encode(texts), before)
    own = {id(weight) for weight in cut.parameters()} - {id(weight) for weight in teacher.parameters()}
    assert own == {id(cut[0].auto_model.get_input_embeddings().weight)}


def test_a_student_with_tokens_of_its_own_says_nothing_of_a_teachers(tmp_path):
    teacher, student = (load_sentence_transformer(build(tmp_path / build.__name__)) for build in (gemma, bert))
    with pytest.raises(ModelError, match="in a student, expected none but its teacher's"):
        with_tokens_of(student, teacher)


def test_the_saved_folder_gives_the_same_ids_to_both_loaders(family):
    from transformers import AutoTokenizer

    _, student, folder, _ = family
    auto = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    for text in [*toy_texts(20, seed=7), "", "zzz"]:
        assert auto(text)["input_ids"] == raw.encode(text).ids == student[0].tokenizer(text)["input_ids"]


def test_tokens_of_the_prompts_are_kept(family):
    teacher, student, _, _ = family
    for prompt in filter(None, teacher.prompts.values()):
        assert student[0].tokenizer.tokenize(prompt) == teacher[0].tokenizer.tokenize(prompt)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_sentence_transformer(gemma(tmp_path_factory.mktemp("gemma") / "teacher"))


def pruned_student(teacher, folder, **changes):
    texts = toy_texts(200)
    fitted = texts if changes.get("init") == "static" else ["en1"]  # too few for a head, which depends on the tokens
    held_out = [(text, text[:2]) for text in toy_texts(40, seed=5)]
    sample = Sample(fitted, teacher.encode(fitted), texts, held_out)
    return init_student(StudentConfig(**({"layers": (0,), "vocab_size": 250} | changes)), teacher, sample, folder)


def test_building_it_twice_gives_the_same_files_and_leaves_the_teacher(teacher, tmp_path):
    before = len(teacher[0].tokenizer)
    folders = [pruned_student(teacher, tmp_path / name) for name in "ab"]
    assert fingerprint_folder(folders[0]) == fingerprint_folder(folders[1])
    assert len(teacher[0].tokenizer) == teacher[0].auto_model.config.vocab_size == before


@pytest.mark.parametrize("family", ["gemma", "bert", "xlm_roberta", "qwen"])
def test_without_a_size_every_token_that_occurs_stays_and_every_character(tmp_path, family):
    teacher = load_sentence_transformer(FAMILIES[family].build(tmp_path / "teacher"))
    counted, other = ["en1 en2 en17"] * 3, ["de3 de44 de5"]
    sample = Sample((), np.zeros((0, 32), dtype=np.float32), counted, [(text, "x") for text in (*counted, *other)])
    config = StudentConfig(layers=(0,), vocab_languages=("en",), prompts="teacher")
    student = load_sentence_transformer(init_student(config, teacher, sample, tmp_path / "student"))
    before, after = teacher[0].tokenizer, student[0].tokenizer
    assert len(after) < len(before)
    for text in (*counted, *teacher.prompts.values()):
        assert after.tokenize(text) == before.tokenize(text)
    for text in other:  # in smaller pieces, but nothing of it is lost
        pieces = after.tokenize(text)
        assert len(pieces) >= len(before.tokenize(text))
        assert after.unk_token not in pieces


def test_tokens_are_counted_in_the_languages_or_the_file_that_the_recipe_names(tmp_path, eval_data):
    rows = [{"text": f"{lang}{i} {lang}{i + 1}", "lang": lang} for i in range(60) for lang in ("en", "de")]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "own.txt").write_text("de1 de2\nde2 de3\n", encoding="utf-8")
    plain = toy_recipe(tmp_path, gemma(tmp_path / "gemma"), eval_data, student={"layers": [0]})
    plain["data"]["sources"] = [{"path": "rows.jsonl"}]
    kept = {}
    for name, student in {
        "all": {"vocab_size": 112},
        "german": {"vocab_size": 112, "vocab_languages": ["de"]},
        "occurs": {"vocab_languages": ["DE"]},
        "own": {"vocab_text": str(tmp_path / "own.txt")},
    }.items():
        recipe = recipe_from_dict(plain | {"student": plain["student"] | student})
        line = begin(recipe, tmp_path / name)
        build_floors(line)
        folder = tmp_path / name / "untrained-student"
        kept[name] = set(load_sentence_transformer(folder)[0].tokenizer.get_vocab())
        counted = json.loads((folder / "vocabulary.json").read_text())["counted_texts"]
        assert counted == {"all": len(line.learned.corpus.train), "own": 2}.get(
            name, sum(row.lang == "de" for row in line.learned.corpus.train)
        )
    german = {name: sum(token.startswith("▁de") for token in tokens) for name, tokens in kept.items()}
    assert german["all"] < german["german"] == german["occurs"] == 61
    assert "▁en7" not in kept["occurs"] | kept["own"]
    assert {"▁de1", "▁de2", "▁de3"} < kept["own"] < kept["occurs"]
    (tmp_path / "blank.txt").write_text("\n  \n", encoding="utf-8")
    for student, message in (({"vocab_languages": ["de", "jap"]}, r"student\.vocab_languages: got \['jap'\]"),
                             ({"vocab_text": str(tmp_path / "blank.txt")}, r"student\.vocab_text: got no text"),
                             ({"vocab_text": "nowhere.txt"}, r"student\.vocab_text: got .*nowhere\.txt")):  # fmt: skip
        recipe = recipe_from_dict(plain | {"student": plain["student"] | student})
        with pytest.raises(RecipeError, match=message):
            build_floors(begin(recipe, tmp_path / "refused"))
    with pytest.raises(RecipeError, match=r"student\.vocab_text: got .*beside student\.vocab_languages"):
        StudentConfig(layers=(0,), vocab_languages=("de",), vocab_text=tmp_path / "own.txt")


@pytest.mark.parametrize("init", ["layers", "static"])
def test_what_a_cut_costs_is_measured_on_the_teacher_once(tmp_path, eval_data, capsys, init):
    plain = toy_recipe(tmp_path, gemma(tmp_path / "gemma"), eval_data, student={"init": init, "vocab_size": 112})
    plain["student"] |= {"layers": [0]} if init == "layers" else {}
    plain["eval"] |= {"dev": ["sts/toy.dev", "agreement"]}
    line = begin(recipe_from_dict(plain), tmp_path / "run")
    build_floors(line)
    report = VocabularyReport.from_dict(vocabulary_facts(line, trained=False))
    assert report.dev_tasks == ("sts/toy.dev",)
    model, ref = line.learned.teacher.torch.model, line.learned.teacher.ref
    bare = TorchEncoder(model, dataclasses.replace(ref, prompts={}), precision="fp32")
    task, _ = line.learned.dev
    assert report.dev[0] == pytest.approx(evaluate(bare, [task]).mean, abs=1e-3)
    assert abs(report.dev[1] - report.dev[0]) > 0.01
    assert capsys.readouterr().err.count("on dev with") == 2
    assert VocabularyReport.from_dict(vocabulary_facts(line, trained=False)) == report
    assert "on dev with" not in capsys.readouterr().err

    def again(**evaluation):
        plain["eval"] |= evaluation
        line = begin(recipe_from_dict(plain), tmp_path / "run")
        return VocabularyReport.from_dict(vocabulary_facts(line, trained=False)).dev

    assert again(dev=["agreement"]) == again(dev=["agreement", "retrieval/toy_de"]) == ()  # no labels; documents
    report_file = tmp_path / "run" / "untrained-student" / REPORT
    same = json.loads(report_file.read_text())
    report_file.write_text(json.dumps(same | {"size_after": same["size_before"]}))
    assert again(dev=["sts/toy.dev"]) == ()  # there was nothing to prune
    report_file.unlink()
    assert vocabulary_facts(line, trained=False) is None


def test_the_cost_of_a_cut_leaves_out_what_the_test_scores_and_stops_no_run(tmp_path, eval_data, capsys, monkeypatch):
    plain = toy_recipe(tmp_path, gemma(tmp_path / "gemma"), eval_data, student={"layers": [0], "vocab_size": 112})
    plain["eval"] |= {"dev": ["sts/toy.dev"], "test": ["sts/toy.test"], "drop_shared": True}
    line = begin(recipe_from_dict(plain), tmp_path / "run")
    build_floors(line)
    seen = []
    load = measured.load_tasks
    monkeypatch.setattr(measured, "load_tasks", lambda *args, **options: seen.append(options) or load(*args, **options))
    vocabulary_facts(line, trained=False)
    assert seen[0]["excluded"] == scored_items(line.learned.test) != frozenset()

    def fail(*_):
        raise ModelError("two token tables")

    monkeypatch.setattr(measured, "with_tokens_of", fail)
    shutil.rmtree(tmp_path / "run" / "reports")
    assert VocabularyReport.from_dict(vocabulary_facts(line, trained=False)).dev == ()
    assert "was not measured: two token tables" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("init", ["layers", "static"])
def test_a_pruned_student_ships_as_int8(teacher, tmp_path, init):
    folder = pruned_student(teacher, tmp_path / "student", init=init)
    whole = pruned_student(teacher, tmp_path / "whole", init=init, vocab_size=None)
    student, reference = load_sentence_transformer(folder), load_sentence_transformer(whole)
    quantize(student, tmp_path / "int8", ref=describe(student, folder, name="tiny"), group_size=0)
    encoder = BundleEncoder(tmp_path / "int8", threads=1)
    texts = toy_texts(30)
    assert np.sum(encoder.encode(texts) * student.encode(texts), axis=1).min() > 0.99
    smaller, larger = (
        (path / "tokenizer.json" for path in (folder, whole))
        if init == "layers"
        else (next(path.rglob("tokenizer.json")) for path in (folder, whole))
    )
    assert smaller.stat().st_size < larger.stat().st_size
    same = [t for t in texts if _tokens(student, t) == _tokens(reference, t)]
    assert same
    assert np.sum(student.encode(same) * reference.encode(same), axis=1).min() > 1 - 1e-6


def _tokens(model, text):
    tokenizer = model[0].tokenizer
    return tokenizer.encode(text).tokens if isinstance(tokenizer, Tokenizer) else tokenizer.tokenize(text)


def test_a_vocabulary_that_is_small_enough_stays_and_that_is_said(teacher, tmp_path, capsys):
    folder = pruned_student(teacher, tmp_path / "student", vocab_size=100_000)
    assert "nothing to prune" in capsys.readouterr().err
    report = VocabularyReport.from_dict(read_report(folder))
    assert report.size_before == report.size_after == len(teacher[0].tokenizer)
    assert report.total.identical_share == report.total.inflation == 1


def test_a_student_that_is_not_pruned_has_no_report(teacher, tmp_path):
    folder = pruned_student(teacher, tmp_path / "student", vocab_size=None)
    assert read_report(folder) is None
    assert not (folder / REPORT).exists()


def test_pruning_without_held_out_text_is_refused(teacher, tmp_path):
    folder = pruned_student(teacher, tmp_path / "student", vocab_size=None)
    with pytest.raises(ValueError, match="got no held-out text"):
        prune_student(load_sentence_transformer(folder), toy_texts(50), 250, held_out=[])


def test_texts_may_be_a_stream(teacher, tmp_path):
    folder = pruned_student(teacher, tmp_path / "student", vocab_size=None)
    held_out = [(text, "en") for text in toy_texts(9, seed=3)]
    stream = itertools.chain(toy_texts(50), toy_texts(70, seed=1))
    report = prune_student(load_sentence_transformer(folder), stream, 250, held_out=held_out)
    assert report.counted_texts == 120
