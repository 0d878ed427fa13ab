"""Progress of long work: a bar with rate and time left on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

__all__ = ["LINE_SECONDS", "print_json", "progress", "say"]

LINE_SECONDS = 15.0
"""Seconds between lines where no terminal redraws a bar."""


def say(message: str) -> None:
    """Write one line of log to stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


@contextmanager
def progress(
    title: str, total: int | None, unit: str, *, done: int = 0, brief: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show the progress of ``total`` units of work; the value is a function to call with each number finished.

    Args:
        title: What is being done.
        total: Units in all; ``None``: not known, so that rate and number are all there is.
        unit: What is counted, in the plural.
        done: Units finished by an earlier, interrupted run; they do not count towards the rate.
        brief: One of many: nothing stays of its bar, and elsewhere it is silent unless it takes :data:`LINE_SECONDS`.
    """
    if not sys.stderr.isatty() or find_spec("rich") is None:  # a base install encodes without it
        yield _lines(title, total, unit, done, brief=brief)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=brief) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="")
        start, count = time.perf_counter(), 0

        def advance(n: int) -> None:
            nonlocal count
            count += n
            bar.update(task, advance=n, rate=f"{count / (time.perf_counter() - start + 1e-9):,.0f}/s")

        yield advance


def _lines(title: str, total: int | None, unit: str, done: int, *, brief: bool) -> Callable[[int], None]:
    start, last, count = time.perf_counter(), time.perf_counter(), 0

    def advance(n: int) -> None:
        nonlocal last, count
        count += n
        now = time.perf_counter()
        finished = total is not None and done + count >= total
        silent = brief and now - start < LINE_SECONDS
        if (finished and not silent) or now - last >= LINE_SECONDS:
            last = now
            rate = count / (now - start + 1e-9)
            if total is None:
                say(f"{title}: {done + count:,} {unit}, {rate:,.0f}/s")
                return
            left = (total - done - count) / rate
            end = f"in {now - start:.0f} s" if finished else f"{left:.0f} s left"
            say(f"{title}: {done + count:,} of {total:,} {unit}, {rate:,.0f}/s, {end}")

    return advance


def print_json(data: Any) -> None:
    """Print what a machine is to read on stdout."""
    print(json.dumps(data, ensure_ascii=False, indent=2))
