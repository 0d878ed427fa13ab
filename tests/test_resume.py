"""A run that is killed, told to terminate, or short of disk goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import killable
import pytest
import torch
from transformers import TrainerCallback

from leafembed.errors import CheckpointError
from leafembed.learn.checkpoints import complete, newest_checkpoint, step_of
from leafembed.learn.models import load_sentence_transformer

STEPS, EVAL_STEPS = killable.CONFIG.max_steps, killable.CONFIG.eval_steps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    killable.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(root):
    """What an uninterrupted run reports."""
    return killable.sit(root, root / "whole" / "work")


def numbers(facts, key):
    return {entry["step"]: entry[key] for entry in facts["history"] if key in entry}


def assert_same(facts, whole):
    """The same losses at the same steps, within the noise of fp32 sums."""
    for key in (
        "loss",
        "distillation",
        "alignment",
        "exit_alignment",
        "token_distillation",
        "contrastive",
        "learning_rate",
        "dev",
    ):
        expected = numbers(whole, key)
        assert expected, key
        assert numbers(facts, key) == pytest.approx(expected, abs=1e-4), key
    for entry, other in zip(facts["history"], whole["history"], strict=True):
        assert entry.get("validation") == pytest.approx(other.get("validation"), abs=1e-4)
    assert [facts[key] for key in ("steps", "best_step", "texts", "tokens")] == [
        whole[key] for key in ("steps", "best_step", "texts", "tokens")
    ]


class AtStep(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


class Killed(Exception):
    """Stands for a kill."""


def kill():
    raise Killed


@pytest.mark.parametrize("step", [8, 13, 22])  # in the first phase, at its end, in the second
def test_a_resumed_run_equals_the_uninterrupted_one(root, whole, tmp_path, step):
    work = tmp_path / "work"
    with pytest.raises(Killed):
        killable.sit(root, work, callbacks=[AtStep(step, kill)])
    assert step_of(newest_checkpoint(work)) == step // EVAL_STEPS * EVAL_STEPS
    assert_same(killable.sit(root, work), whole)
    ours, theirs = (load_sentence_transformer(folder / "student") for folder in (tmp_path, root / "whole"))
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, theirs.state_dict()[name], atol=1e-4), name


def test_the_comparison_can_fail(root, whole, tmp_path):
    other = killable.sit(root, tmp_path / "work", dataclasses.replace(killable.CONFIG, curriculum=()))
    with pytest.raises(AssertionError):
        assert_same(other, whole)


def test_the_log_on_disk_is_that_of_one_run(root, whole, tmp_path):
    with pytest.raises(Killed):
        killable.sit(root, tmp_path / "work", callbacks=[AtStep(10, kill)])
    killable.sit(root, tmp_path / "work")
    logs = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "work", root / "whole" / "work")
    ]
    assert [sorted(entry) for entry in logs[0]] == [sorted(entry) for entry in logs[1]]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(root, whole, tmp_path, capsys):
    work = tmp_path / "work"
    with pytest.raises(Killed):
        killable.sit(root, work, callbacks=[AtStep(10, kill)])
    path = work / "checkpoint-9" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-1])
    facts = killable.sit(root, work)
    text = capsys.readouterr().err
    assert "checkpoint-9 is damaged (optimizer.pt has changed)" in text
    assert "training goes on from checkpoint-6" in text
    assert_same(facts, whole)


def test_sigterm_writes_a_checkpoint_and_leaves_with_143(root, whole, tmp_path):
    work, log = tmp_path / "work", tmp_path / "log"
    code = (
        f"from pathlib import Path; import killable; killable.sit(Path({str(root)!r}), Path({str(work)!r}), pause=0.4)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(killable.__file__).parent)}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=file, env=environment)
    end = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end and not complete(work):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=120) == 143, log.read_text(encoding="utf-8")[-2000:]
    found = re.search(
        r"stopped by SIGTERM after step (\d+), checkpoint written: the same command goes on", log.read_text()
    )
    assert step_of(newest_checkpoint(work)) == int(found[1]) < STEPS
    facts = killable.sit(root, work)
    assert facts["steps"] == STEPS
    assert numbers(facts, "validation")[STEPS] == pytest.approx(numbers(whole, "validation")[STEPS], abs=1e-4)


def test_sigterm_is_left_alone_outside_the_main_thread(root, tmp_path):
    seen = []
    before = signal.getsignal(signal.SIGTERM)
    look = AtStep(1, lambda: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=killable.sit, args=(root, tmp_path / "work"), kwargs={"callbacks": [look]})
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_good(root, whole, tmp_path, monkeypatch):
    work, save = tmp_path / "work", torch.save

    def full(content, path, *args, **kwargs):
        if "checkpoint-9" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match=r"step 9: .*No space left.*checkpoint-6 is still good"):
            killable.sit(root, work)
    assert step_of(newest_checkpoint(work)) == 6
    assert_same(killable.sit(root, work), whole)


def test_a_limit_on_file_size_is_met_by_the_real_writers(root, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"write the checkpoint of step 3: .*there is no checkpoint yet"):
            killable.sit(root, tmp_path / "work")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest_checkpoint(tmp_path / "work") is None


def kill_at(root, waits, *, steps=STEPS):
    """Run ``killable.py``; return what each sitting began with and left, and the facts of the last."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(killable.__file__)), str(root), str(steps), *(f"{wait:.3f}" for wait in waits)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    facts = json.loads((root / "killed" / "facts.json").read_text(encoding="utf-8"))
    goes_on = [int(step) for step in re.findall(r"training goes on from checkpoint-(\d+)", result.stderr)]
    return [json.loads(line) for line in result.stdout.splitlines()], goes_on, facts


def assert_nothing_lost(sittings, goes_on, kills):
    assert [sitting["killed"] for sitting in sittings] == [True] * kills + [False]
    for one, following in itertools.pairwise(sittings):
        assert one["began"] <= one["left"] == following["began"]
    assert goes_on == [sitting["began"] for sitting in sittings[1:]]  # from the newest checkpoint that there was
    assert goes_on[0] > 0
    # And what it had done since is all that a kill cost.
    assert all(0 <= one["at"] - one["left"] <= EVAL_STEPS for one in sittings)


def test_two_kills_lose_only_the_steps_since_the_last_checkpoint(root, whole, tmp_path):
    killable_root = tmp_path / "run"
    killable_root.mkdir()
    for name in killable.PREPARED:
        (killable_root / name).symlink_to(root / name)
    sittings, goes_on, facts = kill_at(killable_root, [0.1, 0.4])
    assert_nothing_lost(sittings, goes_on, 2)
    assert_same(facts, whole)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_lose_only_the_steps_since_the_last_checkpoint(root, tmp_path):
    for name in killable.PREPARED:
        (tmp_path / name).symlink_to(root / name)
    rng, steps = random.Random(5), 8 * STEPS
    sittings, goes_on, facts = kill_at(tmp_path, [rng.uniform(0.0, 0.6) for _ in range(20)], steps=steps)
    assert_nothing_lost(sittings, goes_on, 20)
    assert len({sitting["began"] for sitting in sittings}) == 21  # each got somewhere
    assert any(sitting["at"] > sitting["left"] for sitting in sittings)  # and some lost what they had done since
    assert_same(
        facts, killable.sit(root, tmp_path / "whole" / "work", dataclasses.replace(killable.CONFIG, max_steps=steps))
    )
