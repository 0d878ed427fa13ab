from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import gemma, toy_recipe

from leafembed.cli import main
from leafembed.ship.markdown import to_toml


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, eval_data):
    """Three of six layers of a tiny Gemma; batches of 16 short or 4 long texts."""
    root = tmp_path_factory.mktemp("planning")
    student = {"layers": [0, 1, 5], "exits": [1, 2]}
    train = {"curriculum": [{"tokens": 16, "share": 0.5}, {"tokens": 128, "share": 0.5}], "batch_tokens": 512}
    settings = toy_recipe(root, gemma(root / "teacher"), eval_data, student=student, train=train)
    path = root / "recipe.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    return str(path)


def output(capsys, *args):
    assert main([*args]) == 0
    return capsys.readouterr().out


def test_the_plan_for_machines_holds_parts_exits_and_memory(recipe, capsys):
    data = json.loads(output(capsys, "plan", recipe, "--json"))
    assert list(data) == [
        "parts",
        "at_most",
        "total",
        "active",
        "fp32_mb",
        "int8_mb",
        "exits",
        "training_memory",
        "token_bytes",
    ]
    assert not data["at_most"]
    assert data["total"] == sum(part["parameters"] for part in data["parts"])
    assert [item["layers"] for item in data["exits"]] == [1, 2, 3]
    assert data["exits"][-1]["active"] == data["active"]
    assert [(phase["tokens"], phase["texts"]) for phase in data["training_memory"]] == [(16, 16), (128, 4)]
    for phase in data["training_memory"]:
        assert phase["peak_gb"] == pytest.approx(sum(phase["gb"].values()))
        assert "fits" not in phase


def test_the_plan_says_whether_training_fits(recipe, capsys):
    peaks = [one["peak_gb"] for one in json.loads(output(capsys, "plan", recipe, "--json"))["training_memory"]]
    assert peaks[0] < peaks[1]
    between = str(sum(peaks) / 2)
    data = json.loads(output(capsys, "plan", recipe, "--json", "--memory-gb", between))
    assert [one["fits"] for one in data["training_memory"]] == [True, False]
    lines = output(capsys, "plan", recipe, "--memory-gb", between).splitlines()
    assert lines[0].split() == ["part", "parameters", "fp32", "MB", "INT8", "MB"]
    assert lines[-2].endswith("   fits")
    assert lines[-1].endswith("   DOES NOT FIT")
    assert "FIT" not in output(capsys, "plan", recipe).upper()


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "many"])
def test_memory_is_a_positive_number(recipe, value, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["plan", recipe, f"--memory-gb={value}"])
    assert raised.value.code == 2
    assert "expected a positive number" in capsys.readouterr().err


def test_layers_are_ranked_on_the_corpus(recipe, capsys):
    data = json.loads(output(capsys, "plan", recipe, "--layers", "--json"))
    assert [item["layer"] for item in data["layers"]] == list(range(6))
    assert len(data["suggestion"]) == 3  # as many as the recipe keeps
    assert data["texts"] == 120  # all of the source
    assert not (Path(recipe).parent / "cache" / "corpora").exists()  # a ranking leaves no corpus behind
    lines = output(capsys, "plan", recipe, "--layers", "2").splitlines()
    assert lines[0].split()[:4] == ["layer", "type", "influence", "damage"]
    assert lines[6].split()[:2] == ["5", "full_attention"]
    assert lines[-2].startswith("suggestion: student.layers = [")
    assert lines[-2].count(",") == 2
    assert "not what trains best" in lines[-1]


def test_more_layers_than_the_teacher_has_are_an_error(recipe, capsys):
    assert main(["plan", recipe, "--layers", "7"]) == 1
    assert "--layers: got 7, the teacher has 6 layers" in capsys.readouterr().err


def test_a_table_that_is_cut_to_what_occurs_is_priced_at_most(recipe, capsys):
    for change in ("student.vocab_languages=['en']", "student.vocab_text=own.txt"):
        assert "the token table at most: it is cut" in output(capsys, "plan", recipe, "--set", change)
        assert "at most: it is cut" not in output(
            capsys, "plan", recipe, "--set", change, "--set", "student.vocab_size=99"
        )


def test_the_disk_that_token_vectors_take_is_said(recipe, capsys):
    assert "on the disk" not in output(capsys, "plan", recipe)
    assert "0.07 GB on the disk for a million tokens" in output(
        capsys, "plan", recipe, "--set", "train.token_distillation=1.0"
    )
