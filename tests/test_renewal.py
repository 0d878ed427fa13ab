"""A verdict of an older gate, which asked for less: refused, opened with a warning, renewed."""

from __future__ import annotations

import json
import shutil

import pytest
from tiny import judge, make_model_folder, refused_before_int8, reseal, sample_manifest

from leafembed.cli import main
from leafembed.errors import BundleError, GateFailedError
from leafembed.ship.bundle import open_bundle, read_manifest, verify, write_bundle, write_refusal
from leafembed.ship.card import render_card
from leafembed.ship.renewal import renew_verdict


def _is_later(name):
    floor = name.endswith(" above floor: bag of words") and not name.startswith("mean ")
    return floor or (name.startswith("INT8 drop in") and name.count(" in ") == 2)


def _as_of_before(manifest):
    """Take out what the gate asks for only since later, as the older gate would have judged."""
    verdict = manifest["verdict"]
    verdict["checks"] = [one for one in verdict["checks"] if not _is_later(one["name"])]
    verdict["passed"] = all(one["passed"] for one in verdict["checks"])


def _edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    reseal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _take_out(manifest, name):
    (found,) = [check for check in manifest["verdict"]["checks"] if check["name"] == name]
    manifest["verdict"]["checks"].remove(found)


def _raise_score(manifest, report, value):
    """Another score, in both places that a report has it."""
    result = manifest["reports"][report]["results"][0]
    result["main_score"] = result["scores"][result["metric"]] = value


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("renewal") / "model")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("renewal") / "bundle", model, sample_manifest())


@pytest.fixture
def old(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "bundle")
    _edited(folder, _as_of_before)
    return folder


def test_an_older_verdict_is_refused_by_every_command_with_the_one_that_helps(old, capsys):
    for command in ("info", "gate", "card", "encode"):
        assert main([command, str(old)]) == 1
        assert "bring it up to date with leaf gate BUNDLE --renew, or open it as it is with --allow-failed" in (
            capsys.readouterr().err
        )


def test_an_older_verdict_opens_where_failed_ones_may_with_a_warning(old, written, capsys):
    open_bundle(old, allow_failed=True)
    assert "is not judged by today's rules: " in capsys.readouterr().err
    open_bundle(written, allow_failed=True)
    assert capsys.readouterr().err == ""


def test_a_renewal_says_what_is_new_and_the_bundle_opens(old, written, capsys):
    before = read_manifest(old)
    assert main(["gate", str(old), "--renew"]) == 0
    out, err = capsys.readouterr()
    whole = read_manifest(written)["verdict"]
    added = [one["name"] for one in whole["checks"] if _is_later(one["name"])]
    assert len(added) == 11
    assert f"the verdict lacked {len(added)} checks, 0 of which fail" in err
    assert err.count("new   pass  ") == len(added)
    assert len(out.splitlines()) == len(whole["checks"])
    after = verify(old)
    assert after["verdict"] == whole
    (note,) = after["renewed"]
    assert (note["passed_before"], note["added"]) == (True, added)
    same = set(before) - {"verdict", "files", "sizes", "seal"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    card = (old / "README.md").read_text(encoding="utf-8")
    assert card == render_card(after)
    said = f"Judged: INT8 model; renewed {note['time']} with leafembed {note['leafembed']}, by the stored scores: 11 "
    assert said in card.partition("### Gate")[2].partition("<details>")[0]
    assert "checks were not asked for before, and the verdict was pass." in card
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]
    open_bundle(old)


