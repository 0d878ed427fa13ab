"""Bundles on their way to and from a hub, by the command line and over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import hub_stub
import pytest
from tiny import make_model_folder, reseal, sample_manifest, write_sealed

import leafembed
from leafembed.ship.bundle import write_bundle

REPO = "me/student"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return write_bundle(root / "bundle", make_model_folder(root / "model", dim=2_048), sample_manifest())


@pytest.fixture
def hub():
    with hub_stub.hub() as state:
        yield state


@pytest.fixture
def leaf(hub, tmp_path):
    """Runs the command line in an empty home, against the stub; with a ``start`` of its own it is not waited for."""

    def leaf(*words, start=(), **environment):
        known = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": hub_stub.TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",  # large files go by LFS, which the stub speaks
        }
        command = [sys.executable, *(start or ("-m", "leafembed")), *map(str, words)]
        env = {**os.environ, **known, **environment}
        if start:
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env
            )
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120, check=False)

    return leaf


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_comes_back_as_it_went(leaf, hub, bundle, tmp_path):
    went = leaf("push", bundle, REPO, "--json")
    assert went.returncode == 0, went.stderr
    sha = hub.branches[REPO]["main"]
    assert json.loads(went.stdout) == {"repo": REPO, "commit": f"{hub.url}/{REPO}/commit/{sha}"}
    assert hub.messages == [f"leafembed bundle {sample_manifest()['name']}"]
    assert (bundle / "model.bin").read_bytes() in hub.large.values()
    came = leaf("pull", REPO, "--json")
    assert came.returncode == 0, came.stderr
    assert json.loads(came.stdout) == {
        "folder": str(tmp_path / "student"),
        "commit": sha,
        "passed": True,
        "outdated": False,
    }
    assert contents(tmp_path / "student") == contents(bundle)  # and nothing of the hub's
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert leafembed.load(tmp_path / "student").encode(["red"]).shape[0] == 1


def test_a_branch_and_a_private_repository(leaf, hub, bundle, tmp_path):
    assert leaf("push", bundle, REPO, "--private", "--branch", "v1", "--message", "first").returncode == 0
    assert hub.private[REPO]
    assert "manifest.json" not in hub.commits[REPO][hub.branches[REPO]["main"]]
    assert hub.messages == ["first"]
    assert leaf("pull", REPO, "--revision", "v1", "-o", "at/v1").returncode == 0
    assert contents(tmp_path / "at" / "v1") == contents(bundle)
    assert leaf("push", bundle, REPO, "--private", "--branch", "v1").returncode == 0  # again, where it is private
    hidden = leaf("pull", REPO, "--revision", "v1", "-o", "other", HF_TOKEN="hf_wrong")
    assert hidden.returncode == 1
    assert "hides it from this token" in hidden.stderr


def test_what_is_to_be_private_does_not_go_where_everybody_reads(leaf, hub, bundle):
    hub.create(REPO, private=False)
    got = leaf("push", bundle, REPO, "--private")
    assert got.returncode == 1
    assert "--private: got me/student, which is public" in got.stderr
    assert hub.messages == []


def test_what_lies_beside_a_bundle_is_not_uploaded(leaf, hub, bundle, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "copied")
    (copied / "keys.txt").write_text("secret", encoding="utf-8")
    assert leaf("push", copied, REPO).returncode == 0
    assert set(hub.commits[REPO][hub.branches[REPO]["main"]]) == {*contents(bundle), ".gitattributes"}


def size_of(part):
    """Of the file that is being fetched, which is renamed when it is whole; 0 where there is none at the moment."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.fixture
def slow(leaf, hub, bundle, tmp_path):
    """A call to pull of which half of the largest file has come and no more comes, in steps of 10,000 bytes."""
    hub.create(REPO, private=False)
    hub.commit(REPO, "main", contents(bundle))
    hub.stalls["model.bin"] = (bundle / "model.bin").stat().st_size // 2
    code = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000; import leafembed.__main__"
    process = leaf("pull", REPO, start=("-c", code))
    part, deadline = tmp_path / ".student.partial" / "part", time.monotonic() + 60
    with process:
        while size_of(part) <= hub.stalls["model.bin"] - 10_000:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_pull_goes_on_where_it_stopped(leaf, hub, bundle, slow, tmp_path, number):
    slow.send_signal(number)
    _, said = slow.communicate(timeout=60)
    assert slow.returncode == (130 if number == signal.SIGINT else -number)
    assert number != signal.SIGINT or said.endswith("leaf: interrupted; run the same command again to go on\n")
    kept = (tmp_path / ".student.partial" / "part").stat().st_size
    hub.stalls.clear()
    hub.fails["manifest.json"] = 500  # it is there already, and is not asked for again
    assert leaf("pull", REPO).returncode == 0
    assert hub.ranges == [("model.bin", f"bytes={kept - 1}-")]
    assert contents(tmp_path / "student") == contents(bundle)
    assert not list(tmp_path.glob(".*student*"))


