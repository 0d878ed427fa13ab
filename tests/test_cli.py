from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import make_model_folder, sample_manifest

from leafembed import __version__
from leafembed.cli import COMMANDS
from leafembed.ship.bundle import write_bundle

QUICK = Path(__file__).parents[1] / "recipes" / "quick.toml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("cli") / "model", prompts={"query": "query: ", "STS": ""})


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("cli") / "bundle", model, sample_manifest())


@pytest.fixture(scope="module")
def refused(model, tmp_path_factory):
    manifest = sample_manifest(kept=0.5)
    return write_bundle(tmp_path_factory.mktemp("cli") / "refused", model, manifest)


def _stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def _vectors(out):
    return np.array([json.loads(line) for line in out.splitlines()])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_explains_every_argument(leaf, command):
    status, out, err = leaf(command, "--help")
    assert (status, err) == (0, [])
    assert f"  leaf {command} " in out or f"| leaf {command} " in out
    options = out[out.index("positional arguments:") :].splitlines()[1:]
    entries = [line for line in options if line.startswith("  ") and not line.startswith("   ") and line.strip()]
    alone = [line for i, line in enumerate(options) if line in entries and "  " not in line.strip()]
    for line in alone:  # a long name: its meaning is on the next line
        assert options[options.index(line) + 1].startswith("        "), line


def test_the_overview_names_every_command_and_the_exit_statuses(leaf):
    status, out, _ = leaf("--help")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "] == list(
        COMMANDS
    )
    assert "leaf run recipes/quick.toml" in out
    assert "3 the gate refused" in out
    assert leaf("--version")[1] == f"leaf {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("distil",),
        ("run", "recipe.toml", "--untill", "gate"),
        ("run", "recipe.toml", "--until", "train", "--allow-failed"),
        ("plan", "recipe.toml", "--layers", "3", "--memory-gb", "6"),
        ("encode", "bundle", "--truncate-dim", "0"),
        ("encode", "bundle", "--threads", "two"),
        ("quantize", "student", "out", "--group-size", "-1"),
    ],
)
def test_wrong_usage_is_status_2(leaf, argv):
    status, out, err = leaf(*argv)
    assert (status, out) == (2, "")
    assert err[0].startswith("usage: leaf")


@pytest.mark.parametrize("command", ["info", "card", "encode", "benchmark"])
def test_what_is_not_a_bundle_is_status_1_and_one_line(leaf, tmp_path, command):
    texts = tmp_path / "texts.txt"
    texts.write_text("red\n", encoding="utf-8")
    argv = [tmp_path, *([texts] if command == "encode" else ["--texts", texts] if command == "benchmark" else [])]
    status, out, err = leaf(command, *argv)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"leaf: {tmp_path}: not a bundle")


def test_info_says_what_a_bundle_is(leaf, bundle, refused):
    status, out, err = leaf("info", bundle)
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in out.splitlines())}
    assert (status, err) == (0, [])
    assert facts["verdict"] == "passed the gate"
    assert facts["teacher"] == "google/embeddinggemma-300m"
    assert facts["files"] == f"{len(list(bundle.iterdir())) - 1}, all hashes verified"
    assert "REFUSED: mean retention is 0.5000, must be at least 0.9000" in leaf("info", refused)[1]


def test_info_as_json_is_the_manifest(leaf, bundle, refused):
    data = json.loads(leaf("info", bundle, "--json")[1])
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert data == {**manifest, "verified": True, "passed": True}
    assert json.loads(leaf("info", refused, "--json")[1])["passed"] is False


def test_card_restores_the_card(leaf, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "README.md").write_text("a better card", encoding="utf-8")
    assert leaf("info", copy)[0] == 1
    status, out, _ = leaf("card", copy)
    assert (status, out) == (0, f"{copy / 'README.md'}\n")
    assert (copy / "README.md").read_bytes() == (bundle / "README.md").read_bytes()


def test_encode_reads_stdin_and_files_alike(leaf, bundle, tmp_path, monkeypatch):
    data = "red\r\ngrün 赤\n\nlast without a line end".encode()
    (tmp_path / "texts.txt").write_bytes(data)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "grün 赤"}) + "\n", encoding="utf-8")
    status, out, err = leaf("encode", bundle, tmp_path / "texts.txt")
    assert (status, err) == (0, [])
    assert _vectors(out).shape == (4, 8)
    for argv in ((), ("-",)):
        _stdin(monkeypatch, data)
        assert leaf("encode", bundle, *argv)[1] == out
    assert leaf("encode", bundle, tmp_path / "texts.jsonl")[1] == out.splitlines(keepends=True)[1]


