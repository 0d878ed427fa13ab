"""A run that is told to terminate while an evaluation is due or under way: it saves at once and evaluates later."""

from __future__ import annotations

import signal

import pytest
from training_runs import go, losses
from transformers import TrainerCallback, TrainerState

from leafembed.learn.checkpoints import newest_checkpoint
from leafembed.learn.history import evaluated_steps
from leafembed.learn.train import TERMINATED


def tell():
    """SIGTERM as Python hands it on; a signal of the system may end a process of many tests."""
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)


class InEvaluation(TrainerCallback):
    """Tells the run to terminate in the first score after a step."""

    def __init__(self, step, monkeypatch):
        self.step, self.monkeypatch, self.reached_the_end = step, monkeypatch, False

    def on_log(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.monkeypatch.setattr(type(model), "encode", self.encode)

    def encode(self, *args, **kwargs):
        self.monkeypatch.undo()
        tell()
        self.reached_the_end = True


class AtStart(InEvaluation):
    """Tells the run to terminate in the evaluation that it makes up for when it goes on."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.monkeypatch.setattr(type(model), "encode", self.encode)


class InStep(TrainerCallback):
    """Tells the run to terminate while it is in a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            tell()


def assert_goes_on(toy_start, toy_run, root, step):
    """The checkpoint is that of the step without its evaluation, and the run that goes on is the uninterrupted one."""
    newest = newest_checkpoint(root / "work")
    assert newest.name == f"checkpoint-{step}"
    state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    assert evaluated_steps(state.log_history) == list(range(0, step, 3))
    whole, (facts, evaluations) = toy_run[1], go(toy_start, root)
    assert evaluations == (12 - step) // 3 + 1
    assert {entry["step"]: entry["dev"] for entry in facts["history"] if "dev" in entry} == pytest.approx(
        {entry["step"]: entry["dev"] for entry in whole["history"] if "dev" in entry}, abs=1e-4
    )
    assert losses(facts) == pytest.approx(losses(whole), abs=1e-4)
    assert facts["best_step"] == whole["best_step"]
    assert facts["steps"] == 12


@pytest.mark.parametrize("step", [6, 12])  # at the last step, nothing but the evaluation is left to do
def test_sigterm_ends_an_evaluation(toy_start, toy_run, tmp_path, monkeypatch, step):
    told = InEvaluation(step, monkeypatch)
    with pytest.raises(SystemExit) as left:
        go(toy_start, tmp_path, callbacks=[told])
    assert left.value.code == TERMINATED
    assert not told.reached_the_end
    assert_goes_on(toy_start, toy_run, tmp_path, step)


@pytest.mark.parametrize("step", [6, 12])
def test_sigterm_in_the_evaluation_that_is_made_up_for_leaves_the_checkpoint_alone(
    toy_start, toy_run, tmp_path, monkeypatch, step
):
    with pytest.raises(SystemExit):
        go(toy_start, tmp_path, callbacks=[InEvaluation(step, monkeypatch)])
    newest = newest_checkpoint(tmp_path / "work")
    before = {path.name: path.stat().st_mtime_ns for path in newest.iterdir()}
    with pytest.raises(SystemExit):
        go(toy_start, tmp_path, callbacks=[AtStart(step, monkeypatch)])
    assert {path.name: path.stat().st_mtime_ns for path in newest.iterdir()} == before
    assert_goes_on(toy_start, toy_run, tmp_path, step)


@pytest.mark.parametrize("step", [6, 12])
def test_sigterm_in_a_step_puts_off_the_evaluation_after_it(toy_start, toy_run, tmp_path, step):
    with pytest.raises(SystemExit):
        go(toy_start, tmp_path, callbacks=[InStep(step)])
    assert_goes_on(toy_start, toy_run, tmp_path, step)


def test_a_second_signal_does_not_disturb_the_checkpoint(toy_start, toy_run, tmp_path, monkeypatch):
    class Impatient(InEvaluation):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                tell()

    with pytest.raises(SystemExit):
        go(toy_start, tmp_path, callbacks=[Impatient(6, monkeypatch)])
    assert_goes_on(toy_start, toy_run, tmp_path, 6)