def test_what_was_begun_at_another_commit_is_begun_anew(leaf, hub, bundle, slow, tmp_path):
    slow.kill()
    slow.communicate()
    hub.stalls.clear()
    hub.commit(REPO, "main", {"notes.txt": b"a later commit"})
    assert leaf("pull", REPO).returncode == 0
    assert hub.ranges == []
    assert contents(tmp_path / "student") == contents(bundle)


def test_two_calls_to_one_target_do_not_disturb_each_other(leaf, hub, bundle, slow, tmp_path):
    second = leaf("pull", REPO)
    assert second.returncode == 1
    assert "student: another leaf pull fetches into it; wait until it ends, or name another" in second.stderr
    hub.stalls.clear()
    assert leaf("pull", REPO, "-o", "other").returncode == 0
    hub.ended.set()  # the connection of the first breaks, and it asks for the rest
    _, said = slow.communicate(timeout=60)
    assert (slow.returncode, said.count("Trying to resume download...")) == (0, 1)
    assert contents(tmp_path / "student") == contents(tmp_path / "other") == contents(bundle)
    assert not list(tmp_path.glob(".*partial"))


def test_an_altered_file_is_refused_and_nothing_is_left(leaf, hub, bundle, tmp_path):
    assert leaf("push", bundle, REPO).returncode == 0
    hub.commit(REPO, "main", {"model.bin": b"another model"})
    got = leaf("pull", REPO)
    assert got.returncode == 1
    assert "leaf: me/student/model.bin was altered" in got.stderr
    assert leaf("pull", REPO, "-o", "at/v1").returncode == 1
    assert not (tmp_path / "at").exists()
    assert not list(tmp_path.glob("*student*"))
    assert not list(tmp_path.glob(".*student*"))


@pytest.mark.parametrize("name", ["*", "model.???", "[a-z]*"])
def test_a_name_in_a_manifest_is_no_pattern(leaf, hub, bundle, tmp_path, name):
    copied = shutil.copytree(bundle, tmp_path / "copied")
    (copied / name).write_bytes(b"x")
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    write_sealed(copied, manifest)
    listed = contents(copied)
    (copied / "model.pkl").write_bytes(b"not asked for")
    assert leaf("push", copied, REPO).returncode == 0
    assert set(hub.commits[REPO][hub.branches[REPO]["main"]]) == {*listed, ".gitattributes"}
    hub.commit(REPO, "main", {"model.pkl": b"not asked for", "sub/code.py": b"not asked for"})
    got = leaf("pull", REPO)
    assert got.returncode == 0, got.stderr
    assert contents(tmp_path / "student") == listed


@pytest.mark.parametrize("name", ["../x", "sub/x", "/x", ".."])
def test_a_manifest_that_names_a_path_fetches_nothing_more(leaf, hub, bundle, tmp_path, name):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {name: {"sha256": "0", "bytes": 1}, **manifest["files"]}
    reseal(manifest)
    hub.create(REPO, private=False)
    hub.commit(REPO, "main", {**contents(bundle), "manifest.json": json.dumps(manifest).encode()})
    got = leaf("pull", REPO, "-o", "at/v1")
    assert got.returncode == 1
    assert f"me/student/manifest.json: lists '{name}', expected file names" in got.stderr
    assert not (tmp_path / "at").exists()


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("resolve", 403, r"the hub at \S+ does not let this token do that; set HF_TOKEN"),
        ("model.bin", 403, r"the hub at \S+ does not let this token do that; set HF_TOKEN"),
        ("resolve", 401, r"the hub at \S+ (takes no such token|has none, or hides it)"),
        ("api/models", 500, r"the hub at \S+ cannot be used; try again or check HF_ENDPOINT: .*500"),
        ("model.bin", 418, r"the hub at \S+ cannot be used; try again or check HF_ENDPOINT: .*418"),
    ],
)
def test_a_hub_that_fails_is_not_taken_for_a_bundle_that_is_bad(leaf, hub, bundle, tmp_path, part, status, said):
    hub.create(REPO, private=False)
    hub.commit(REPO, "main", contents(bundle))
    hub.fails[part] = status
    got = leaf("pull", REPO)
    assert got.returncode == 1
    assert re.search(rf"^leaf: me/student: {said}", got.stderr, flags=re.MULTILINE), got.stderr
    begun = [path.name for path in (tmp_path / ".student.partial").glob("bundle/*")]
    assert ("manifest.json" in begun) == (part == "model.bin")  # what has come is kept
    hub.fails.clear()
    assert leaf("pull", REPO).returncode == 0
    assert contents(tmp_path / "student") == contents(bundle)
    assert not list(tmp_path.glob(".*student*"))