def test_encode_writes_npy_and_cuts(leaf, bundle, tmp_path, monkeypatch):
    _stdin(monkeypatch, b"red\nblue green\n")
    full = _vectors(leaf("encode", bundle)[1])
    _stdin(monkeypatch, b"red\nblue green\n")
    status, out, err = leaf("encode", bundle, "--truncate-dim", 3, "--output", tmp_path / "v.npy")
    assert (status, out) == (0, "")
    assert err == [f"2 vectors of 3 dimensions in {tmp_path / 'v.npy'}"]
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    expected = full[:, :3] / np.linalg.norm(full[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_a_prompt_is_used_and_an_unknown_one_is_an_error(leaf, bundle, monkeypatch):
    outs = []
    for data, argv in ((b"query: red", ()), (b"red", ("--prompt-name", "query")), (b"red", ())):
        _stdin(monkeypatch, data)
        outs.append(leaf("encode", bundle, *argv)[1])
    assert outs[0] == outs[1] != outs[2]
    assert leaf("encode", bundle, "--prompt-name", "quarry") == (
        2,
        "",
        ["leaf: --prompt-name: got 'quarry', the bundle knows query, STS"],
    )


def test_invalid_utf8_on_stdin_names_line_and_byte(leaf, bundle, tmp_path, monkeypatch):
    _stdin(monkeypatch, b"red\nblue\ngr\xfcn\n")
    status, out, err = leaf("encode", bundle, "--output", tmp_path / "v.npy")
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith("leaf: standard input:3: invalid UTF-8 at byte 2")
    assert list(tmp_path.iterdir()) == []


def test_encode_refuses_what_it_cannot_do(leaf, bundle, tmp_path, monkeypatch):
    _stdin(monkeypatch, b"red")
    status, out, err = leaf("encode", bundle, "--output", tmp_path / "no" / "v.npy")
    assert (status, out, len(err)) == (1, "", 1)
    assert "No such file or directory" in err[0]


def test_a_refused_bundle_opens_only_when_asked_to(leaf, refused, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("red\n", encoding="utf-8")
    for argv in (["encode", refused, texts], ["benchmark", refused, "--texts", texts], ["evaluate", refused]):
        status, out, err = leaf(*argv)
        assert (status, out) == (3, "")
        assert len(err) == 1
        assert err[0].startswith(
            "leaf: the gate refused the INT8 model: mean retention is 0.5000, must be at least 0.9000; "
        )
    assert leaf("encode", refused, texts, "--allow-failed")[0] == 0


def test_benchmark_measures(leaf, bundle, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("red blue\n" * 40, encoding="utf-8")
    status, out, err = leaf("benchmark", bundle, "--texts", texts, "--threads", 1, "--json")
    data = json.loads(out)
    assert (status, err) == (0, [])
    assert data["speed"]["texts_per_second"] > 0
    assert (data["speed"]["tokens_per_text"], data["speed"]["threads"], data["prompt_name"]) == (3, 1, None)
    assert data["machine"]["cores"] >= 1
    assert leaf("benchmark", bundle, "--texts", texts, "--threads", 1)[1].count("texts/s") == 1
    texts.write_text("", encoding="utf-8")
    assert leaf("benchmark", bundle, "--texts", texts)[0] == 1


def test_benchmark_reads_the_prompt_of_the_recipe(leaf, tmp_path):
    manifest = sample_manifest()
    manifest["recipe"]["teacher"]["prompt_name"] = "query"
    model = make_model_folder(tmp_path / "model", prompts={"query": "query : "})
    folder = write_bundle(tmp_path / "bundle", model, manifest)
    texts = tmp_path / "texts.txt"
    texts.write_text("red blue\n" * 4, encoding="utf-8")
    data = json.loads(leaf("benchmark", folder, "--texts", texts, "--threads", 1, "--json")[1])
    assert (data["prompt_name"], data["speed"]["tokens_per_text"]) == ("query", 5)
    assert "5.0 tokens a text, with the prompt 'query', " in leaf("benchmark", folder, "--texts", texts)[1]


def test_fresh_removes_runs_only(leaf, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    status, _, err = leaf("run", QUICK, "--fresh", "--run-dir", tmp_path / "thesis")
    assert (status, len(err)) == (1, 1)
    assert "expected the folder of a run and nothing else" in err[0]
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_the_command_in_a_process_of_its_own(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "leafembed"]
    ok = subprocess.run([*command, "encode", bundle], input=b"red\n", capture_output=True, check=False)
    assert (ok.returncode, ok.stderr) == (0, b"")
    assert len(json.loads(ok.stdout)) == 8
    bad = subprocess.run([*command, "info", tmp_path / "empty"], capture_output=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr.count(b"\n")) == (1, b"", 1)
    assert b"Traceback" not in bad.stderr
