"""Whole tiny runs with a planted cause, and healthy ones that must ring nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import bert, toy_texts
from transformers import TrainerState

from leafembed.errors import NonFiniteError, StoppedError
from leafembed.learn.alarms import Alarm
from leafembed.learn.causes import Start
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.nonfinite import EVIDENCE
from leafembed.learn.student import Sample, init_student
from leafembed.learn.train import train
from leafembed.learn.watch import ALARMS, Watch, Watched
from leafembed.recipe_learn import AlarmConfig, StudentConfig, TrainConfig
from leafembed.types import Corpus, Row

TRAIN, HELD_OUT = 80, 24
CONFIG = TrainConfig(
    max_steps=12, batch_size=16, eval_steps=3, warmup_steps=2, learning_rate=3e-3, weight_decay=0.0, precision="fp32",
    freeze_token_table=False,
)  # fmt: skip
FROZEN = TrainConfig(max_steps=12, batch_size=16, eval_steps=3, learning_rate=1e-3, precision="fp32")


class Stop(Exception):
    """Stands for a kill."""


class Run:
    """A student to train, what it learns, and what it is watched by."""

    def __init__(self, root, texts, held_out, *, init="layers"):
        self.root = root
        self.teacher = load_sentence_transformer(bert(root / "teacher"))
        self.texts, self.held_out = texts, held_out
        self.vectors = self.teacher.encode([*texts, *held_out])
        self.init = init
        init_student(StudentConfig(layers=(0, 1)), self.teacher, Sample(texts, self.vectors[: len(texts)]),
                     root / "student")  # fmt: skip
        rows = tuple(Row(text, text[:2]) for text in [*texts, *held_out])
        self.corpus = Corpus(rows[: len(texts)], rows[len(texts) :], {}, "f" * 16)

    def go(self, work, *, floor=-1.0, config=CONFIG, alarms=None, known=(), dev=None, stop_at=None):
        work.mkdir(exist_ok=True)
        languages = {lang: [text for text in self.held_out if text.startswith(lang)] for lang in ("en", "de")}
        rows = range(len(self.texts), len(self.texts) + len(self.held_out))
        seen = Watched(self.held_out, rows, self.vectors[len(self.texts) :], languages, floor, Start(self.init), known)
        watch = Watch(alarms or AlarmConfig(), seen, work)
        evaluations = []

        def score(model):
            evaluations.append(model)
            if len(evaluations) - 1 == stop_at:
                raise Stop
            cosines = np.sum(model.encode(self.held_out) * self.vectors[len(self.texts) :], axis=1)
            return {"mean": dev(len(evaluations)) if dev else float(cosines.mean())}

        facts = train(self.root / "student", self.corpus, lambda rows: self.vectors[rows], score, config=config, seed=1,
                      work_dir=work, target=work / "out", callbacks=[watch])  # fmt: skip
        return {**facts, **watch.facts()}, watch


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("healthy"), *_split(toy_texts(TRAIN + HELD_OUT)))


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """Weights that have nothing to do with the teacher's, and English text only; German is held out."""
    texts = toy_texts(2 * TRAIN + HELD_OUT)
    english = [text for text in texts[: 2 * TRAIN] if text.startswith("en")]
    run = Run(tmp_path_factory.mktemp("random"), english, texts[2 * TRAIN :], init="random")
    model = load_sentence_transformer(run.root / "student")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
    model.save_pretrained(str(run.root / "student"), create_model_card=False)
    return run


@pytest.fixture(scope="module")
def whole(healthy, tmp_path_factory):
    """An uninterrupted healthy run whose token table learns."""
    work = tmp_path_factory.mktemp("whole") / "work"
    facts, watch = healthy.go(work)
    return facts, watch, work


def _split(texts):
    return texts[:TRAIN], texts[TRAIN:]


def test_a_healthy_run_rings_nothing(whole, healthy, tmp_path, capsys):
    facts, _, work = whole
    assert facts["alarms"] == []
    assert (work / ALARMS).read_text() == ""
    frozen, _ = healthy.go(tmp_path / "work", config=FROZEN)
    assert frozen["alarms"] == []
    assert "ALARM" not in capsys.readouterr().err


