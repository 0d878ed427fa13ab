"""The metrics of several server processes as one page: each writes its own to a folder, whoever is asked adds them up.

A process that died keeps its counts, since a counter must not fall, and loses its gauges, since nothing of it is at
work any more. What others wrote is at most :data:`EVERY_S` seconds old.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["EVERY_S", "Shared", "bury", "merge"]

EVERY_S = 1.0
"""Seconds between two writes of a process."""

_ALIVE, _DEAD = ".prom", ".dead"
_EARLIEST = ("_created", "_start_time_seconds")
"""Ends of the names of moments, of which the first counts; everything else is added up."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What one process shares with the others.

    Attributes:
        folder: Common to all processes of a server.
    """

    folder: Path

    def write(self, text: bytes) -> None:
        """Let the others know the metrics of this process; on a full disk they know what it wrote before."""
        place = self.folder / f"{os.getpid()}{_ALIVE}"
        partial = place.with_suffix(".partial")
        try:
            partial.write_bytes(text)
            partial.replace(place)
        except OSError:
            with suppress(OSError):
                partial.unlink()

    def page(self, own: bytes) -> bytes:
        """The metrics of all processes, this one's as given; if the folder is lost, of this one alone."""
        try:
            found = sorted(self.folder.iterdir())
        except OSError:
            found = []
        others = [path for path in found if path.stem != str(os.getpid())]
        alive = [_read(path) for path in others if path.suffix == _ALIVE]
        return merge([own.decode(), *alive], [_read(path) for path in others if path.suffix == _DEAD])


def bury(folder: Path, pid: int) -> None:
    """Note that a process has ended; where nothing can be written, it is forgotten."""
    place = folder / f"{pid}{_ALIVE}"
    with suppress(OSError):
        place.replace(place.with_suffix(_DEAD))


def merge(alive: Iterable[str], dead: Iterable[str] = ()) -> bytes:
    """Add up pages in Prometheus' text format.

    Args:
        alive: Pages of processes that run.
        dead: Last pages of those that ended; their gauges do not count.
    """
    found: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text, ended in (*((text, False) for text in alive), *((text, True) for text in dead)):
        for family in text_string_to_metric_families(text):
            moment = family.name.endswith(_EARLIEST)
            if ended and family.type == "gauge" and not moment:
                continue
            found.setdefault(family.name, family)
            sums = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                before = sums.get(key)
                both = sample.value if before is None else before + sample.value
                sums[key] = min(before or sample.value, sample.value) if moment else both
    registry = CollectorRegistry()
    registry.register(_Page(found, values))
    return generate_latest(registry)


class _Page:
    """A collector of what was added up."""

    def __init__(
        self, found: dict[str, Metric], values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]
    ) -> None:
        self._found, self._values = found, values

    def collect(self) -> Iterator[Metric]:
        for name, family in self._found.items():
            metric = Metric(name, family.documentation, family.type)
            for (sample, labels), value in self._values[name].items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # renamed meanwhile, since its process ended
        return ""
