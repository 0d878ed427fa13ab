from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
from tiny import as_if_of, judge, make_model_folder, refused_before_int8, reseal, sample_manifest

from leafembed.cli import main
from leafembed.errors import BundleError, GateFailedError, RecipeError
from leafembed.ship.bundle import open_bundle, read_manifest, write_bundle, write_refusal
from leafembed.ship.verdict import judge_again, read_verdict


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdict")
    return write_bundle(folder / "bundle", make_model_folder(folder / "model"), sample_manifest())


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "bundle")


def _edited(bundle, change):
    """Edit the manifest as someone who knows of the seal would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    reseal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _score(manifest, report, value, *, everywhere):
    result = manifest["reports"][report]["results"][0]
    result["main_score"] = value
    if everywhere:
        result["scores"][result["metric"]] = value


def _check(manifest, name):
    return next(check for check in manifest["verdict"]["checks"] if check["name"] == name)


def _without_floor(manifest, name):
    """Take a floor out with every check against it, as someone would who is below it."""
    del manifest["reports"][name]
    manifest["verdict"]["checks"] = [one for one in manifest["verdict"]["checks"] if name not in one["name"]]


def _without_cosine(manifest):
    """Take out what one check follows from, with the check, as someone would who fails it alone."""
    manifest["int8"]["cosine_mean"] = None
    checks = [one for one in manifest["verdict"]["checks"] if "cosine of INT8" not in one["name"]]
    manifest["verdict"].update(checks=checks, passed=True)


def _without_weak(manifest, n):
    """Call a task too small to be scored, as someone would who is bad at it."""
    for report in manifest["reports"].values():
        (weak,) = [one for one in report["results"] if one["task"] == "retrieval/miracl"]
        report["results"].remove(weak)
        report["too_few"] = [{name: weak[name] for name in ("task", "type", "lang")} | {"n": n}]


def _rows_asked(manifest, rows, n):
    """The same, by a recipe that asks for so many rows of a task."""
    manifest["recipe"]["eval"] = {} if rows is None else {"min_rows": rows}
    _without_weak(manifest, n)


SAYS = "the verdict says .*, the scores and the recipe give"
UNREADABLE = "what the verdict follows from is not readable"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: _check(m, "mean retention").update(value=0.99), SAYS),
        (lambda m: _check(m, "mean retention").update(limit=0.5), SAYS),
        (lambda m: _check(m, "mean retention").update(name="retention"), SAYS),
        (lambda m: _check(m, "INT8 drop in STS").update(at_least=True), SAYS),
        (lambda m: m["verdict"]["checks"].pop(3), SAYS),
        (lambda m: m["verdict"]["checks"].pop(), f"{SAYS}|no such check"),
        (lambda m: m["verdict"]["checks"].append(dict(m["verdict"]["checks"][0])), "give no such check"),
        (lambda m: m["verdict"].update(passed=False), "the stated outcome is not that of the checks"),
        (lambda m: m["verdict"]["checks"][1].update(passed=False), "the stated outcome"),
        (lambda m: m["recipe"]["gate"].update(min_mean_retention=0.1), SAYS),
        (lambda m: m["recipe"]["gate"].update(min_mean_retentoin=0.1), UNREADABLE),
        (lambda m: m["recipe"]["gate"].update(beat_floors=False), SAYS),
        (lambda m: m["recipe"]["gate"].update(languages=[]), SAYS),
        (lambda m: m["recipe"].pop("gate"), SAYS),
        (lambda m: m.update(recipe=None), UNREADABLE),
        (lambda m: _score(m, "int8", 0.99, everywhere=False), UNREADABLE),
        (lambda m: _score(m, "int8", 0.99, everywhere=True), SAYS),
        (lambda m: _score(m, "student", 0.7, everywhere=True), SAYS),
        (lambda m: _score(m, "teacher", 0.1, everywhere=True), SAYS),
        (lambda m: _score(m, "floor: static table", 0.01, everywhere=True), SAYS),
        (lambda m: _score(m, "int8", math.nan, everywhere=True), UNREADABLE),
        (lambda m: m["reports"].pop("floor: static table"), UNREADABLE),
        (lambda m: _without_floor(m, "floor: bag of words"), r"no scores of floor: bag of words"),
        (lambda m: m["reports"]["int8"]["model"].update(fingerprint="9" * 16), "is of a model with fingerprint 9999"),
        (lambda m: m["teacher"].update(fingerprint="9" * 16), "report 'teacher' is of a model with fingerprint aaaa"),
        (lambda m: as_if_of(m, "9" * 16), "holds the model cccccccccccccccc, the manifest judges 9999"),
        (lambda m: m["reports"].pop("student"), UNREADABLE),
        (lambda m: m["reports"]["int8"]["results"].pop(), UNREADABLE),
        (lambda m: [report["results"].pop() for report in m["reports"].values()], SAYS),
        (lambda m: m["int8"].update(cosine_mean=0.99999), SAYS),
        (lambda m: m.pop("int8"), UNREADABLE),
        (lambda m: _without_cosine(m), r"int8\.cosine_mean None, expected a number"),
        (lambda m: m["recipe"].update(eval={"test": ["sts/other"]}), r"no scores of sts/other"),
        (lambda m: m["recipe"].update(eval={"test": ["sts/*", "pair/*"]}), r"no scores of pair/\*"),
        (lambda m: _rows_asked(m, 500, 500), r"eval\.min_rows is 500"),
        (lambda m: _rows_asked(m, None, 50), r"retrieval/miracl \(en\): 50 rows are too few by too_few.* is 50"),
        (lambda m: _rows_asked(m, 0, 0), UNREADABLE),
        (lambda m: m["contamination"][1].update(exact=3), UNREADABLE),
        (lambda m: m["contamination"][1].update(exact=3, share=3 / 500), SAYS),
        (lambda m: m["contamination"].pop(1), UNREADABLE),
        (lambda m: m["behaviour"]["int8"].update(batch_cosine=1.0), SAYS),
        (lambda m: m["behaviour"]["int8"].update(tail=math.inf), UNREADABLE),
        (lambda m: m["behaviour"].pop("int8"), UNREADABLE),
        (lambda m: m["verdict"].update(stage="student"), UNREADABLE),
        (lambda m: m["verdict"].update(stage="my laptop"), UNREADABLE),
        (lambda m: m["verdict"].pop("passed"), "the verdict is not readable"),
        (lambda m: m.update(training=None), "the verdict is not readable"),
    ],
)
def test_what_does_not_follow_from_the_scores_is_refused(bundle, change, message, capsys):
    _edited(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle, allow_failed=True)
    assert "\n" not in str(caught.value)
    for command in ("info", "gate"):
        assert main([command, str(bundle)]) == 1
        assert capsys.readouterr().out == ""


def test_a_task_with_fewer_rows_than_asked_for_may_be_left_out(bundle, capsys):
    _edited(bundle, lambda m: (m["recipe"].update(eval={"min_rows": 501}), _without_weak(m, 500), judge(m)))
    open_bundle(bundle)
    assert main(["info", str(bundle)]) == 0
    assert "eval.min_rows = 501, by default 50" in capsys.readouterr().out


def test_a_refused_model_does_not_become_good_by_saying_so(tmp_path):
    model = make_model_folder(tmp_path / "model")
    bundle = write_bundle(tmp_path / "bundle", model, sample_manifest(kept=0.5))

    def lie(manifest):
        manifest["verdict"]["passed"] = True
        for check in manifest["verdict"]["checks"]:
            check.update(value=check["limit"], passed=True)

    with pytest.raises(GateFailedError):
        open_bundle(bundle)
    _edited(bundle, lie)
    with pytest.raises(BundleError, match=SAYS):
        open_bundle(bundle)


def test_the_least_digits_of_a_sum_do_not_matter(bundle):
    """Python 3.12 sums floats with less error than 3.11."""
    _edited(bundle, lambda m: [c.update(value=c["value"] * (1 + 1e-15)) for c in m["verdict"]["checks"]])
    open_bundle(bundle)


def test_who_edits_everything_is_not_noticed_but_other_rules_are_not_fooled(tmp_path):
    """The limit that docs/bundle-format.md states."""
    manifest = sample_manifest(kept=0.8)
    manifest["recipe"]["gate"] = {"min_mean_retention": 0.1}
    judge(manifest)
    bundle = write_bundle(tmp_path / "bundle", make_model_folder(tmp_path / "model"), manifest)
    open_bundle(bundle)
    rules = tmp_path / "rules.toml"
    rules.write_text("[gate]\nmin_mean_retention = 0.9\n", encoding="utf-8")
    assert main(["gate", str(bundle), "--recipe", str(rules)]) == 3


def test_own_rules_give_every_check(written, capsys):
    assert main(["gate", str(written)]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = read_manifest(written)["verdict"]["checks"]
    assert len(lines) == len(checks)
    assert lines[0] == "pass  mean retention is 0.9530, must be at least 0.9000"
    assert main(["gate", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"stage": "INT8 model", "passed": True, "checks": checks}


def test_other_rules_judge_the_stored_scores(written, tmp_path, capsys):
    assert main(["gate", str(written), "--set", "gate.min_mean_retention=0.96"]) == 3
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "FAIL  mean retention is 0.9530, must be at least 0.9600"
    assert sum(line.startswith("pass  ") for line in out.splitlines()) == len(out.splitlines()) - 1
    assert err == "leaf: the gate refused the INT8 model: mean retention is 0.9530, must be at least 0.9600\n"
    rules = tmp_path / "rules.toml"
    rules.write_text('seed = 1\n[gate]\nmin_score = { "bitext/tatoeba@deu-eng" = 0.95 }\n', encoding="utf-8")
    assert main(["gate", str(written), "--recipe", str(rules), "--json"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in data["checks"] if not check["passed"]] == ["bitext/tatoeba@deu-eng in deu-eng"]
    more = ["--set", 'gate.min_score."bitext/tatoeba@deu-eng"=0.5']
    assert main(["gate", str(written), "--recipe", str(rules), *more]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "gate.min_retention.Clustering=0.5"], "gate.min_retention: got 'Clustering'"),
        (
            ["--set", "gate.min_mean=0.5"],
            "unknown key gate.min_mean in the recipe: did you mean gate.min_mean_retention",
        ),
        (["--set", "train.epochs=1"], "expected a key of the gate"),
        (["--recipe", "nowhere.toml"], "nowhere.toml: No such file"),
        (["--recipe", "empty.toml"], "empty.toml: got no table [gate], expected one"),
    ],
)
def test_rules_that_cannot_be_used_are_an_error(written, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").write_text("seed = 1\n", encoding="utf-8")
    assert main(["gate", str(written), *argv]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_student_refused_before_int8_can_be_judged_by_other_rules(tmp_path, capsys):
    folder = write_refusal(tmp_path / "refused", refused_before_int8())
    assert main(["gate", str(folder)]) == 3
    assert "refused the student: mean retention is 0.8123" in capsys.readouterr().err
    rules = tmp_path / "rules.toml"
    rules.write_text("[gate]\nmin_mean_retention = 0.8\n", encoding="utf-8")
    assert main(["gate", str(folder), "--recipe", str(rules)]) == 0


def test_a_run_that_stopped_itself_has_no_model_to_judge(tmp_path, capsys):
    manifest = refused_before_int8()
    manifest["training"]["diagnosis"] = "The run stopped itself."
    assert main(["gate", str(write_refusal(tmp_path / "refused", manifest))]) == 1
    assert "no model to judge" in capsys.readouterr().err


def test_a_run_that_stopped_itself_is_refused_and_a_bundle_does_not_become_one_by_saying_so(bundle):
    manifest = refused_before_int8()
    manifest["training"]["diagnosis"] = "The run stopped itself."
    stopped = [{"name": "dev", "value": 0.1, "limit": 0.2, "at_least": True, "passed": False}]
    manifest["verdict"] |= {"checks": stopped, "passed": False}
    assert [check.name for check in read_verdict(manifest, "m")[0].failed] == ["dev"]
    manifest["verdict"]["checks"][0].update(value=0.3, passed=True)
    with pytest.raises(BundleError, match=SAYS):
        read_verdict(manifest, "m")
    _edited(bundle, lambda m: (m["training"].update(diagnosis="x"), m["verdict"].update(checks=stopped, passed=False)))
    with pytest.raises(BundleError, match=SAYS):
        open_bundle(bundle, allow_failed=True)


def test_an_altered_model_is_not_judged(bundle, capsys):
    (bundle / "model.bin").write_bytes(b"other weights")
    assert main(["gate", str(bundle)]) == 1
    assert "model.bin was altered" in capsys.readouterr().err


def test_judging_again_leaves_the_manifest_alone():
    manifest = sample_manifest()
    before = copy.deepcopy(manifest)
    verdict, stage = read_verdict(manifest, "m")
    assert (verdict.passed, stage) == (True, "INT8 model")
    with pytest.raises(RecipeError):
        judge_again(manifest, "m", _rules(min_retention={"Clustering": 0.5}))
    assert manifest == before


def _rules(**keys):
    from leafembed.recipe import GateConfig

    return GateConfig(**keys)