def test_what_was_measured_is_kept_by_step(whole, healthy, tmp_path):
    facts, _, _ = whole
    assert [entry["step"] for entry in facts["watch"]] == [0, 3, 6, 9, 12]
    assert json.loads(json.dumps(facts["watch"])) == facts["watch"]
    trained = [entry["trained_rows"] for entry in facts["watch"]]
    assert trained[0] == 0
    assert trained == sorted(trained)
    assert trained[-1] > 0.3
    assert "loss" not in facts["watch"][0]
    assert facts["watch"][-1]["loss"] < facts["watch"][1]["loss"]
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert {entry["step"]: entry["dev"] for entry in facts["watch"]} == pytest.approx(dev)
    frozen, _ = healthy.go(tmp_path / "work", config=FROZEN)
    assert "trained_rows" not in frozen["watch"][-1]


def test_the_rows_noted_are_those_that_training_changed(whole, healthy):
    _, watch, work = whole
    # Without weight decay AdamW moves a row once it has had a gradient, and never before.
    before, after = (_table(folder) for folder in (healthy.root / "student", work / "checkpoint-12"))
    changed = np.flatnonzero((before != after).any(axis=1))
    noted = np.flatnonzero(watch._rows.trained)
    assert 50 < len(changed) < len(before)
    assert set(noted) - set(changed) == {0}  # padding is read and learns nothing
    assert set(changed) <= set(noted)


def _table(folder):
    return load_sentence_transformer(folder)[0].auto_model.get_input_embeddings().weight.detach().numpy()


