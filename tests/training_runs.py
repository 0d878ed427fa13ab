"""Short training runs of a tiny student: what a run starts from, how it is run, and what is read from it.

``toy_start`` and ``toy_run`` of ``conftest.py`` are made by these, once for all files.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from families import bert, toy_texts
from transformers import TrainerCallback

from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.train import train
from leafembed.recipe_learn import StudentConfig, TrainConfig
from leafembed.types import Corpus, FloatArray, Row

TRAIN, VALIDATION = 72, 16
CONFIG = TrainConfig(
    max_steps=12, batch_size=16, eval_steps=3, warmup_steps=2, learning_rate=3e-3, precision="fp32"
)  # 72 texts in batches of 16 make 5 steps a pass: 12 steps are more than two passes

Start = tuple[Path, Corpus, FloatArray]
"""Folder of an untrained student, corpus, and teacher vectors of its texts, those to train on first."""


class Stop(Exception):
    """Stands for a kill: whatever was written so far is what the next run finds."""


class Watch(TrainerCallback):
    """Sees every evaluation, and sounds an alarm at step 3."""

    def __init__(self):
        self.seen = {}

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        self.seen[state.global_step] = dict(metrics)
        assert model.get_embedding_dimension() == 32
        if state.global_step == 3:
            state.log_history.append({"step": 3, "alarm": "all vectors are alike"})


def prepare(root: Path) -> Start:
    """Write a teacher and its untrained student below ``root``."""
    # With dropout, so that a resumed run must go on with the random numbers where it stopped.
    teacher = load_sentence_transformer(bert(root / "teacher", hidden_dropout_prob=0.1))
    texts = toy_texts(TRAIN + VALIDATION)
    vectors = teacher.encode(texts)
    init_student(StudentConfig(layers=(0,)), teacher, Sample(texts, vectors), root / "student")
    rows = tuple(Row(text, text[:2]) for text in texts)
    return root / "student", Corpus(rows[:TRAIN], rows[TRAIN:], {}, "f" * 16), vectors


def changed(**settings: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **settings)


def go(
    start: Start,
    root: Path,
    *,
    stop_at: int | None = None,
    config: TrainConfig = CONFIG,
    vectors: FloatArray | None = None,
    **options: Any,
) -> tuple[dict[str, Any], int]:
    """Train below ``root``; raise ``Stop`` at the dev evaluation of that number. The facts, and the evaluations."""
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
                  target=root / "student", **options)  # fmt: skip
    return facts, len(evaluations)


def scored(
    start: Start,
    root: Path,
    scores: Iterable[float | Mapping[str, float]],
    *,
    config: TrainConfig = CONFIG,
    **options: Any,
) -> dict[str, Any]:
    """Train with dev scores given one by one, each a number or a dict."""
    initial, corpus, targets = start
    values = iter(scores)

    def score(_):
        value = next(values)
        return value if isinstance(value, dict) else {"mean": value}

    (root / "work").mkdir(parents=True, exist_ok=True)
    return train(initial, corpus, lambda rows: targets[rows], score, config=config, seed=1, work_dir=root / "work",
                 target=root / "student", **options)  # fmt: skip


def weights(folder: Path) -> dict[str, FloatArray]:
    return {name: value.numpy() for name, value in load_sentence_transformer(folder).state_dict().items()}


def losses(facts: Mapping[str, Any]) -> dict[int, float]:
    """The training loss of each step that was logged."""
    return {entry["step"]: entry["loss"] for entry in facts["history"] if "loss" in entry}
