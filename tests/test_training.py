"""Which settings a half-trained and a finished run depend on."""

from __future__ import annotations

import pytest
from families import gemma, toy_recipe

from leafembed import training
from leafembed.pipeline import train
from leafembed.recipe_io import recipe_from_dict
from leafembed.ship import machine
from leafembed.stages import MARKER


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory, eval_data):
    root = tmp_path_factory.mktemp("training")
    return toy_recipe(root, gemma(root / "gemma"), eval_data, student={"layers": [0, 5]})


def sit(plain, folder, **settings):
    """Train with these settings of ``[train]``; what training reported."""
    return train(recipe_from_dict(plain | {"train": plain["train"] | settings}), folder)


def killed_after_its_checkpoint(plain, folder, monkeypatch):
    """Train to step 12 of 12, of which the checkpoint is there, and no further."""

    def kill(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("leafembed.learn.train._choose", kill)
        with pytest.raises(Killed):
            sit(plain, folder)
    (checkpoints,) = folder.glob("checkpoints-*")
    return checkpoints


def newer(monkeypatch, *packages):
    """As after an update of these packages."""
    as_they_are = machine.versions

    def versions(names):
        return {name: f"{value}.1" if name in packages else value for name, value in as_they_are(names).items()}

    monkeypatch.setattr(training, "versions", versions)


def test_a_run_goes_on_with_another_tracker_target_or_engine(plain, tmp_path, monkeypatch, capsys):
    checkpoints = killed_after_its_checkpoint(plain, tmp_path / "run", monkeypatch)
    newer(monkeypatch, "openvino", "nncf")
    monkeypatch.setattr("leafembed.learn.trainer.require_trackers", lambda names: [])
    capsys.readouterr()
    sit(plain, tmp_path / "run", report_to=["tensorboard"],
        targets={"validation_near_alignment": 100.0})  # fmt: skip
    said = capsys.readouterr().err
    assert "step 0: dev" not in said
    assert "begins anew" not in said
    assert list((tmp_path / "run").glob("checkpoints-*")) == [checkpoints]


def test_a_run_that_begins_anew_says_so_and_why(plain, tmp_path, monkeypatch, capsys):
    checkpoints = killed_after_its_checkpoint(plain, tmp_path / "run", monkeypatch)
    newer(monkeypatch, "torch")
    capsys.readouterr()
    sit(plain, tmp_path / "run", learning_rate=1e-4)
    said = capsys.readouterr().err
    assert (f"{checkpoints.name} has a checkpoint of step 12, but of other settings (the version of torch, "
            "train.learning_rate): training begins anew, from step 0") in said  # fmt: skip
    (checkpoints / "settings.json").write_text("{", encoding="utf-8")  # or of an earlier version, which wrote none
    sit(plain, tmp_path / "run", learning_rate=1e-5)
    assert "step 12, but of other settings: training begins anew" in capsys.readouterr().err


def test_a_finished_run_is_held_against_other_targets_and_not_trained_again(plain, tmp_path, monkeypatch, capsys):
    sit(plain, tmp_path / "run")
    before = (tmp_path / "run" / "student" / MARKER).read_bytes()
    monkeypatch.setattr("leafembed.learn.train.train", lambda *args, **options: pytest.fail("trained again"))
    newer(monkeypatch, "openvino", "nncf")
    facts = sit(plain, tmp_path / "run", report_to=["tensorboard"], targets={"validation_alignment": 0.0})
    (target,) = facts["targets"]
    assert (target["name"], target["limit"], target["reached"]) == ("validation_alignment", 0.0, False)
    (at_best,) = [entry for entry in facts["history"] if entry["step"] == facts["best_step"] and "validation" in entry]
    assert target["value"] == pytest.approx(at_best["validation"]["alignment"])
    assert (tmp_path / "run" / "student" / MARKER).read_bytes() == before