def test_what_is_up_to_date_is_left_alone(written, capsys):
    before = {file.name: file.stat().st_mtime_ns for file in written.iterdir()}
    assert main(["gate", str(written), "--renew", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["added"] == []
    assert "nothing to renew" in err
    assert {file.name: file.stat().st_mtime_ns for file in written.iterdir()} == before


def test_a_model_that_todays_rules_refuse_says_so_afterwards(model, tmp_path, capsys):
    manifest = sample_manifest()
    for result in manifest["reports"]["floor: bag of words"]["results"]:  # above the student, below its teacher
        if result["type"] == "STS":
            result["main_score"] = result["scores"][result["metric"]] = 0.78
    judge(manifest)
    folder = write_bundle(tmp_path / "bundle", model, manifest)
    _edited(folder, _as_of_before)
    assert main(["gate", str(folder), "--renew", "--json"]) == 3
    assert not json.loads(capsys.readouterr().out)["passed"]
    assert not verify(folder)["verdict"]["passed"]
    assert "STS above floor: bag of words" in (folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(GateFailedError):
        open_bundle(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: _raise_score(m, "int8", 0.9),
        lambda m: _raise_score(m, "student", 0.7),
        lambda m: _raise_score(m, "teacher", 0.5),
        lambda m: _raise_score(m, "floor: static table", 0.01),
        lambda m: m["reports"]["int8"]["results"][0].update(main_score=0.9),
        lambda m: m["int8"].update(cosine_mean=0.99999),
        lambda m: m["behaviour"]["int8"].update(batch_cosine=1.0),
        lambda m: m["recipe"]["gate"].update(min_retention={}),
        lambda m: m["recipe"]["gate"].update(beat_floors=False),
        lambda m: m["verdict"]["checks"].pop(0),
        lambda m: _take_out(m, "mean above floor: bag of words"),
        lambda m: m["verdict"].update(passed=False),
    ],
)
def test_an_edit_does_not_become_a_verdict_by_renewal_nor_by_allow_failed(old, edit):
    _edited(old, edit)
    before = (old / "manifest.json").read_bytes()
    for attempt in (lambda: renew_verdict(old), lambda: open_bundle(old, allow_failed=True)):
        with pytest.raises(BundleError, match=r"edited or damaged|was edited") as caught:
            attempt()
        assert "--renew" not in str(caught.value)
    assert (old / "manifest.json").read_bytes() == before
    assert [path.name for path in old.parent.iterdir()] == ["bundle"]


def test_one_check_of_a_kind_that_came_later_was_taken_out(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "bundle")
    names = [check["name"] for check in read_manifest(folder)["verdict"]["checks"] if _is_later(check["name"])]
    floors = [name for name in names if name.endswith("bag of words")]
    assert len(floors) > 1
    _edited(folder, lambda m: _take_out(m, floors[0]))
    with pytest.raises(BundleError, match="edited or damaged"):
        renew_verdict(folder)


def test_what_no_seal_covers_is_not_renewed(old):
    text = (old / "manifest.json").read_text(encoding="utf-8")
    (old / "manifest.json").write_text(text.replace('"steps": 4000', '"steps": 4001', 1), encoding="utf-8")
    with pytest.raises(BundleError, match="its seal does not fit"):
        renew_verdict(old)


def test_other_weights_are_not_renewed(old):
    (old / "model.bin").write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"model\.bin was altered"):
        renew_verdict(old)


def test_an_interrupted_renewal_is_done_again(old, monkeypatch):
    from leafembed.ship import bundle

    def fail(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(bundle, "_write_durably", fail)
        with pytest.raises(OSError, match="no space"):
            renew_verdict(old)
    assert "renewed" not in read_manifest(old)
    (old / "README.md").write_text("a card that was moved here before the manifest was", encoding="utf-8")
    assert renew_verdict(old)
    open_bundle(old)


def test_a_refusal_before_int8_is_renewed_too(tmp_path):
    folder = write_refusal(tmp_path / "refused", refused_before_int8())
    _edited(folder, _as_of_before)
    assert main(["gate", str(folder)]) == 1
    assert main(["gate", str(folder), "--renew"]) == 3
    assert main(["gate", str(folder)]) == 3
    manifest = read_manifest(folder, refused=True)
    assert "files" not in manifest
    assert len(manifest["renewed"]) == 1


def test_renewal_is_by_the_bundles_own_rules(old, capsys):
    assert main(["gate", str(old), "--renew", "--set", "gate.min_mean_retention=0.1"]) == 2
    assert "--renew: got it beside --recipe or --set, expected it alone" in capsys.readouterr().err
