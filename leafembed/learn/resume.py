"""Trains from the newest checkpoint to the end, and makes up for an evaluation that SIGTERM ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from leafembed.learn.callbacks import EvaluationLeft
from leafembed.learn.checkpoints import read_seal, step_of
from leafembed.learn.history import evaluated_steps
from leafembed.learn.trainer import StudentTrainer
from leafembed.progress import say

__all__ = ["train_from"]


def train_from(checkpoint: Path | None, trainer: StudentTrainer, callbacks: Sequence[TrainerCallback]) -> TrainerState:
    """Train to the end and return the trainer's record: steps, log and best step.

    Of training that was over before, ``callbacks`` are told the end; of an evaluation that SIGTERM ended, the
    checkpoint is written without it, and who goes on from there evaluates first.
    """
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        step, last = state.global_step, state.global_step >= state.max_steps
        due = (last or step % trainer.args.eval_steps == 0) and step not in evaluated_steps(state.log_history)
        if (last or read_seal(checkpoint)["over"]) and not due:
            for callback in callbacks:
                callback.on_train_end(trainer.args, state, trainer.control)
            return state
        say(f"training goes on from {checkpoint.name}")
        trainer.args.eval_on_start = due
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except EvaluationLeft:
        if checkpoint is None or trainer.state.global_step > step_of(checkpoint):  # else it lies there, and is whole
            trainer._save_checkpoint(trainer.model, None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return trainer.state
