from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from leafembed.stages import MARKER, fingerprint, once


class Build:
    def __init__(self, text="made", facts=None, fail=None):
        self.text, self.facts, self.fail, self.calls = text, facts, fail, 0

    def __call__(self, folder):
        self.calls += 1
        folder.mkdir()
        (folder / "result.txt").write_text(self.text, encoding="utf-8")
        if self.fail:
            raise self.fail
        return self.facts


def test_a_stage_is_built_once_and_its_facts_are_kept(tmp_path):
    build = Build(facts={"steps": 3, "list": [1, 2.5]})
    assert once(tmp_path / "stage", "inputs", build) == {"steps": 3, "list": [1, 2.5]}
    assert once(tmp_path / "stage", "inputs", build) == {"steps": 3, "list": [1, 2.5]}
    assert build.calls == 1
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}
    assert {path.name for path in (tmp_path / "stage").iterdir()} == {"result.txt", MARKER}


def test_other_inputs_replace_the_folder(tmp_path):
    once(tmp_path / "stage", "old", Build("old"))
    (tmp_path / "stage" / "stray").touch()
    assert once(tmp_path / "stage", "new", Build("new")) == {}
    assert (tmp_path / "stage" / "result.txt").read_text(encoding="utf-8") == "new"
    assert not (tmp_path / "stage" / "stray").exists()


def test_a_failed_build_leaves_what_was_there_and_the_next_starts_afresh(tmp_path):
    once(tmp_path / "stage", "old", Build("old"))
    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "stage", "new", Build("half", fail=KeyboardInterrupt()))
    assert (tmp_path / "stage" / "result.txt").read_text(encoding="utf-8") == "old"
    untouched = Build("never")
    once(tmp_path / "stage", "old", untouched)
    assert untouched.calls == 0
    once(tmp_path / "stage", "new", Build("whole"))
    assert (tmp_path / "stage" / "result.txt").read_text(encoding="utf-8") == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}


@pytest.mark.parametrize("other", ["inputs", "other inputs"])
def test_two_that_make_the_same_folder_at_once_leave_each_others_alone(tmp_path, other):
    folder = tmp_path / "stage"

    def build(target):
        """Half-way, another run makes the same folder from beginning to end."""
        target.mkdir()
        (target / "first.txt").touch()
        begun = threading.Thread(target=once, args=(folder, other, Build("other's", facts={"n": 2})))
        begun.start()
        begun.join()
        assert (folder / "result.txt").read_text(encoding="utf-8") == "other's"
        assert (target / "first.txt").exists()
        return {"n": 1}

    same = other == "inputs"
    assert once(folder, "inputs", build) == {"n": 2 if same else 1}
    assert (folder / ("result.txt" if same else "first.txt")).exists()
    assert json.loads((folder / MARKER).read_text(encoding="utf-8"))["facts"] == {"n": 2 if same else 1}
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}


def test_what_killed_processes_left_is_removed_and_no_other_stages(tmp_path):
    for name in (".stage.k1ll3d.partial", ".stag.k1ll3d.partial"):
        (tmp_path / name / "stage").mkdir(parents=True)
    once(tmp_path / "stage", "inputs", Build())
    assert {path.name for path in tmp_path.iterdir()} == {"stage", ".stag.k1ll3d.partial"}


def test_one_that_comes_while_the_old_folder_is_put_aside_is_looked_at_again(tmp_path, monkeypatch):
    """Between the two renames another process puts its own folder there."""
    folder, replace = tmp_path / "stage", Path.replace
    once(folder, "old", Build("old"))
    once(tmp_path / "copy", "new", Build("theirs"))

    def between(self, target):
        if self.parent.name.endswith(".partial") and (tmp_path / "copy").exists():
            shutil.move(tmp_path / "copy", folder)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", between)
    once(folder, "new", Build("ours"))
    assert (folder / "result.txt").read_text(encoding="utf-8") == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"stage"}


def test_a_folder_without_a_marker_does_not_count(tmp_path):
    (tmp_path / "stage").mkdir()
    build = Build()
    once(tmp_path / "stage", "inputs", build)
    assert build.calls == 1


@pytest.mark.parametrize("content", ["", "{", '{"inputs": "inputs"}', "[]"])
def test_a_damaged_marker_does_not_count(tmp_path, content):
    once(tmp_path / "stage", "inputs", Build())
    (tmp_path / "stage" / MARKER).write_text(content, encoding="utf-8")
    build = Build(facts={"n": 1})
    assert once(tmp_path / "stage", "inputs", build) == {"n": 1}
    assert build.calls == 1


def test_parents_are_made(tmp_path):
    once(tmp_path / "a" / "b" / "stage", "inputs", Build())
    assert json.loads((tmp_path / "a" / "b" / "stage" / MARKER).read_text(encoding="utf-8"))["inputs"] == "inputs"


def test_fingerprints_depend_on_every_input_and_not_on_key_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(Path("x")) == fingerprint(Path("x"))
    different = [fingerprint(1, 2), fingerprint(2, 1), fingerprint([1, 2]), fingerprint("1", "2"), fingerprint(1, None)]
    assert len(set(different)) == len(different)
