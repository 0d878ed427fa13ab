from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from families import bert, toy_texts

from leafembed.errors import NonFiniteError
from leafembed.learn.checkpoints import MARKER, newest_checkpoint
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.train import train
from leafembed.recipe_learn import StudentConfig, TrainConfig
from leafembed.types import Corpus, Row

TRAIN, VALIDATION = 72, 16
CONFIG = TrainConfig(
    max_steps=12, batch_size=16, eval_steps=3, warmup_steps=2, learning_rate=3e-3, precision="fp32"
)  # 72 texts in batches of 16 make 5 steps a pass: 12 steps are more than two passes


class Stop(Exception):
    """Stands for a kill: whatever was written so far is what the next run finds."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of an untrained student, corpus and teacher vectors."""
    root = tmp_path_factory.mktemp("train")
    # With dropout, so that a resumed run must go on with the random numbers where it stopped.
    teacher = load_sentence_transformer(bert(root / "teacher", hidden_dropout_prob=0.1))
    texts = toy_texts(TRAIN + VALIDATION)
    vectors = teacher.encode(texts)
    init_student(StudentConfig(layers=(0,)), teacher, Sample(texts, vectors), root / "student")
    rows = tuple(Row(text, text[:2]) for text in texts)
    return root / "student", Corpus(rows[:TRAIN], rows[TRAIN:], {}, "f" * 16), vectors


def go(start, root, *, stop_at=None, config=CONFIG, vectors=None):
    """Train below ``root``; raise ``Stop`` at the dev evaluation of that number."""
    initial, corpus, targets = start
    targets = targets if vectors is None else vectors
    evaluations = []

    def score(model):
        assert not model.training
        evaluations.append(model)
        if len(evaluations) - 1 == stop_at:
            raise Stop
        held_out = [row.text for row in corpus.validation]
        return {"mean": float(np.sum(model.encode(held_out) * targets[TRAIN:], axis=1).mean()), "STS": 0.5}

    (root / "work").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "student", ignore_errors=True)
    facts = train(initial, corpus, lambda rows: targets[rows], score, config=config, seed=1, work_dir=root / "work",
                  target=root / "student")  # fmt: skip
    return facts, len(evaluations)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """An uninterrupted run: its folder and what it reported."""
    root = tmp_path_factory.mktemp("whole")
    return root, go(start, root)[0]


def weights(folder):
    return {name: value.numpy() for name, value in load_sentence_transformer(folder).state_dict().items()}


def losses(facts):
    return {entry["step"]: entry["loss"] for entry in facts["history"] if "loss" in entry}


def test_training_lowers_the_loss_and_raises_the_dev_score(whole):
    facts = whole[1]
    found = losses(facts)
    assert list(found)[-1] == 12
    assert found[12] < 0.8 * found[min(found)]
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert list(dev) == [0, 3, 6, 9, 12]
    assert dev[12] > dev[0]


def test_history_names_the_parts_of_the_loss_and_the_dev_tasks(whole):
    history = whole[1]["history"]
    assert history == sorted(history, key=lambda entry: entry["step"])
    first, last = history[0], history[-1]
    assert (first["step"], first["dev_tasks"]) == (0, {"STS": 0.5})
    assert {"step", "loss", "distillation", "alignment", "learning_rate", "dev", "dev_tasks"} <= last.keys()
    assert last["loss"] == pytest.approx(last["distillation"] + 0.1 * last["alignment"], rel=1e-5)
    assert {"loss", "distillation", "alignment"} == first["validation"].keys() == last["validation"].keys()
    assert last["validation"]["alignment"] < first["validation"]["alignment"]
    assert json.loads(json.dumps(history)) == history


def test_the_best_checkpoint_by_dev_score_is_what_is_kept(whole, start, tmp_path):
    root, facts = whole
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert facts["best_step"] == max((step for step in dev if step), key=dev.get)
    kept = root / "work" / f"checkpoint-{facts['best_step']}"
    ours = weights(root / "student")
    assert all(np.array_equal(value, ours[name]) for name, value in weights(kept).items())