def test_a_refused_bundle_is_uploaded_only_when_asked_to(leaf, hub, tmp_path):
    failed = write_bundle(tmp_path / "failed", make_model_folder(tmp_path / "model"), sample_manifest(kept=0.7))
    got = leaf("push", failed, REPO)
    assert got.returncode == 3
    assert "mean retention is 0.7000" in got.stderr
    assert REPO not in hub.commits
    assert leaf("push", failed, REPO, "--allow-failed").returncode == 0
    assert json.loads(leaf("pull", REPO, "--json").stdout)["passed"] is False


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (
            ("pull", "me/nothing"),
            {},
            r"me/nothing: the hub at \S+ has none, or hides it from this token; check the name",
        ),
        (("pull", REPO, "--revision", "v9"), {}, r"me/student: got revision 'v9', expected a branch, tag or commit"),
        (("pull", "me/other"), {}, r"me/other: not a bundle, it has no manifest.json; expected what leaf push uploads"),
        (("pull", "not a name"), {}, r"got 'not a name', expected the name of a repository, org/name"),
        (("pull", REPO), {"HF_HUB_OFFLINE": "1"}, r"HF_HUB_OFFLINE is set"),
        (("push", "BUNDLE", REPO), {"HF_HUB_OFFLINE": "1"}, r"HF_HUB_OFFLINE is set"),
        (("pull", REPO), {"HF_ENDPOINT": "http://127.0.0.1:9"}, r"the hub at http://127\.0\.0\.1:9 cannot be used"),
        (("push", "BUNDLE", REPO), {"HF_TOKEN": "hf_wrong"}, r"the hub at \S+ takes no such token, or asks for one"),
        (("pull", REPO, "-o", "taken"), {}, r"taken: is there already; remove it or name another folder"),
        (("push", "nowhere", REPO), {}, r"nowhere: not a bundle"),
        (("push", "BUNDLE", "student"), {}, r"got 'student', expected the name of a repository, org/name"),
        (("push", "BUNDLE", "me/student/v1"), {}, r"got 'me/student/v1', expected the name of a repository, org/name"),
        (("push", "BUNDLE", "/student"), {}, r"got '/student', expected the name of a repository, org/name"),
        (("pull", "student"), {}, r"got 'student', expected the name of a repository, org/name"),
    ],
)
def test_what_goes_wrong_is_one_line(leaf, hub, bundle, tmp_path, words, environment, said):
    hub.create(REPO, private=False)
    hub.create("me/other", private=False)
    hub.commit(REPO, "main", contents(bundle))
    (tmp_path / "taken").mkdir()
    got = leaf(*(bundle if word == "BUNDLE" else word for word in words), **environment)
    assert got.returncode == 1
    line = got.stderr.strip().splitlines()[-1]
    assert line.startswith("leaf: ")
    assert "Traceback" not in got.stderr
    assert re.search(said, line), got.stderr
    assert set(hub.commits) == {REPO, "me/other"}  # none was made


def test_a_wrong_token_writes_nothing(leaf, hub, bundle):
    got = leaf("push", bundle, REPO, HF_TOKEN="hf_wrong")
    assert got.returncode == 1
    assert REPO not in hub.commits


def test_a_model_of_the_hub_is_judged_by_its_id_at_a_commit(leaf, hub, tmp_path, eval_data):
    from families import bert

    folder = bert(tmp_path / "model")
    hub.create(REPO, private=True)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    first = hub.commit(REPO, "main", files)
    hub.commit(REPO, "main", {"model.safetensors": b"another one"})
    what = ("--data", eval_data, "--tasks", "sts/toy.test", "--json", "--cache-dir", tmp_path / "cache")
    by_id, local = leaf("evaluate", f"{REPO}@{first}", *what), leaf("evaluate", folder, *what)
    assert by_id.returncode == local.returncode == 0, by_id.stderr + local.stderr
    scores = [json.loads(one.stdout)["model"]["results"][0]["main_score"] for one in (by_id, local)]
    assert scores[0] == scores[1]
    assert leaf("evaluate", f"{REPO}@{first}", *what, HF_HUB_OFFLINE="1").returncode == 0  # fetched once
    gone = leaf("evaluate", f"{REPO}@{'0' * 40}", *what)
    assert gone.returncode == 1
    assert f"leaf: {REPO}@{'0' * 40}: cannot be fetched" in gone.stderr


def test_a_bundle_that_an_older_gate_judged_is_fetched_and_can_be_renewed(leaf, hub, bundle, tmp_path):
    old = shutil.copytree(bundle, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    checks = manifest["verdict"]["checks"]
    manifest["verdict"]["checks"] = [one for one in checks if not re.fullmatch("INT8 drop in .* in .*", one["name"])]
    assert len(manifest["verdict"]["checks"]) < len(checks)
    write_sealed(old, manifest)
    hub.create(REPO, private=False)
    hub.commit(REPO, "main", contents(old))
    came = leaf("pull", REPO, "--json")
    assert came.returncode == 0, came.stderr
    assert (json.loads(came.stdout)["passed"], json.loads(came.stdout)["outdated"]) == (False, True)
    assert leaf("gate", "student", "--renew").returncode == 0
    assert leafembed.load(tmp_path / "student").encode(["red"]).shape[0] == 1
    assert leaf("push", old, REPO, "--allow-failed").returncode == 0
