"""Whole runs whose model the gate refuses, by its own rules and at either stage; and one that must pass."""

from __future__ import annotations

import json

import pytest
from families import gemma, toy_recipe

import leafembed
from leafembed.cli import main
from leafembed.errors import GateFailedError
from leafembed.judge.gate import check
from leafembed.pipeline import run
from leafembed.recipe import GateConfig
from leafembed.recipe_io import recipe_from_dict
from leafembed.reports import EvalReport
from leafembed.ship.bundle import read_manifest
from leafembed.ship.markdown import to_toml
from leafembed.ship.verdict import read_verdict


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("refusals")


@pytest.fixture(scope="module")
def teacher(root):
    return gemma(root / "teacher")


@pytest.fixture(scope="module")
def toy(root, teacher, eval_data):
    """A recipe with rules changed; what it trains is the same, so that only the first run trains."""

    def recipe(**gate):
        plain = toy_recipe(root, teacher, eval_data, student={"layers": [0, 5]})
        return plain | {"gate": plain["gate"] | gate}

    return recipe


def test_a_student_that_keeps_too_little_is_refused_before_int8(toy, root):
    plain, run_dir = toy(min_score={"retrieval/toy_en": 0.999}), root / "run"
    with pytest.raises(GateFailedError, match=r"refused the student: retrieval/toy_en in en is 0\.\d+") as caught:
        run(recipe_from_dict(plain), run_dir)
    assert [one.name for one in caught.value.result.failed] == ["retrieval/toy_en in en"]
    files = {path.name for path in (run_dir / "refused").iterdir()}
    assert files == {"README.md", "manifest.json", "curves.png", "scores.png"}
    assert not (run_dir / "bundle").exists()
    assert not (run_dir / "int8").exists()
    card = (run_dir / "refused" / "README.md").read_text(encoding="utf-8")
    assert "**The gate refused this model. Do not use it.** Judged: student." in card
    verdict, stage = read_verdict(read_manifest(run_dir / "refused", refused=True), "refused")
    assert (verdict.passed, stage) == (False, "student")
    # And the same as people meet it.
    (root / "toy.toml").write_text(to_toml(plain), encoding="utf-8")
    assert main(["run", str(root / "toy.toml"), "--run-dir", str(run_dir)]) == 3


def test_an_int8_model_too_far_from_its_student_is_refused_and_does_not_open(toy, root):
    run_dir = root / "run"
    with pytest.raises(GateFailedError, match=r"refused the INT8 model: mean cosine of INT8 with fp32") as caught:
        run(recipe_from_dict(toy(min_int8_cosine=1.0)), run_dir)
    assert [one.name for one in caught.value.result.failed] == ["mean cosine of INT8 with fp32"]
    assert not (run_dir / "refused").exists()  # of the stricter recipe before
    card = (run_dir / "bundle" / "README.md").read_text(encoding="utf-8")
    assert card.split("---\n", 2)[2].lstrip().startswith("> [!WARNING]")
    with pytest.raises(GateFailedError):
        leafembed.load(run_dir / "bundle")
    assert leafembed.load(run_dir / "bundle", allow_failed=True).encode(["en1"]).shape == (1, 32)


def test_what_passes_by_other_rules_replaces_what_was_refused(toy, root):
    outcome = run(recipe_from_dict(toy()), root / "run")
    assert outcome.verdict.passed
    assert not (root / "run" / "refused").exists()
    assert leafembed.load(outcome.folder).encode(["en1"]).shape == (1, 32)


def test_the_teacher_as_its_own_student_keeps_all_of_itself(root, teacher, eval_data):
    """Every layer, its prompts, and a rate that moves nothing."""
    layers = json.loads((teacher / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    plain = toy_recipe(
        root,
        teacher,
        eval_data,
        student={"layers": list(range(layers)), "prompts": "teacher"},
        train={"max_steps": 1, "eval_steps": 1, "learning_rate": 1e-9, "warmup_steps": 0},
    )
    outcome = run(recipe_from_dict(plain), root / "itself", allow_failed=True)
    scores = [outcome.manifest["reports"][name]["results"][0]["main_score"] for name in ("student", "teacher")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    rules = GateConfig(beat_floors=False, min_mean_retention=1 - 1e-6, min_retention={"Retrieval": 1 - 1e-6})
    reports = {name: EvalReport.from_dict(outcome.manifest["reports"][name]) for name in ("student", "teacher")}
    assert check(reports["student"], reports["teacher"], rules, floors={}).passed
