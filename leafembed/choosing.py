"""What ``leaf choose`` does: times a bundle's early exits on this machine, picks the cheapest that is good enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, Error
from leafembed.recipe import BenchmarkConfig
from leafembed.ship.benchmark import Contender, benchmark, prompt_of_card
from leafembed.ship.bundle import open_bundle
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.machine import machine_facts
from leafembed.ship.parts import read_points
from leafembed.ship.point_table import exit_name

__all__ = ["choose"]


def choose(
    bundle: Path,
    texts: Sequence[str],
    *,
    min_retention: float | None = None,
    min_rate: float | None = None,
    threads: int | None = None,
    allow_failed: bool = False,
) -> dict[str, Any]:
    """Return the points of a bundle with their rate on this machine, and the one to take.

    With a least retention it is the fastest that has it, of these the one with the fewest dimensions; with a least rate
    alone, the one with most retention that is fast enough. What does not beat all floors is left out. Retention is what
    the run measured; rates are measured now, with the prompt of the run's recipe where the bundle has it.

    Args:
        bundle: Folder of a bundle with early exits or further dimensions.
        texts: What rates are measured on.
        min_retention: Least share of the teacher's scores, 0 to 1.
        min_rate: Least texts a second.
        threads: CPU threads; ``None``: every core the process may use.
        allow_failed: Open a bundle that the gate refused, and choose among what does not beat all floors too.

    Returns:
        ``points``, ``chosen`` (one of them), ``prompt_name`` (what rates were measured with; ``None``: bare text) and
        ``machine``.

    Raises:
        DataError: If there is no text.
        Error: If the bundle has one point only, no condition is given, or no point meets all.
    """
    if not texts:
        raise DataError("there is no text to time: expected at least one line")
    if min_retention is None and min_rate is None:
        raise Error("leaf choose: got no condition, expected --min-retention, --min-rate or both")
    encoder = open_bundle(bundle, allow_failed=allow_failed, threads=threads)
    points = read_points(encoder.manifest or {}, str(bundle))
    if not points:
        raise Error(
            f"{bundle}: got one exit and one dimension, so there is nothing to choose from; train a student with "
            "student.exits and student.dims"
        )
    if not allow_failed:
        points = [point for point in points if not point["why_not"]]  # the whole is left, which passed
    prompt_name = prompt_of_card(encoder.manifest or {}, encoder.prompts)
    exits = sorted({point["exit"] for point in points}, key=lambda exit: exit or 0)
    rates = _rates(encoder, texts, exits, prompt_name)
    for point in points:
        point["texts_per_second"] = rates[point["exit"]]
    chosen = _best(points, min_retention, min_rate)
    return {"points": points, "chosen": chosen, "prompt_name": prompt_name, "machine": machine_facts()}


def _rates(
    encoder: BundleEncoder, texts: Sequence[str], exits: Sequence[int | None], prompt_name: str | None
) -> dict[int | None, float]:
    config = dataclasses.replace(BenchmarkConfig(), threads=encoder.threads, batch_size=encoder.batch_size)
    encode = partial(encoder.encode, prompt_name=prompt_name)
    contenders = [Contender(exit_name(exit), partial(encode, exit=exit), 0.0, 0.0) for exit in exits]
    speeds = benchmark(contenders, texts, config=config)
    return {exit: speed.texts_per_second for exit, speed in zip(exits, speeds, strict=True)}


def _best(points: Sequence[dict[str, Any]], retention: float | None, rate: float | None) -> dict[str, Any]:
    enough = [
        point
        for point in points
        if (retention is None or point["retention"] >= retention)
        and (rate is None or point["texts_per_second"] >= rate)
    ]
    if not enough:
        best = max(points, key=lambda point: point["retention"])
        fastest = max(points, key=lambda point: point["texts_per_second"])
        raise Error(
            f"no exit and dimension meets all: got a retention of at most {best['retention']:.3f} "
            f"({best['texts_per_second']:,.0f} texts/s) and at most {fastest['texts_per_second']:,.0f} texts/s "
            f"(retention {fastest['retention']:.3f}); ask for less"
        )
    if retention is not None:
        return max(enough, key=lambda point: (point["texts_per_second"], -point["dim"]))
    return max(enough, key=lambda point: (point["retention"], -point["dim"]))
