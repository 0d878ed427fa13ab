"""What the command line says of what it is given wrongly, and with which exit status."""

from __future__ import annotations

import errno
import gzip
import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import make_model_folder, sample_manifest

from leafembed import cli
from leafembed.errors import DataError
from leafembed.ship import hub, shipped
from leafembed.ship.bundle import write_bundle
from leafembed.ship.vectors_file import VectorsFile

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    return write_bundle(root / "bundle", make_model_folder(root / "model", prompts={"query": ""}), sample_manifest())


@pytest.fixture
def leaf(capsys, monkeypatch):
    """Run a command and return its exit status, stdout and stderr."""

    def run(*argv, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        return cli.main([str(arg) for arg in argv]), *capsys.readouterr()

    return run


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "A.TSV", "a.json", "a.parquet"])
def test_files_whose_lines_are_no_texts_are_refused(leaf, bundle, tmp_path, name, packed):
    source = tmp_path / (f"{name}.gz" if packed else name)
    source.write_bytes(gzip.compress(b"red\n") if packed else b"red\n")
    for more in ([], ["--output", tmp_path / "v.npy"]):
        status, out, err = leaf("encode", bundle, source, *more)
        assert (status, out) == (1, "")
        assert err.startswith(
            f"leaf: {source}: got a {name[1:].lower()} file, expected a text a line, or a .jsonl file"
        )
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_packed_text_without_the_name_of_it_is_not_called_bad_text(leaf, bundle, tmp_path):
    source = tmp_path / "a.txt"
    source.write_bytes(gzip.compress(b"red\n"))
    for argv, stdin, name in ((["a.txt"], b"", source), (["-"], source.read_bytes(), "standard input")):
        status, out, err = leaf(
            "encode", bundle, *(tmp_path / word if word != "-" else "-" for word in argv), stdin=stdin
        )
        assert (status, out) == (1, "")
        assert err == f"leaf: {name}:1: packed by gzip; expected UTF-8 text, unpack it or give the file a name in .gz\n"


def test_json_lines_are_read_from_standard_input_and_from_any_name(leaf, bundle, tmp_path):
    expected = leaf("encode", bundle, stdin=b"red\n")[1]
    line = b'{"text": "red"}\n'
    (tmp_path / "a.txt").write_bytes(line)
    assert leaf("encode", bundle, "--jsonl", stdin=line) == (0, expected, "")
    assert leaf("encode", bundle, tmp_path / "a.txt", "--jsonl") == (0, expected, "")
    assert leaf("encode", bundle, "--jsonl", "-o", tmp_path / "v.jsonl", stdin=line)[0] == 0
    assert (tmp_path / "v.jsonl").read_text(encoding="utf-8") == expected
    status, out, err = leaf("encode", bundle, stdin=line)  # a text may look so
    assert (status, out != expected) == (0, True)
    assert err.startswith("standard input: looks like JSON, and is taken as it stands; --jsonl or")
    status, _, err = leaf("encode", bundle, "--jsonl", stdin=b'{"text": "red"}\n{"txt": "red"}\n')
    assert (status, err) == (1, "leaf: standard input:2: got the keys ['txt'], expected ['text'] too\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "b"], "leaf encode: got 3 paths, expected a bundle and a file of texts, or one of them"),
        (["--prompt-name", "quarry"], "--prompt-name: got 'quarry', the bundle knows query"),
        (["--truncate-dim", "9"], "--truncate-dim: got 9, expected 1 to 8"),
        (["--exit", "9"], "--exit: got 9, the model's early exits are none"),
        (["--chunk", "99"], "--chunk: got 99 tokens, expected 0 to 5: a window holds 6"),
    ],
)
def test_what_no_bundle_like_this_takes_is_wrong_usage(leaf, bundle, argv, said):
    assert leaf("encode", bundle, *argv, stdin=b"red " * 20) == (2, "", f"leaf: {said}\n")


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named(leaf, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(VectorsFile, "append", full)
    monkeypatch.setattr(hub, "pull", full)
    said = "leaf: [Errno 28] No space left on device: "
    assert leaf("encode", bundle, "-o", tmp_path / "v.npy", stdin=b"red") == (1, "", f"{said}'{tmp_path / 'v.npy'}'\n")
    assert leaf("pull", "me/student") == (1, "", f"{said}'student'\n")


def test_a_full_disk_without_a_name_says_what_to_do(leaf, bundle, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "info", full)
    said = "leaf: [Errno 28] No space left on device: make room, and run the same command again\n"
    assert leaf("info", bundle) == (1, "", said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("command", ["info", "encode"])
def test_standard_output_that_takes_nothing_is_named_once(bundle, command):
    code = "import sys; from leafembed.cli import main; sys.exit(main())"
    with Path("/dev/full").open("w") as output:
        argv = [sys.executable, "-E", "-c", code, command, str(bundle)]
        got = subprocess.run(argv, input=b"red\n", stdout=output, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    said = b"leaf: [Errno 28] No space left on device: 'standard output'\n"
    assert (got.returncode, got.stderr) == (1, said)


def test_after_ctrl_c_only_what_goes_on_is_said_to(leaf, bundle, tmp_path, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    texts = tmp_path / "a.txt"
    texts.write_text("red\n", encoding="utf-8")
    for name in ("pull", "info", "encode"):
        monkeypatch.setitem(cli.COMMANDS, name, interrupted)
    goes_on = "leaf: interrupted; run the same command again to go on\n"
    assert leaf("pull", "me/student") == leaf("encode", bundle, texts, "-o", "v.npy") == (130, "", goes_on)
    for argv in (["info"], ["encode", bundle, texts], ["encode", bundle, "-o", "v.npy"]):
        assert leaf(*argv) == (130, "", "leaf: interrupted\n")


def test_every_exit_status_is_in_the_readme_and_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out.partition("exit status:")[2]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("| exit status |")[2]
    for status in (0, 1, 2, 3, 130, 143):
        assert f" {status} " in said.replace("\n", " ")
        assert f"\n| {status} |" in readme


def test_the_model_is_looked_at_before_the_texts(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    for argv in (["export", "/nope", "out", "--format", "onnx"], ["benchmark", "/nope"], ["choose", "/nope"]):
        status, _, err = leaf(*argv)
        assert status == 1
        assert err.startswith("leaf: /nope: ")


def test_texts_are_found_outside_the_checkout_and_missed_by_the_name_of_the_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.shipped_texts() == ROOT / shipped.QUESTIONS
    monkeypatch.setattr(shipped, "ROOT", tmp_path)
    with pytest.raises(DataError, match=r"--texts: got none, and \S+ is not there, which only a clone .* name a file"):
        shipped.shipped_texts()
    shipped.QUESTIONS.parent.mkdir(parents=True)
    shipped.QUESTIONS.write_text(json.dumps({"text": "red"}), encoding="utf-8")
    assert shipped.shipped_texts() == shipped.QUESTIONS


def test_a_package_from_an_index_holds_neither_model_nor_tests():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert {"/models", "/tests"} <= set(targets["sdist"]["exclude"])
    assert targets["wheel"]["packages"] == ["leafembed"]