def test_watching_changes_nothing_in_the_student(whole, healthy, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    train(healthy.root / "student", healthy.corpus, lambda rows: healthy.vectors[rows], lambda _: {"mean": 0.5},
          config=CONFIG, seed=1, work_dir=work, target=work / "out")  # fmt: skip
    assert np.array_equal(_table(work / "checkpoint-12"), _table(whole[2] / "checkpoint-12"))


def test_a_random_student_on_english_text_stops_and_says_why(random, tmp_path, capsys):
    known = [Alarm("missing languages", 0, "got training rows de 0, expected at least 100", facts={"de": 0})]
    with pytest.raises(StoppedError) as caught:
        random.go(tmp_path / "work", floor=0.95, known=known, alarms=AlarmConfig(min_trained_rows=0.3))
    error = caught.value
    diagnosis = str(error)
    assert "after 2 evaluations, expected at least 0.9500" in diagnosis
    for cause in ("the student starts from random weights", "token rows never got a gradient; least trained: de",
                  "are still random", "got training rows de 0"):  # fmt: skip
        assert cause in diagnosis
    assert error.training["steps"] == 6
    assert [entry["step"] for entry in error.training["history"]] == [0, 3, 6]
    rang = [(alarm.name, alarm.step, alarm.fatal) for alarm in error.alarms]
    assert rang[:2] == [("missing languages", 0, False), ("below floor", 0, False)]
    assert ("below floor", 6, True) in rang
    starved = next(alarm for alarm in error.alarms if alarm.name == "starved token rows")
    assert starved.facts["de"] < 0.3 < starved.facts["en"]
    lines = (tmp_path / "work" / ALARMS).read_text().splitlines()
    assert [Alarm(**json.loads(line)) for line in lines] == list(error.alarms)
    assert capsys.readouterr().err.count("ALARM: ") == len(lines) - len(known)  # those were said before
    # The same command says the same again, without a second line for each alarm.
    with pytest.raises(StoppedError) as again:
        random.go(tmp_path / "work", floor=0.95, known=known, alarms=AlarmConfig(min_trained_rows=0.3))
    assert again.value.training["steps"] == 6
    assert [(alarm.name, alarm.step, alarm.fatal) for alarm in again.value.alarms] == rang


def test_without_stop_a_run_goes_on_and_rings(random, tmp_path):
    facts, _ = random.go(tmp_path / "work", floor=0.95, config=FROZEN, alarms=AlarmConfig(stop=False))
    rang = [(alarm["name"], alarm["step"], alarm["fatal"]) for alarm in facts["alarms"] if "floor" in alarm["name"]]
    assert rang == [("below floor", 0, False), ("below floor", 6, True)]  # each once, when it sets in
    assert facts["steps"] == 12


def test_the_last_step_is_left_to_the_gate(random, tmp_path):
    facts, _ = random.go(tmp_path / "work", floor=2.0, alarms=AlarmConfig(grace_evaluations=4))
    assert facts["steps"] == 12
    assert [alarm["step"] for alarm in facts["alarms"] if alarm["fatal"]] == [12]


def test_a_dev_score_that_falls_below_its_start_says_so(healthy, tmp_path):
    with pytest.raises(StoppedError, match=r"training loses what the start had, 0\.4900 before the first step"):
        healthy.go(tmp_path / "work", floor=0.6, dev=lambda n: 0.5 - 0.01 * n)


def test_a_loss_that_falls_for_nothing(healthy, tmp_path):
    facts, _ = healthy.go(tmp_path / "work", dev=lambda n: 0.5 - 0.001 * n, alarms=AlarmConfig(stall_evaluations=2))
    assert [alarm["name"] for alarm in facts["alarms"]] == ["stall"]
    assert facts["alarms"][0]["step"] <= 9


def test_what_is_noted_survives_a_kill(whole, healthy, tmp_path):
    work = tmp_path / "work"
    known = [Alarm("missing languages", 0, "none in de")]
    with pytest.raises(Stop):
        healthy.go(work, stop_at=3, known=known)  # at step 9, after the checkpoint of step 6
    facts, watch = healthy.go(work, known=known)
    assert [entry["step"] for entry in facts["watch"]] == [0, 3, 6, 9, 12]
    for mine, theirs in zip(facts["watch"], whole[0]["watch"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert np.array_equal(watch._rows.trained, whole[1]._rows.trained)
    assert [alarm["name"] for alarm in facts["alarms"]] == ["missing languages"]
    assert len((work / ALARMS).read_text().splitlines()) == 1
    # Killed after the last checkpoint: nothing is trained any more, and the alarms are still known.
    shutil.rmtree(work / "out")
    again = healthy.go(work, known=known)[0]
    assert again["alarms"] == facts["alarms"]
    assert again["watch"] == facts["watch"]


def test_the_checkpoint_of_sigterm_knows_the_rows_since_the_last_evaluation(healthy, tmp_path):
    def told_to_terminate(evaluation):  # before the first step, so that the run ends after it
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # a signal of the system may end a process of many tests
        return 0.5

    with pytest.raises(SystemExit):
        healthy.go(tmp_path / "work", dev=told_to_terminate)
    state = TrainerState.load_from_json(str(tmp_path / "work" / "checkpoint-1" / "trainer_state.json"))
    kept = state.stateful_callbacks["leafembed.watch"]["attributes"]
    assert np.frombuffer(base64.b64decode(kept["rows"]), dtype=np.uint8).any()
    assert [entry["step"] for entry in kept["history"]] == [0]


def test_collapsed_and_non_finite_vectors_are_seen(healthy, tmp_path):
    model = load_sentence_transformer(healthy.root / "student")
    table = model[0].auto_model.get_input_embeddings().weight
    rows = range(TRAIN, TRAIN + len(healthy.held_out))
    watch = Watch(
        AlarmConfig(), Watched(healthy.held_out, rows, healthy.vectors[TRAIN:], {}, None, Start("layers")), tmp_path
    )
    args, state = SimpleNamespace(bf16=False), TrainerState(global_step=3, max_steps=12)
    watch.on_train_begin(args, state, None, model=model.train())
    watch.on_evaluate(args, state, None, metrics={}, model=model)
    assert watch.alarms == []
    assert model.training
    with torch.no_grad():
        table[:] = table[5]  # one word, whatever a text says
    watch.on_evaluate(args, state, None, metrics={}, model=model)
    (alarm,) = watch.alarms
    assert (alarm.name, alarm.step) == ("collapse", 3)
    assert alarm.facts["mean_cosine"] > 0.99 > alarm.facts["teacher_mean_cosine"]
    with torch.no_grad():
        table[:] = torch.nan
    first = re.escape(healthy.held_out[0][:60])
    with pytest.raises(
        NonFiniteError, match=rf"NaN or infinity, the first for '{first}', at step 3 on validation rows"
    ):
        watch.on_evaluate(args, state, None, metrics={}, model=model)
    facts = json.loads((tmp_path / EVIDENCE / "batch.json").read_text(encoding="utf-8"))
    assert (facts["step"], facts["rows"], facts["texts"]) == (3, list(rows), healthy.held_out)
    with np.load(tmp_path / EVIDENCE / "batch.npz") as kept:
        assert np.isnan(kept["student"]).all()
        assert np.array_equal(kept["teacher"], healthy.vectors[TRAIN:])


def test_as_many_vectors_as_texts():
    with pytest.raises(ValueError, match="got 2 texts, 2 rows and 3 vectors"):
        Watched(["a", "b"], [0, 1], np.eye(3, dtype=np.float32), {}, None, Start("layers"))
