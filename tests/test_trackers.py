from __future__ import annotations

import importlib.util
import time

import pytest
from training_runs import Watch, changed, go

from leafembed.errors import MissingExtraError
from leafembed.learn.trackers import require_trackers
from leafembed.recipe_io import recipe_from_dict
from leafembed.steps import begin


def test_no_tracker_needs_nothing():
    assert require_trackers(()) == []


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_tracker_is_named_with_its_install_line(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"this needs {name}, .*pip install 'leafembed\[track\]'$"):
        require_trackers((name,))


def test_an_installed_one_goes_to_the_trainer(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert require_trackers(("wandb", "tensorboard")) == ["wandb", "tensorboard"]


def test_a_tracker_that_is_not_installed_is_an_error_before_training(toy_start, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'leafembed\[track\]'$"):
        go(toy_start, tmp_path, config=changed(report_to=("wandb",)))


def test_a_missing_tracker_ends_a_run_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    plain = {"teacher": {"model": "nowhere"}, "data": {"sources": [{"path": "none.txt"}]}}
    tracked = {"train": {"report_to": ["wandb"]}, "eval": {"dev": ["agreement"], "test": ["sts/none"]}}
    with pytest.raises(MissingExtraError, match="this needs wandb"):
        begin(recipe_from_dict({**plain, **tracked}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_number(toy_start, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(toy_start, tmp_path, config=changed(report_to=("tensorboard",)), callbacks=[Watch()])
    (events,) = (tmp_path / "work" / "runs").rglob("events.*")
    found = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "train/distillation", "train/alignment", "eval/dev_mean", "eval/validation_loss"} <= set(
        found.Tags()["scalars"]
    )
    assert [event.step for event in found.Scalars("eval/dev_mean")] == [0, 3, 6, 9, 12]
    assert [(event.step, event.value) for event in found.Scalars("eval/alarms")] == [(3, 1)]


def test_weights_and_biases_gets_every_number_without_a_network(toy_start, tmp_path, monkeypatch):
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    go(toy_start, tmp_path, config=changed(report_to=("wandb",)))
    wandb.finish()
    (log,) = tmp_path.rglob("offline-run-*/*.wandb")
    names = (b"train/distillation", b"eval/dev_mean", b"eval/validation_alignment")
    deadline = time.monotonic() + 30  # another process writes it
    while missing := [name for name in names if name not in log.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)
