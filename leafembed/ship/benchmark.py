"""Throughput of several encoders, measured in one interleaved run.

Rounds go over all encoders in turn, so that a slow spell of the machine falls on each of them and not on one. The
median is reported with the slowest and fastest round beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from leafembed.recipe import BenchmarkConfig
from leafembed.ship.machine import usable_cores
from leafembed.types import Speed

__all__ = ["Contender", "benchmark", "prompt_of_card"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One encoder in the race.

    Attributes:
        name: The encoder and its engine; a name that starts with ``teacher`` is what the card compares with.
        encode: Encodes a list of texts, with the batch size and threads that the config names.
        size_mb: Megabytes (10^6 bytes) on disk that must be shipped to run it.
        tokens_per_text: Mean input length, special tokens included; 0 when it has no tokens.
    """

    name: str
    encode: Callable[[list[str]], Any]
    size_mb: float
    tokens_per_text: float


def benchmark(contenders: Sequence[Contender], texts: Sequence[str], *, config: BenchmarkConfig) -> tuple[Speed, ...]:
    """Return the speed of each contender, in the order given.

    Each encodes the first ``config.texts`` texts once uncounted, then ``config.repeats`` times counted.

    Raises:
        ValueError: If there are no texts or contenders, or two contenders share a name.
    """
    sample = list(texts[: config.texts])
    names = [contender.name for contender in contenders]
    if not sample or not names or len(set(names)) < len(names) or config.repeats < 1:
        raise ValueError(
            f"benchmark: got {len(sample)} texts, contenders {names} and {config.repeats} repeats, "
            "expected at least one of each and distinct names"
        )
    for contender in contenders:
        contender.encode(sample)
    rounds = [[_texts_per_second(contender, sample) for contender in contenders] for _ in range(config.repeats)]
    return tuple(
        Speed(
            name=contender.name,
            texts_per_second=median(rates),
            spread=(min(rates), max(rates)),
            tokens_per_text=contender.tokens_per_text,
            batch_size=config.batch_size,
            threads=usable_cores() if config.threads is None else config.threads,
            size_mb=contender.size_mb,
        )
        for contender, rates in zip(contenders, zip(*rounds, strict=True), strict=True)
    )


def prompt_of_card(manifest: Mapping[str, Any], prompts: Mapping[str, str]) -> str | None:
    """Name of the prompt that a bundle's card is measured with, for rates that can be held against it.

    Args:
        manifest: Of the bundle.
        prompts: Those that its encoder has, by name.

    Returns:
        The name, or ``None``: bare text, since the recipe names no prompt or the encoder does not have it.
    """
    name = manifest["recipe"]["teacher"].get("prompt_name")
    return name if name in prompts else None


def _texts_per_second(contender: Contender, texts: list[str]) -> float:
    start = time.perf_counter()
    contender.encode(texts)
    return len(texts) / (time.perf_counter() - start)
