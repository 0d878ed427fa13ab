"""Which checkpoint becomes the student, when training ends for want of gain, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from training_runs import CONFIG, changed, go, scored, weights

from leafembed.errors import RecipeError
from leafembed.learn.callbacks import Termination
from leafembed.learn.checkpoints import newest_checkpoint
from leafembed.learn.train import train


def test_the_best_checkpoint_by_dev_score_is_what_is_kept(toy_run, toy_start, tmp_path):
    root, facts = toy_run
    dev = {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry}
    assert facts["best_step"] == max((step for step in dev if step), key=dev.get)
    kept = root / "work" / f"checkpoint-{facts['best_step']}"
    ours = weights(root / "student")
    assert all(np.array_equal(value, ours[name]) for name, value in weights(kept).items())


def test_an_early_peak_beats_the_last_step(toy_start, tmp_path):
    initial, corpus, targets = toy_start
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


def test_the_metric_of_the_recipe_chooses(toy_start, tmp_path):
    scores = [{"mean": m, "STS": s} for m, s in [(0.1, 0.1), (0.9, 0.2), (0.2, 0.8), (0.3, 0.3), (0.4, 0.4)]]
    facts = scored(toy_start, tmp_path / "a", scores, config=changed(best_metric="STS"))
    assert (facts["best_step"], facts["best_metric"]) == (6, "STS")
    # The validation loss falls to the end, whatever the scores.
    assert scored(toy_start, tmp_path / "b", scores, config=changed(best_metric="validation_loss"))["best_step"] == 12


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"best_metric": "Retrieval"}, "train.best_metric: got 'Retrieval'"),
        ({"stop_metric": "validation_triplet", "stop_patience": 2}, "train.stop_metric: got 'validation_triplet'"),
        ({"targets": {"validation_loos": 1.0}}, r"train.targets: got \['validation_loos'\]"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_before_the_first_step(toy_start, tmp_path, settings, key):
    with pytest.raises(RecipeError, match=key):
        go(toy_start, tmp_path, config=changed(**settings))
    assert not list((tmp_path / "work").glob("checkpoint-*"))


def test_training_ends_when_patience_does_and_stays_ended(toy_start, tmp_path):
    config = changed(stop_metric="dev", stop_patience=2)
    facts = scored(toy_start, tmp_path, [0.1, 0.5, 0.4, 0.5, 0.9], config=config)
    assert (facts["steps"], facts["planned_steps"], facts["best_step"]) == (9, 12, 3)
    again = scored(toy_start, tmp_path, [], config=config)
    assert (again["steps"], again["best_step"]) == (9, 3)


def test_patience_survives_a_resume(toy_start, tmp_path):
    config = changed(stop_metric="dev", stop_patience=2)
    with pytest.raises(StopIteration):
        scored(toy_start, tmp_path, [0.1, 0.5, 0.4], config=config)
    facts = scored(toy_start, tmp_path, [0.3, 0.9], config=config)
    assert facts["steps"] == 9


def test_targets_are_reported_reached_or_not(toy_start, tmp_path):
    facts, _ = go(
        toy_start, tmp_path, config=changed(targets={"validation_distillation": 2.0, "validation_alignment": 0})
    )
    reached, missed = facts["targets"]
    last = facts["history"][-1]["validation"]
    assert reached == {
        "name": "validation_distillation", "limit": 2.0, "value": last["distillation"], "reached": True
    }  # fmt: skip
    assert (missed["value"], missed["reached"]) == (last["alignment"], False)


@pytest.mark.parametrize(("score", "kept"), [(0.95, True), (0.6, False)])
def test_the_mean_of_the_last_checkpoints_is_kept_if_it_is_better(toy_start, tmp_path, score, kept):
    facts = scored(toy_start, tmp_path, [0.1, 0.2, 0.9, 0.3, 0.4, score], config=changed(average_checkpoints=3))
    assert facts["averaged"] == {"steps": [6, 9, 12], "value": score, "best": 0.9, "kept": kept}
    work, ours = tmp_path / "work", weights(tmp_path / "student")
    parts = [weights(work / f"checkpoint-{step}") for step in (6, 9, 12)]
    for name, value in ours.items():
        expected = np.mean([part[name] for part in parts], axis=0) if kept else parts[0][name]
        assert np.allclose(value, expected, atol=1e-6), name


def test_a_checkpoint_of_a_run_that_was_told_to_terminate_takes_no_part_in_the_mean(toy_start, tmp_path, monkeypatch):
    as_it_is = Termination.on_step_end

    def told(self, args, state, control, **kwargs):
        self.received = self.received or state.global_step == 10  # which no evaluation follows
        as_it_is(self, args, state, control, **kwargs)

    config = changed(average_checkpoints=3)
    monkeypatch.setattr(Termination, "on_step_end", told)
    with pytest.raises(SystemExit):
        scored(toy_start, tmp_path, [0.1, 0.2, 0.9, 0.3], config=config)
    assert newest_checkpoint(tmp_path / "work").name == "checkpoint-10"
    monkeypatch.setattr(Termination, "on_step_end", as_it_is)
    facts = scored(toy_start, tmp_path, [0.4, 0.6], config=config)
    assert facts["averaged"]["steps"] == [6, 9, 12]


def test_without_averaging_two_checkpoints_and_the_best_are_kept(toy_start, tmp_path):
    facts = scored(toy_start, tmp_path, [0.1, 0.9, 0.2, 0.3, 0.4])
    assert facts["averaged"] is None
    assert {path.name for path in (tmp_path / "work").glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-9",
        "checkpoint-12",
    }


def test_a_damaged_best_checkpoint_does_not_become_the_student(toy_start, tmp_path, capsys):
    work = tmp_path / "work"

    def score(_):
        best = work / "checkpoint-6" / "model.safetensors"
        if scores and scores[0] == 0.3 and best.is_file():  # step 9: the best one is there, sealed
            whole = bytearray(best.read_bytes())
            whole[-3] ^= 1
            best.write_bytes(whole)
        return {"mean": scores.pop(0)}

    scores = [0.1, 0.2, 0.9, 0.3, 0.4]
    work.mkdir()
    initial, corpus, targets = toy_start
    facts = train(initial, corpus, lambda rows: targets[rows], score, config=CONFIG, seed=1, work_dir=work,
                  target=tmp_path / "student")  # fmt: skip
    assert facts["best_step"] != 6
    assert "checkpoint-6 is damaged" in capsys.readouterr().err
