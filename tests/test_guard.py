"""A whole run with a student of random weights: it stops, says why and leaves a card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from families import bert, toy_recipe, toy_texts

from leafembed.cli import main
from leafembed.errors import DataError, StoppedError
from leafembed.guard import watched
from leafembed.learn import student, watch
from leafembed.learn.causes import Start
from leafembed.pipeline import run
from leafembed.prepare import embed
from leafembed.recipe_io import load_recipe, recipe_from_dict
from leafembed.ship.markdown import to_toml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def plain(tmp_path, eval_data):
    return toy_recipe(
        tmp_path,
        bert(tmp_path / "teacher", num_hidden_layers=1, initializer_range=0.02),  # its tokens count more than its layer
        eval_data,
        student={"layers": [0]},
        train={"max_steps": 30, "eval_steps": 2, "learning_rate": 1e-6},
        eval={"dev": ["sts/toy.dev"], "test": ["retrieval/toy_de"]},
        alarms={"stop": True},
    )


@pytest.fixture
def random_start(monkeypatch):
    """Random weights instead of the kept ones; its token rows are lost beside its positions, as in a collapse."""
    kept = student.STUDENT_INITS["layers"]

    def build(*args):
        model = kept(*args)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(std=1e-4 if "word_embeddings" in name else 0.02)
        return model

    monkeypatch.setitem(student.STUDENT_INITS, "layers", build)


def test_a_random_student_stops_and_leaves_a_card(plain, random_start, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "bundle").mkdir(parents=True)  # of an earlier recipe
    with pytest.raises(StoppedError, match=r"The run stopped itself\. Below floor: got a dev score of") as caught:
        run(recipe_from_dict(plain), run_dir)
    assert {path.name for path in (run_dir / "refused").iterdir()} == {"README.md", "manifest.json", "curves.png"}
    assert not (run_dir / "bundle").exists()
    assert not (run_dir / "student").exists()
    manifest = json.loads((run_dir / "refused" / "manifest.json").read_text())
    training = manifest["training"]
    assert training["diagnosis"] == str(caught.value)
    assert training["steps"] == 4
    assert [alarm["name"] for alarm in training["alarms"]][:2] == ["missing languages", "below floor"]
    assert [entry["step"] for entry in training["history"]] == [0, 2, 4]
    assert manifest["verdict"]["passed"] is False
    assert manifest["verdict"]["stage"] == "training, step 4"
    assert set(manifest["reports"]) == {
        "teacher",
        *(f"floor: {name}" for name in ("random", "bag of words", "untrained student", "static table")),
    }
    card = (run_dir / "refused" / "README.md").read_text()
    body = card.split("---")[2].strip()
    assert body.startswith(
        "> [!WARNING]\n> **Training stopped itself. There is no model.**\n>\n> The run stopped itself."
    )
    assert body.index("dev score against the static floor is") < body.index("# toy")
    assert body.index("## Alarms") < body.index("## Results")
    assert re.search(r"\| below floor \(fatal\) \| 4 \| got a dev score", card)
    assert "retention" not in card.partition("## Results")[2].partition("### Gate")[0].lower()


def test_the_command_shows_the_card_and_ends_with_status_3(plain, random_start, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(plain))
    assert main(["run", str(recipe), "--run-dir", str(tmp_path / "run")]) == 3
    out, err = capsys.readouterr()
    assert "gate: REFUSED, 0 of 1 checks hold" in out
    assert "the card with the reasons" in err
    assert err.splitlines()[-1].startswith("leaf: The run stopped itself. Below floor")


def test_what_a_student_is_watched_by(plain):
    plain["data"]["validation_rows"] = 24
    learned = embed(recipe_from_dict(plain))
    seen = watched(recipe_from_dict(plain), learned, 0.25)
    assert list(seen.texts) == list(dict.fromkeys(row.text for row in learned.corpus.validation))
    assert np.allclose(seen.vectors, learned.teacher.encode(seen.texts), atol=1e-6)
    assert (seen.floor, seen.start) == (0.25, Start("layers", 1.0, earlier=False))
    # The corpus says it is English; the dev task brings German texts, which no training row is in.
    assert set(seen.by_language) == {"en", "de"}
    assert [alarm.name for alarm in seen.known] == ["missing languages"]
    assert set(seen.known[0].facts) == {"de", "en"}  # 96 English rows are too few as well


@pytest.fixture
def whole_line(tmp_path, eval_data):
    """A toy run on English text, judged in German too, whose floor the test sets: a toy table is no good floor."""

    def recipe(**sections):
        plain = toy_recipe(tmp_path, bert(tmp_path / "teacher"), eval_data, alarms={"stop": True}, **sections)
        english = [text for text in toy_texts(240) if text.startswith("en")]
        (tmp_path / "corpus.txt").write_text("\n".join(english), encoding="utf-8")
        return plain | {"eval": plain["eval"] | {"dev": ["sts/toy.dev"]}}

    return recipe


def _stopped(plain, tmp_path, monkeypatch):
    """Run until it stops itself, with a floor that nothing reaches; the facts of its training."""
    as_it_is = watch.Watched
    monkeypatch.setattr(watch, "Watched", lambda **given: as_it_is(**given | {"floor": 1.5}))
    with pytest.raises(StoppedError):
        run(recipe_from_dict(plain), tmp_path / "run")
    return json.loads((tmp_path / "run" / "refused" / "manifest.json").read_text())["training"]


def test_the_first_attempt_in_small_names_random_start_starved_rows_and_missing_languages(
    whole_line, tmp_path, monkeypatch, capsys
):
    plain = whole_line(
        student={"init": "random", "num_layers": 1}, train={"max_steps": 30, "eval_steps": 2, "learning_rate": 1e-4}
    )
    training = _stopped(plain, tmp_path, monkeypatch)
    diagnosis = training["diagnosis"]
    assert "the student starts from random weights" in diagnosis
    assert re.search(r"token rows never got a gradient; least trained: de \d+%", diagnosis)
    assert "got training rows de 0" in diagnosis
    said = capsys.readouterr().err
    # Known from the text alone, so said before the teacher works, which may take hours.
    assert said.index("ALARM: missing languages") < said.index("teacher")
    log = [json.loads(line) for path in (tmp_path / "run").glob("checkpoints-*/history.jsonl")
           for line in path.read_text().splitlines()]  # fmt: skip
    last = [entry["alarm"] for entry in log if "alarm" in entry and entry["step"] == training["steps"]]
    assert any("below floor" in alarm for alarm in last)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("start", "stops"), [(["student.init=random", "student.num_layers=3"], True), (["student.init=layers"], False)]
)
def test_a_random_start_stays_under_the_measured_floor_where_kept_layers_do_not(start, stops, tmp_path, capsys):
    """A real teacher, and the floor as it is: its token table fitted to its vectors of the same rows."""
    small = ["data.max_rows=600", "data.validation_rows=60", "train.max_steps=12", "train.eval_steps=4"]
    judged = ['eval.test=["sts/sts17_en.test"]', "gate.min_retention={ STS = 0.93 }", f"cache_dir={tmp_path / 'cache'}"]
    recipe = load_recipe(ROOT / "recipes" / "quick.toml", [*start, *small, *judged])
    if stops:
        with pytest.raises(StoppedError, match=r"a dev score of .* that of a static token table.*from random weights"):
            run(recipe, tmp_path / "run")
    else:
        run(recipe, tmp_path / "run", allow_failed=True)
        assert "ALARM: below floor" not in capsys.readouterr().err


def test_a_run_that_collapses_says_so(whole_line, tmp_path, monkeypatch):
    plain = whole_line(
        student={"layers": [0]}, train={"max_steps": 30, "eval_steps": 2, "learning_rate": 1.0, "warmup_steps": 0}
    )
    training = _stopped(plain, tmp_path, monkeypatch)
    assert "collapse" in [alarm["name"] for alarm in training["alarms"]]
    assert "vectors collapse: got" in training["diagnosis"]


def test_dev_tasks_that_hold_nothing_else_than_test_end_a_run_before_the_teacher_works(
    whole_line, eval_data, tmp_path, capsys
):
    rows = (eval_data / "sts" / "toy.test.jsonl").read_text(encoding="utf-8")
    (tmp_path / "data" / "sts").mkdir(parents=True)
    for split in ("dev", "test"):
        (tmp_path / "data" / "sts" / f"same.{split}.jsonl").write_text(rows, encoding="utf-8")
    plain = whole_line()
    plain["eval"] |= {"data": str(tmp_path / "data"), "dev": ["sts/same.dev"], "test": ["sts/same.test"]}
    plain["eval"]["drop_shared"] = True
    with pytest.raises(DataError, match=r"sts/same\.dev"):
        run(recipe_from_dict(plain), tmp_path / "run")
    assert "teacher" not in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("vectors*"))
