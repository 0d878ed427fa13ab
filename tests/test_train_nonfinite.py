"""Numbers that are not finite end training, name the step and leave the batch behind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from training_runs import CONFIG, TRAIN, changed, go, scored
from transformers import TrainerCallback

from leafembed.errors import NonFiniteError
from leafembed.learn.train import train
from leafembed.types import check_vectors


def test_the_offending_batch_is_kept(toy_start, tmp_path):
    bad = toy_start[2].copy()
    bad[17, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"distillation loss is nan at step \d+ on rows .* kept in .*non-finite"):
        go(toy_start, tmp_path, vectors=bad)
    folder = tmp_path / "work" / "non-finite"
    facts = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert 17 in facts["rows"]
    assert 1 <= facts["step"] <= 5
    assert facts["texts"] == [toy_start[1].train[row].text for row in facts["rows"]]
    with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["teacher"], bad[facts["rows"]], equal_nan=True)
        assert arrays["input_ids_0"].shape[0] == len(facts["rows"])


def test_held_out_text_that_gives_nan_is_named_and_kept(toy_start, tmp_path):
    bad = toy_start[2].copy()
    bad[TRAIN + 5, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"validation distillation loss is nan at step 0 on validation rows \["):
        go(toy_start, tmp_path, vectors=bad)
    facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
    assert TRAIN + 5 in facts["rows"]
    assert facts["texts"][facts["rows"].index(TRAIN + 5)] == toy_start[1].validation[5].text


def test_evidence_that_cannot_be_kept_hides_nothing(toy_start, tmp_path):
    bad = toy_start[2].copy()
    bad[17, 3] = np.nan
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "non-finite").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        NonFiniteError, match=r"distillation loss is nan at step \d+ on rows .* which could not be kept"
    ):
        go(toy_start, tmp_path, vectors=bad)


def test_a_second_failure_in_the_same_folder_keeps_its_own_batch(toy_start, tmp_path):
    for row in (17, 40):
        bad = toy_start[2].copy()
        bad[row, 3] = np.nan
        with pytest.raises(NonFiniteError):
            go(toy_start, tmp_path, vectors=bad)
        facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
        assert row in facts["rows"]


def test_an_infinite_learning_rate_is_refused_with_the_batch(toy_start, tmp_path):
    with pytest.raises(NonFiniteError):
        go(toy_start, tmp_path, config=changed(learning_rate=math.inf, warmup_steps=0))
    assert (tmp_path / "work" / "non-finite" / "batch.json").is_file()
    assert not (tmp_path / "student").exists()


class SpoilGradient(TrainerCallback):
    """Puts NaN into one gradient at the second step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        layer = next(p for n, p in model.named_parameters() if p.requires_grad and n.endswith("query.weight"))
        calls = []

        def spoil(gradient):
            calls.append(1)
            return gradient if len(calls) < 2 else gradient.masked_fill(torch.ones_like(gradient, dtype=bool), math.nan)

        layer.register_hook(spoil)


def test_nan_in_a_gradient_stops_before_the_step(toy_start, tmp_path):
    with pytest.raises(NonFiniteError, match="the gradient norm is nan at step 2 on rows"):
        go(toy_start, tmp_path, callbacks=[SpoilGradient()])
    facts = json.loads((tmp_path / "work" / "non-finite" / "batch.json").read_text(encoding="utf-8"))
    assert facts["step"] == 2


def test_a_dev_score_of_nan_stops(toy_start, tmp_path):
    with pytest.raises(NonFiniteError, match="dev_mean is nan at step 3"):
        scored(toy_start, tmp_path, [0.1, math.nan])


def test_nan_vectors_of_dev_texts_are_kept_with_their_texts(toy_start, tmp_path):
    initial, corpus, targets = toy_start
    (tmp_path / "work").mkdir()
    vectors = np.full((3, 4), 0.5, dtype=np.float32)
    vectors[1, 2] = np.nan

    def score(model):
        check_vectors(vectors, n=3, what="the student on a task (de)", texts=["one", "two", "three"])

    with pytest.raises(NonFiniteError, match=r"dev evaluation at step 0: the student on a task .* row 1 .* kept in"):
        train(initial, corpus, lambda rows: targets[rows], score, config=CONFIG, seed=0, work_dir=tmp_path / "work",
              target=tmp_path / "student")  # fmt: skip
    folder = tmp_path / "work" / "non-finite"
    facts = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert (facts["step"], facts["texts"]) == (0, ["two"])
    with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["student"], vectors[[1]], equal_nan=True)
