"""What a user may get wrong: each ends in one line on stderr that says what to do, and leaves what was there alone."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
from conftest import write_rows
from tiny import make_model_folder, reseal, sample_manifest

from leafembed.cli import main
from leafembed.ship.bundle import write_bundle

LINES = [f"a line of training text, number {i}" for i in range(120)]

RECIPE = """
cache_dir = "cache"
[data]
root = "text"
validation_rows = 16
[[data.sources]]
path = "lines.txt"
[teacher]
model = "./teacher"
[student]
layers = [0]
[eval]
data = "eval"
dev = ["sts/dev"]
test = ["sts/test"]
min_rows = 8
"""


@pytest.fixture
def work(tmp_path):
    """A recipe, its text and tasks, a teacher whose weights are cut off, and the bundle of an earlier run."""
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    for split in ("dev", "test"):
        pairs = [{"sentence1": f"{split} {i}", "sentence2": f"other {i}", "score": i, "lang": "en"} for i in range(9)]
        write_rows(tmp_path / "eval" / "sts" / f"{split}.jsonl", pairs)
    _write_teacher(tmp_path / "teacher")
    model = make_model_folder(tmp_path / "model")
    write_bundle(tmp_path / "run" / "bundle", model, sample_manifest())
    return tmp_path


def _write_teacher(folder):
    """A sentence-transformers folder that promises more bytes of weights than it has."""
    folder.mkdir()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 10)


def _contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refusal(work, capsys):
    """Run a command that must fail; return its one line, after checking that the earlier bundle is as it was."""

    def run(*argv, status=1):
        before = _contents(work / "run" / "bundle")
        assert main([str(arg) for arg in argv]) == status
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("leaf: ")]
        assert (out, len(errors)) == ("", 1)
        assert err.splitlines()[-1] == errors[0]
        assert "Traceback" not in err
        assert _contents(work / "run" / "bundle") == before
        return errors[0]

    return run


def _run(work):
    return ["run", work / "recipe.toml", "--run-dir", work / "run"]


@pytest.mark.parametrize("command", ["plan", "embed", "run"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "unknown key train.learning_rat in the recipe: did you mean train.learning_rate?"),
        ("techer.model=x", "unknown key techer in the recipe: did you mean teacher?"),
        ("train.batch_size=1", "train.batch_size: got 1, expected at least 2"),
        ("train.batch_size=many", "train.batch_size: got 'many', expected a whole number, 0 or more"),
        ("student.init=best", "student.init: got 'best', expected one of layers, encoder, static, random"),
        ("student.layers=[2,1]", "student.layers: got [2, 1], expected layer numbers from 0, ascending"),
        ("train.epochs=nan", "train.epochs: got nan, expected a finite number"),
        ("seed", "--set 'seed': expected KEY=VALUE, e.g. --set train.learning_rate=1e-4"),
    ],
)
def test_a_wrong_key_or_value(work, refusal, command, override, message):
    assert refusal(command, work / "recipe.toml", "--set", override) == f"leaf: {message}"


def test_a_recipe_that_is_missing_or_not_toml(work, refusal):
    assert refusal("plan", work / "no.toml") == (
        f"leaf: {work / 'no.toml'}: No such file or directory; expected a recipe, a TOML file"
    )
    (work / "recipe.toml").write_text("[train\nepochs: 3", encoding="utf-8")
    assert f"{work / 'recipe.toml'}: not a TOML file: " in refusal(*_run(work))
    (work / "recipe.toml").write_bytes(b"name = '\xff'")
    assert "not a TOML file" in refusal(*_run(work))


def test_a_recipe_without_what_it_needs(work, refusal):
    (work / "recipe.toml").write_text(RECIPE.replace('model = "./teacher"', ""), encoding="utf-8")
    assert refusal(*_run(work)) == ("leaf: teacher.model: got '', expected a folder, a hub id, package:NAME or a URL")


def test_an_empty_corpus(work, refusal):
    lines = work / "text" / "lines.txt"
    lines.write_text("", encoding="utf-8")
    assert refusal(*_run(work)) == "leaf: lines.txt: the source is empty; expected at least one row of text"
    lines.write_text("a\nb\n", encoding="utf-8")  # all too short
    assert "the corpus is too small" in refusal(*_run(work))
    lines.unlink()
    assert f"no file matches {lines}" in refusal(*_run(work))


def test_invalid_utf8_and_a_line_of_a_megabyte(work, refusal):
    lines = work / "text" / "lines.txt"
    lines.write_bytes("\n".join(LINES[:50]).encode() + b"\ncaf\xe9\n")
    assert f"{lines}:51: invalid UTF-8 at byte 3; expected UTF-8 text" in refusal(*_run(work))
    lines.write_text("x" * 1_000_000, encoding="utf-8")
    assert f"{lines}:1: line longer than 262144 bytes" in refusal(*_run(work))


def test_json_lines_that_are_not(work, refusal):
    path = work / "text" / "rows.jsonl"
    recipe = [work / "recipe.toml", "--set", "data.sources=[{path='rows.jsonl'}]"]
    for line, message in (
        ('{"text": "cut off', f"{path}:1: malformed JSON"),
        ('["text"]', f"{path}:1: got a JSON list"),
        ('{"body": "text"}', f"{path}:1: no text in column 'text', found body"),
    ):
        path.write_text(line, encoding="utf-8")
        assert message in refusal("embed", *recipe)


def test_dev_and_test_that_overlap(work, refusal):
    shutil.copy(work / "eval" / "sts" / "test.jsonl", work / "eval" / "sts" / "dev.jsonl")
    line = refusal(*_run(work))
    assert "sts/dev (dev) and sts/test (test) share 9 scored items" in line
    assert "eval.drop_shared = true" in line
    assert "tasks that are not in eval.test too" in refusal(*_run(work), "--set", 'eval.dev=["sts/test"]')


def test_an_evaluation_folder_that_is_missing_or_damaged(work, refusal):
    assert "no task 'sts/tset'" in refusal(*_run(work), "--set", 'eval.test=["sts/tset"]')
    (work / "eval" / "sts" / "test.jsonl").write_text('{"sentence1": "a"}\n', encoding="utf-8")
    assert f"{work / 'eval' / 'sts' / 'test.jsonl'}:1: got the keys ['sentence1']" in refusal(*_run(work))
    shutil.rmtree(work / "eval")
    assert "holds no task" in refusal(*_run(work))


def test_a_teacher_whose_weights_are_cut_off(work, refusal):
    weights = work / "teacher" / "model.safetensors"
    assert f"{weights}: damaged or incomplete safetensors file" in refusal("embed", work / "recipe.toml")
    assert not (work / "cache" / "vectors").exists()
    weights.unlink()
    assert "no .safetensors file; other weight formats are not read" in refusal("embed", work / "recipe.toml")


@pytest.mark.parametrize("command", ["plan", "embed"])
def test_a_teacher_that_is_not_there(work, refusal, command):
    recipe = work / "recipe.toml"
    assert "no-such-folder: no such folder" in refusal(command, recipe, "--set", "teacher.model=./no-such-folder")
    assert "expected a 40-digit commit" in refusal(command, recipe, "--set", "teacher.model=some/model")
    assert "pip install no-such-package" in refusal(command, recipe, "--set", "teacher.model=package:no_such_package")


@pytest.mark.parametrize("name", ["model.bin", "tokenizer.json", "README.md"])
def test_a_bundle_that_was_altered(work, refusal, name):
    file = work / "run" / "bundle" / name
    file.write_bytes(file.read_bytes() + b" ")
    for command in ("info", "encode"):
        argv = [work / "text" / "lines.txt"] if command == "encode" else []
        assert f"{file} was altered" in refusal(command, work / "run" / "bundle", *argv)


def test_a_bundle_whose_manifest_is_damaged(work, refusal):
    path = work / "run" / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for damaged, message in (
        ({**manifest, "format": 1}, "got format 1, expected 2"),
        ({**manifest, "verdict": {"stage": "INT8 model", "checks": []}}, "the verdict is not readable"),
        ({k: v for k, v in manifest.items() if k != "files"}, "got the card of a run without a bundle"),
    ):
        reseal(damaged)
        path.write_text(json.dumps(damaged), encoding="utf-8")
        assert message in refusal("info", work / "run" / "bundle")
    path.write_text("{", encoding="utf-8")
    assert "not readable as JSON" in refusal("info", work / "run" / "bundle")


def test_a_run_under_a_launcher(work, refusal, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert refusal(*_run(work)).endswith("expected leaf itself: a run is one process")


def test_quantizing_onto_something(work, refusal):
    target = work / "text"
    assert "exists already" in refusal("quantize", work / "teacher", target)
    assert (target / "lines.txt").exists()
