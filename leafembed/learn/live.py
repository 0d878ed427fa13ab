"""Shows a training run: rate, time left, losses, dev scores and alarms; redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from leafembed.errors import MissingExtraError
from leafembed.learn.batches import Plan
from leafembed.learn.history import history
from leafembed.progress import LINE_SECONDS, say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LiveView"]

_SHOWN_ALARMS = 3


class LiveView(TrainerCallback):
    """The view of one run. The rate counts steps with the reading of their texts, evaluations and checkpoints do not.

    The time left counts those to come as well, by the mean of those so far; before the first, it counts steps alone.

    Args:
        plan: What is to come.
        console: A terminal to draw on; ``None``: stderr where it is one, else lines on stderr.
    """

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self.plan = plan
        self.console = console
        self.live: Any = None
        self.seconds = 0.0
        self.every = 0  # steps from one evaluation to the next; known when training begins
        self.pauses: dict[str, list[float]] = {"evaluation": [], "checkpoint": []}
        self.mark = self.last = time.perf_counter()  # end of the last step, evaluation or checkpoint
        self.first: int | None = None
        self.known: tuple[int, list[dict[str, Any]]] = (0, [])

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock: an evaluation may come before the first step."""
        self._elapsed()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with the first step; those after it began when the one before was over, with reading their texts."""
        if self.first is None:
            self.first, self.every = int(state.global_step), int(args.eval_steps)
            self._elapsed()
            self.last = self.mark
            self._open()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note what the evaluation took."""
        self.pauses["evaluation"].append(self._elapsed())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note what the checkpoint took."""
        self.pauses["checkpoint"].append(self._elapsed())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the step."""
        self.seconds += self._elapsed()
        done = int(state.global_step)
        if self.live is not None:
            self.live.update(self._panel(done, self._entries(state)))
        elif done == self.plan.steps or time.perf_counter() - self.last >= LINE_SECONDS:
            self.last = time.perf_counter()
            say(f"training: {self.pace(done)}{_last(self._entries(state), 'loss', _losses)}")

    def pace(self, done: int) -> str:
        """Steps, rates and time left after ``done`` steps."""
        first, seconds = self.first or 0, max(self.seconds, 1e-9)
        texts = self.plan.texts_until(done) - self.plan.texts_until(first)
        tokens = self.plan.tokens_until(done) - self.plan.tokens_until(first)
        left = (self.plan.tokens_until(self.plan.steps) - self.plan.tokens_until(done)) / max(tokens / seconds, 1e-9)
        left += self._pauses_left(done)
        rates = f"{texts / seconds:,.0f} texts/s, {tokens / seconds:,.0f} tokens/s"
        return f"step {done:,} of {self.plan.steps:,}, {rates}, {_clock(left)} left"

    def _pauses_left(self, done: int) -> float:
        """Seconds of the evaluations to come and their checkpoints, that of step ``done`` and of the last included."""
        if not self.every:
            return 0.0
        count = -(-self.plan.steps // self.every) - max(done - 1, 0) // self.every
        return count * sum(sum(seconds) / len(seconds) for seconds in self.pauses.values() if seconds)

    def _elapsed(self) -> float:
        """Seconds since this was last asked."""
        before, self.mark = self.mark, time.perf_counter()
        return self.mark - before

    def _entries(self, state: Any) -> list[dict[str, Any]]:
        """The history, put together again only when the log has grown."""
        if len(state.log_history) != self.known[0]:
            self.known = len(state.log_history), history(state.log_history)
        return self.known[1]

    def _open(self) -> None:
        if self.console is None and not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError as error:
            raise MissingExtraError("rich", "train") from error
        self.live = Live(console=self.console or Console(stderr=True), refresh_per_second=4)
        self.live.start()

    def _panel(self, done: int, entries: Sequence[Mapping[str, Any]]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        lines = [f"training  {self.pace(done)}", _last(entries, "loss", _losses), _last(entries, "dev", _scores)]
        alarms = [alarm for entry in entries for alarm in entry.get("alarms", [])][-_SHOWN_ALARMS:]
        rows = Table.grid()
        rows.add_row(ProgressBar(total=self.plan.steps, completed=done, width=60))
        for line in filter(None, lines):
            rows.add_row(Text(line.removeprefix("; ")))
        for alarm in alarms:
            rows.add_row(Text(f"ALARM  {alarm}", style="bold red"))
        return rows


def _last(entries: Sequence[Mapping[str, Any]], key: str, render: Any) -> str:
    """The last entry with a key as text; empty where there is none."""
    found = next((entry for entry in reversed(entries) if key in entry), None)
    return f"; {render(found)}" if found else ""


def _losses(entry: Mapping[str, Any]) -> str:
    hidden = {"step", "loss", "learning_rate", "grad_norm", "dev"}
    parts = (f"{name} {value:.4f}" for name, value in entry.items() if isinstance(value, float) and name not in hidden)
    return f"loss {entry['loss']:.4f} ({', '.join(parts)})"


def _scores(entry: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {value:.4f}" for name, value in entry["dev_tasks"].items())
    return f"dev {entry['dev']:.4f} at step {entry['step']}" + (f" ({parts})" if parts else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
