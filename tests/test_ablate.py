from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import ablate
from ablate import known, write

PLAN = {"recipe": "a.toml", "sha256": "f", "set": ["x=1"], "besides": []}
PLAN["change"] = [{"name": "one", "set": []}, {"name": "two", "set": ["y=1"]}]


def result(name, settings):
    scores = {"mean": 0.5, "sts/dev": 0.5}
    facts = {"dev": scores, "start": scores, "floor": 0.4, "alarms": [], "steps": 1, "texts": 2, "seconds": 3.0}
    return {**facts, "machine": {}, "name": name, "set": settings}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, PLAN, [result("one", []), result("two", ["y=1"])])
    return tmp_path


def test_what_was_measured_of_the_same_changes_is_kept(folder):
    assert [found["name"] for found in known(folder, PLAN)] == ["one", "two"]
    longer = PLAN | {"change": [*PLAN["change"], {"name": "three", "set": ["z=1"]}]}
    assert len(known(folder, longer)) == 2
    assert known(folder / "none", PLAN) == []


def test_a_change_begins_anew_what_follows_it(folder):
    other = PLAN | {"change": [PLAN["change"][0], {"name": "two", "set": ["y=2"]}, PLAN["change"][1]]}
    assert [found["name"] for found in known(folder, other)] == ["one"]


@pytest.mark.parametrize("change", [{"set": ["x=2"]}, {"recipe": "b.toml"}, {"sha256": "e"}, {"besides": ["z=3"]}])
def test_another_scale_is_another_list(folder, change):
    assert known(folder, PLAN | change) == []
    assert json.loads((folder / "results.json").read_text())["results"][0]["machine"] == {}


def test_rows_that_are_known_are_neither_trained_nor_lost(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text("seed = 0\n", encoding="utf-8")
    text = 'recipe = "a.toml"\nset = ["x=1"]\n' + "".join(
        f'[[change]]\nname = "{i}"\nset = ["y={i}"]\n' for i in range(3)
    )
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    trained = []

    def train(recipe, folder, overrides):
        trained.append(overrides[-1])
        if len(trained) == 3:
            raise KeyboardInterrupt
        return result("", [])

    def call(*more):
        argv = [
            "ablate",
            str(tmp_path / "plan.toml"),
            "--out",
            str(tmp_path / "out"),
            "--set",
            "teacher.model=x",
            *more,
        ]
        monkeypatch.setattr(sys, "argv", argv)
        ablate.main()
        return json.loads((tmp_path / "out" / "results.json").read_text())["results"]

    monkeypatch.setattr(ablate, "train", train)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert len(call("--set", "cache_dir=y")) == 3
    assert trained == ["y=0", "y=1", "y=2", "y=2"]
    assert [row["name"] for row in call()] == ["0", "1", "2"]
    assert len(trained) == 4
    call("--set", "train.max_steps=9")  # another scale
    assert len(trained) == 7
