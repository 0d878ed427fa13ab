"""What happens at the steps of a run besides learning: log, plot, checkpoints, early stopping, SIGTERM, memory."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from leafembed.learn.checkpoints import complete, rotate, seal, step_of, writing
from leafembed.learn.history import best_evaluation, evaluated_steps, evaluations_without_gain, history
from leafembed.progress import say
from leafembed.recipe_learn import TrainConfig
from leafembed.trimming import give_back_memory

__all__ = [
    "TRIM_STEPS",
    "Checkpoints",
    "EarlyStop",
    "EvaluationLeft",
    "History",
    "OnHistory",
    "Termination",
    "Trim",
]

_NEWEST = 2

TRIM_STEPS = 25
"""Steps between two times that freed memory is given back."""

OnHistory = Callable[[Sequence[dict[str, Any]], int], None]
"""Called after each evaluation with the history so far and its best step; draws it, for example."""


class History(TrainerCallback):
    """Writes every log line to ``history.jsonl``, from the state's own record, so that a resume repeats nothing.

    Args:
        path: The file.
        best_metric: The recipe's ``train.best_metric``.
        on_history: Called after each evaluation; ``None``: nothing is.
    """

    def __init__(self, path: Path, best_metric: str, on_history: OnHistory | None) -> None:
        self.path = path
        self.best_metric = best_metric
        self.on_history = on_history
        self.written = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the file anew with what a resumed run knows."""
        self.written = 0
        self._write(state.log_history, "w")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Append what is new."""
        self._write(state.log_history, "a")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Say the scores, append what other callbacks found, and hand the history on."""
        dev, loss = metrics["eval_dev_mean"], metrics["eval_validation_loss"]
        say(f"step {state.global_step}: dev {dev:.4f}, validation loss {loss:.4f}")
        self.flush(state)

    def flush(self, state: Any) -> None:
        """Append what is new and hand the history on; also called where an alarm ended the run."""
        self._write(state.log_history, "a")
        if self.on_history is not None:
            best = best_evaluation(state.log_history, self.best_metric)
            with writing(self.path.parent, "the plot of the run"):
                self.on_history(history(state.log_history), int(best["step"]) if best else 0)

    def _write(self, log: Sequence[dict[str, Any]], mode: str) -> None:
        with writing(self.path.parent, self.path.name), self.path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in log[self.written :])
        self.written = len(log)


class EarlyStop(TrainerCallback):
    """Ends training after ``stop_patience`` evaluations without a better ``stop_metric``.

    Counted in the log, which every checkpoint holds, so that a resumed run counts on.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.metric = config.stop_metric
        self.patience = config.stop_patience
        self.over = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when patience is at its end."""
        waited = evaluations_without_gain(state.log_history, self.metric)
        if self.patience is not None and waited >= self.patience:
            say(f"step {state.global_step}: {self.metric} has not improved for {waited} evaluations, training ends")
            control.should_training_stop = self.over = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let no step follow an evaluation that was made up for on resuming and ended training."""
        if self.over:
            raise EvaluationLeft


class EvaluationLeft(BaseException):
    """Ends an evaluation during which SIGTERM came, or training after one that was made up for and ended it.

    No error, so that nothing on its way out takes it for one.
    """


class Termination(TrainerCallback):
    """Lets a run that is told to terminate finish its step, but no evaluation, and write a checkpoint first.

    An evaluation takes minutes, and who sends SIGTERM often kills after seconds. The run that goes on makes up for it.
    """

    def __init__(self) -> None:
        self.received = False
        self._evaluating = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGTERM meanwhile; only the main thread of a process may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the step in which the signal came."""
        if self.received:
            control.should_save = control.should_training_stop = True

    def leaving(self, evaluation: Callable[..., Any]) -> Callable[..., Any]:
        """Return an evaluation that raises :class:`EvaluationLeft` when the signal comes.

        Only what is measured is inside: nothing has been logged, and no callback was told. The evaluation before the
        first step is not left, since there is nothing yet to keep.
        """

        def evaluate(model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1) -> Any:
            self._evaluating = steps > 0
            try:
                if self._evaluating and self.received:  # after the step, before the evaluation
                    raise EvaluationLeft
                return evaluation(model, output_path=output_path, epoch=epoch, steps=steps)
            finally:
                self._evaluating = False

        return evaluate

    def _receive(self, number: int, frame: Any) -> None:
        first, self.received = not self.received, True
        if first and self._evaluating:  # a second signal must not disturb the checkpoint
            raise EvaluationLeft


class Checkpoints(TrainerCallback):
    """Seals a checkpoint once the trainer has written all of it, and only then drops older ones.

    Kept are the two newest, the best, and as many as are averaged at the end.

    Args:
        before: Seconds of training in earlier sittings.
        config: The recipe's ``[train]``: how many of the newest with an evaluation are averaged, and what is best.
        termination: Tells a run that is over from one that was told to terminate,
        early: unless both came at the same step.
    """

    def __init__(self, before: float, config: TrainConfig, termination: Termination, early: EarlyStop) -> None:
        self.start = time.perf_counter() - before
        self.keep = max(1, config.average_checkpoints)
        self.best_metric = config.best_metric
        self.termination = termination
        self.early = early

    @property
    def seconds(self) -> float:
        """Seconds of training over all sittings that led here."""
        return time.perf_counter() - self.start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge and keep the last step too, and log at every checkpoint.

        The rate has decayed to 0 at the last step, so it is usually the best. A log at each checkpoint makes the means
        of a resumed run cover the same steps as those of an uninterrupted one.
        """
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        if control.should_save:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the new checkpoint, then rotate."""
        work_dir = Path(args.output_dir)
        over = bool(control.should_training_stop) and (self.early.over or not self.termination.received)
        with writing(work_dir, f"the seal of the checkpoint of step {state.global_step}"):
            seal(work_dir / f"checkpoint-{state.global_step}", {"seconds": self.seconds, "over": over})
        there = [step_of(checkpoint) for checkpoint in complete(work_dir)]
        evaluated = evaluated_steps(state.log_history)
        averaged = [step for step in there if step in evaluated][-self.keep :]
        best = best_evaluation(state.log_history, self.best_metric)  # the trainer's own lacks one made on resuming
        rotate(work_dir, {*there[-_NEWEST:], *averaged, int(best["step"]) if best else 0})


class Trim(TrainerCallback):
    """Gives memory that was freed back to the system every :data:`TRIM_STEPS` steps.

    No two batches have the same number of tokens, so that what one frees seldom fits the next, and the C library keeps
    all of it: on a CPU, six layers of EmbeddingGemma grew from 2.9 to 5.2 GB in 60 steps, and with this to 2.1 GB.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trim where it is time."""
        if state.global_step % TRIM_STEPS == 0:
            give_back_memory()
