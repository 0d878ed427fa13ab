from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from ablate import known, write

PLAN = {"recipe": "a.toml", "set": ["x=1"], "change": [{"name": "one", "set": []}, {"name": "two", "set": ["y=1"]}]}


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


@pytest.mark.parametrize("change", [{"set": ["x=2"]}, {"recipe": "b.toml"}])
def test_another_scale_is_another_list(folder, change):
    assert known(folder, PLAN | change) == []
    assert json.loads((folder / "results.json").read_text())["results"][0]["machine"] == {}
