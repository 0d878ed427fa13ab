"""A run is killed in each of its long phases and started again: it finishes, and repeats little."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from families import bert, toy_recipe, toy_texts

import leafembed
from leafembed.ship.markdown import to_toml

SHARD_ROWS, EVAL_STEPS, MAX_STEPS = 64, 20, 200


@pytest.fixture
def recipe(tmp_path, eval_data):
    teacher = bert(tmp_path / "teacher", num_hidden_layers=2)
    plain = toy_recipe(
        tmp_path,
        teacher,
        eval_data,
        data={"validation_rows": 200},
        # One text in a forward pass makes the pass slow enough to be killed in.
        teacher={"shard_rows": SHARD_ROWS, "batch_tokens": 1},
        student={"layers": [0]},
        train={"max_steps": MAX_STEPS, "eval_steps": EVAL_STEPS},
        benchmark={"texts": 4},
    )
    (tmp_path / "corpus.txt").write_text("\n".join(toy_texts(4000)), encoding="utf-8")
    path = tmp_path / "toy.toml"
    path.write_text(to_toml(plain), encoding="utf-8")
    return path


def start(recipe, log):
    command = [sys.executable, "-m", "leafembed", "run", str(recipe), "--run-dir", str(recipe.parent / "run")]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )


def kill_when(recipe, log, condition, *, limit=300):
    """Run until ``condition`` holds and kill without warning."""
    process = start(recipe, log)
    end = time.monotonic() + limit
    try:
        while not condition():
            assert process.poll() is None, f"ended before it could be killed:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"never came to the point:\n{log.read_text()[-2000:]}"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def shards(recipe):
    return {path: path.stat().st_mtime_ns for path in (recipe.parent / "cache").glob("vectors/*/*.json")}


def checkpoints(recipe):
    found = (recipe.parent / "run").glob("checkpoints-*/checkpoint-*/complete.json")
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in found)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_goes_on_and_repeats_little(recipe, tmp_path):
    run = tmp_path / "run"
    logs = [tmp_path / f"log{i}" for i in range(4)]

    kill_when(recipe, logs[0], lambda: len(shards(recipe)) >= 3)
    embedded = shards(recipe)

    kill_when(recipe, logs[1], lambda: len(checkpoints(recipe)) >= 2)
    # Stored vectors were taken over untouched; what was in the works when the kill came is computed again: one shard.
    assert embedded.items() <= shards(recipe).items()
    rows = int(re.search(r"corpus \w+: ([\d,]+) training", logs[1].read_text())[1].replace(",", "")) + 200
    progress = re.search(r"teacher vectors: ([\d,]+) of ([\d,]+) texts.*in \d+ s", logs[1].read_text())
    assert progress is not None
    assert progress[1] == progress[2] == f"{rows:,}"
    stored = [path.with_suffix(".keys").stat().st_size // 16 for path in shards(recipe)]
    assert len([n for n in stored if n == SHARD_ROWS]) >= rows // SHARD_ROWS
    vectors = list((tmp_path / "cache").glob("vectors/*/*.npy"))
    assert len(vectors) - len(stored) <= 1
    done = checkpoints(recipe)[-1]
    assert done < MAX_STEPS

    kill_when(recipe, logs[2], lambda: "exporting toy to INT8" in logs[2].read_text())
    text = logs[2].read_text()
    assert "teacher vectors:" not in text
    assert f"training goes on from checkpoint-{done}" in text
    scored = [int(step) for step in re.findall(r"^step (\d+): dev", text, re.MULTILINE)]
    assert min(scored) >= done
    assert not (run / "int8").exists()
    trained = (run / "student" / "model.safetensors").stat().st_mtime_ns
    assert checkpoints(recipe) == []  # of no use once the student is there
    assert list(run.glob("checkpoints-*/history.jsonl"))

    assert start(recipe, logs[3]).wait(timeout=300) == 0, logs[3].read_text()[-2000:]
    text = logs[3].read_text()
    assert "student: done before, kept" in text
    assert "step " not in text
    assert (run / "student" / "model.safetensors").stat().st_mtime_ns == trained
    assert not list(run.glob(".*.partial"))  # of processes that were killed
    assert leafembed.load(run / "bundle").encode(["en1"]).shape == (1, 32)
