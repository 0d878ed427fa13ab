"""A student that one machine trained is judged and shipped by another."""

from __future__ import annotations

import json
import shutil

import pytest
from families import gemma, toy_recipe

from leafembed.errors import Error, RecipeError
from leafembed.learn.models import fingerprint_folder
from leafembed.learn.teacher import CachedTeacher
from leafembed.pipeline import run, train
from leafembed.recipe_io import recipe_from_dict
from leafembed.ship.plots import CURVES
from leafembed.stages import MARKER
from leafembed.training import _settings


@pytest.fixture(scope="module")
def plain(tmp_path_factory, eval_data):
    root = tmp_path_factory.mktemp("elsewhere")
    return toy_recipe(root, gemma(root / "gemma"), eval_data, student={"layers": [0, 5]})


@pytest.fixture(scope="module")
def trained(plain, tmp_path_factory):
    """What ``--until train`` leaves, carried away from the machine that made it."""
    root = tmp_path_factory.mktemp("far")
    train(recipe_from_dict(plain | {"cache_dir": str(root / "cache")}), root / "run")
    return shutil.copytree(root / "run" / "student", root / "carried")


def test_it_is_shipped_as_it_is_and_the_card_says_where_it_was_trained(plain, trained, tmp_path):
    recipe = recipe_from_dict(plain | {"cache_dir": str(tmp_path / "cache")})
    outcome = run(recipe, tmp_path / "run", allow_failed=True, trained=trained)
    assert outcome.manifest["student"]["fingerprint"] == fingerprint_folder(trained)
    training = outcome.manifest["training"]
    assert training["steps"] == 12
    assert training["where"]["machine"]["cores"] >= 1
    assert training["where"]["machine"]["cpu"] in (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert not list((tmp_path / "run").glob("checkpoints-*"))  # nothing was trained here
    assert (tmp_path / "run" / CURVES).is_file()


def test_the_teacher_is_asked_for_what_floors_need_and_no_more(plain, trained, tmp_path, monkeypatch):
    asked = []
    whole = CachedTeacher.embed_rows
    monkeypatch.setattr(
        CachedTeacher, "embed_rows", lambda self, *parts: asked.append([len(p) for p in parts]) or whole(self, *parts)
    )
    monkeypatch.setattr("leafembed.steps._FIT_TEXTS", 20)
    recipe = recipe_from_dict(plain | {"cache_dir": str(tmp_path / "cache")})
    run(recipe, tmp_path / "run", allow_failed=True, trained=trained)
    assert [first for first, _ in asked] == [20]


def test_another_text_is_refused(plain, trained, tmp_path):
    other = plain | {"cache_dir": str(tmp_path / "cache"), "seed": 1}
    with pytest.raises(Error, match=r"--trained .*: learned from text \w{16}, the recipe's is \w{16}"):
        run(recipe_from_dict(other), tmp_path / "run", trained=trained)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [("train", {"learning_rate": 0.5}, "train.learning_rate"), ("student", {"layers": [0, 1]}, "student.layers"),
     ("teacher", {"licence": "mit"}, "licence")],
)  # fmt: skip
def test_a_student_of_another_recipe_is_refused(plain, trained, tmp_path, section, change, named):
    other = plain | {"cache_dir": str(tmp_path / "cache"), section: plain[section] | change}
    with pytest.raises(Error, match=rf"--trained .*: got a student of {{'{named}': .*the recipe has {{'{named}': "):
        run(recipe_from_dict(other), tmp_path / "run", trained=trained)


def test_a_folder_without_a_record_is_refused(plain, trained, tmp_path):
    bare = shutil.copytree(trained, tmp_path / "bare")
    (bare / MARKER).write_text(json.dumps({"facts": {}}), encoding="utf-8")
    with pytest.raises(Error, match=r"no record of training in it.*--until train"):
        run(recipe_from_dict(plain | {"cache_dir": str(tmp_path / "cache")}), tmp_path / "run", trained=bare)


def test_negatives_cannot_be_mined_without_the_vectors(plain, trained, tmp_path):
    data = plain["data"] | {"mine_negatives": 1}
    with pytest.raises(RecipeError, match=r"data\.mine_negatives: got 1, expected 0"):
        run(recipe_from_dict(plain | {"data": data}), tmp_path / "run", trained=trained)


def test_where_the_text_lies_that_chose_the_tokens_does_not_matter(plain):
    found = [
        _settings(recipe_from_dict(plain | {"student": plain["student"] | {"vocab_text": path}}), "f")
        for path in ("/here/own.txt", "/there/own.txt")
    ]
    assert found[0] == found[1]


def test_trackers_and_targets_do_not_matter(plain):
    told = {"report_to": ["tensorboard"], "targets": {"validation_loss": 1.0}}
    found = [_settings(recipe_from_dict(plain | {"train": plain["train"] | more}), "f") for more in ({}, told)]
    assert found[0] == found[1]