def test_an_early_peak_beats_the_last_step(start, tmp_path):
    initial, corpus, targets = start
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.4])
    (tmp_path / "work").mkdir()
    facts = train(initial, corpus, lambda rows: targets[rows], lambda _: {"mean": next(scores)}, config=CONFIG, seed=1,
                  work_dir=tmp_path / "work", target=tmp_path / "student")  # fmt: skip
    assert facts["best_step"] == 6
    ours = weights(tmp_path / "student")
    best = weights(tmp_path / "work" / "checkpoint-6")
    last = weights(tmp_path / "work" / "checkpoint-12")
    assert all(np.array_equal(value, ours[name]) for name, value in best.items())
    assert any(not np.array_equal(value, ours[name]) for name, value in last.items())


def test_the_last_step_is_judged_and_kept_though_it_is_no_multiple(start, tmp_path):
    config = TrainConfig(max_steps=5, batch_size=16, eval_steps=2, warmup_steps=0, learning_rate=3e-3, precision="fp32")
    facts, _ = go(start, tmp_path, config=config)
    assert [entry["step"] for entry in facts["history"] if "dev" in entry] == [0, 2, 4, 5]
    assert (tmp_path / "work" / "checkpoint-5" / MARKER).is_file()


def test_the_token_table_is_frozen_unless_asked(start, whole, tmp_path):
    name = next(key for key in weights(start[0]) if key.endswith("word_embeddings.weight"))
    assert np.array_equal(weights(whole[0] / "student")[name], weights(start[0])[name])
    free = TrainConfig(max_steps=2, batch_size=16, eval_steps=2, freeze_token_table=False, precision="fp32")
    go(start, tmp_path, config=free)
    assert not np.array_equal(weights(tmp_path / "student")[name], weights(start[0])[name])


def test_a_run_cut_short_goes_on_from_its_checkpoint_to_the_same_student(start, whole, tmp_path):
    with pytest.raises(Stop):
        go(start, tmp_path, stop_at=3)  # at step 9, in the second pass, after the checkpoint of step 6
    work = tmp_path / "work"
    assert newest_checkpoint(work).name == "checkpoint-6"
    # A kill while a checkpoint is written leaves one without its marker.
    shutil.copytree(work / "checkpoint-6", work / "checkpoint-9")
    (work / "checkpoint-9" / MARKER).unlink()
    facts, evaluations = go(start, tmp_path)
    assert evaluations <= 3
    assert facts["steps"] == 12
    assert (facts["best_step"], losses(facts).keys()) == (whole[1]["best_step"], losses(whole[1]).keys())
    assert losses(facts)[12] == pytest.approx(losses(whole[1])[12], abs=1e-4)
    expected = weights(whole[0] / "student")
    for name, value in weights(tmp_path / "student").items():
        assert np.allclose(value, expected[name], atol=1e-4), name


def test_finished_training_is_not_repeated(start, whole, tmp_path):
    shutil.copytree(whole[0] / "work", tmp_path / "work")
    facts, evaluations = go(start, tmp_path)
    assert evaluations == 0
    assert facts["steps"] == 12
    assert losses(facts) == losses(whole[1])
    expected = weights(whole[0] / "student")
    assert all(np.array_equal(value, expected[name]) for name, value in weights(tmp_path / "student").items())


def test_only_checkpoints_with_a_marker_count_and_the_others_go(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for step in (500, 1000, 1500):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}" / MARKER).write_text("{}", encoding="utf-8")
    assert newest_checkpoint(tmp_path).name == "checkpoint-1000"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-500", "checkpoint-1000"}


def test_nan_in_a_teacher_vector_stops_training(start, tmp_path):
    bad = start[2].copy()
    bad[:TRAIN] = np.nan
    with pytest.raises(NonFiniteError, match="distillation loss is nan on rows"):
        go(start, tmp_path, vectors=bad)


def test_an_absurd_learning_rate_is_an_error_and_not_a_student(start, tmp_path):
    config = TrainConfig(
        max_steps=12, batch_size=16, eval_steps=3, warmup_steps=0, learning_rate=1e38, precision="fp32"
    )
    with pytest.raises(NonFiniteError):
        go(start, tmp_path, config=config)
    assert not (tmp_path / "student").exists()
