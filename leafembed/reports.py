"""What judging gives: a score for each task, a report for each encoder, and the gate's verdict on it.

All are frozen and check themselves when built, as the nouns of ``types.py`` do. They go through JSON and back, since
the manifest stores them. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import DataError, NonFiniteError
from leafembed.types import ModelRef

__all__ = [
    "BAG_OF_WORDS",
    "FLOOR",
    "FLOORS",
    "RANDOM",
    "SHIPPED",
    "STATIC_TABLE",
    "UNTRAINED",
    "Check",
    "EvalReport",
    "GateResult",
    "Interval",
    "TaskResult",
    "TooFew",
    "mean_by_type",
]

FLOOR = "floor: "
"""How the names of reports begin that a student must beat."""

RANDOM, BAG_OF_WORDS, UNTRAINED, STATIC_TABLE = "random", "bag of words", "untrained student", "static table"
"""What a student must beat; reports call them ``floor: NAME``."""

FLOORS = tuple(f"{FLOOR}{name}" for name in (RANDOM, BAG_OF_WORDS, UNTRAINED, STATIC_TABLE))
"""Reports that a verdict without them is none."""

SHIPPED = {"int8": "INT8", "student": "student"}
"""Names of the reports that retention may be of, the last of the line first, to what a card calls them."""

Interval = tuple[float, float]
"""Low and high end of what the bootstrap leaves likely; ``judge/intervals.py`` says how."""

_Score = TypeVar("_Score", float, NDArray[np.float64])

_SPLITS = ("train", "dev", "valid", "validation", "test")
_CROSS = "cross"  # what follows @ and names pairs of languages, no split


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One evaluation task in one language.

    Attributes:
        task: Task id, e.g. ``sts/sts17_en.test``.
        type: One of mteb's, such as ``STS`` or ``Retrieval``, or ``Agreement``.
        lang: Language tag, or ``deu-eng`` for a pair of languages.
        metric: Name of the main score, e.g. ``cosine_spearman``.
        main_score: The score that counts, usually in 0..1 and never NaN.
        scores: Every score computed.
        n: Scored items (pairs, queries, texts).
        data: Hash of the data it was computed on.
        seconds: Wall time, encoding included.
        interval: 95 % interval of the main score; ``None`` in a report of before there were any.
    """

    task: str
    type: str
    lang: str
    metric: str
    main_score: float
    scores: Mapping[str, float]
    n: int
    data: str
    seconds: float
    interval: Interval | None = None

    def __post_init__(self) -> None:
        ends = dict(zip(("low end", "high end"), self.interval or (), strict=False))
        for name, value in {"main_score": self.main_score, **self.scores, **ends}.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} of task {self.task} ({self.lang}) is {value}: a score must be a number")
        if self.n < 1:
            raise ValueError(f"task {self.task} ({self.lang}) scored {self.n} items: an empty evaluation is an error")

    @property
    def split(self) -> str:
        """The split that the task's id names, after ``@`` or as the end of its file's name; test if it names none."""
        name, _, chosen = self.task.partition("@")
        if chosen and chosen != _CROSS:
            return chosen
        end = name.rpartition(".")[2]
        return end if end in _SPLITS else "test"


@dataclass(frozen=True, slots=True)
class TooFew:
    """A language of a task that has too few rows for a number to mean anything; it was not scored.

    Attributes:
        task: Task id.
        type: Type of the task.
        lang: Language tag, as in :class:`TaskResult`.
        n: Rows that there are.
    """

    task: str
    type: str
    lang: str
    n: int

    def __str__(self) -> str:
        return f"too few rows ({self.n})"


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All scores of one encoder.

    Attributes:
        model: What was scored.
        results: One entry for each task and language.
        too_few: Languages that were left out; they take no part in anything below.
        intervals: 95 % interval of the mean by task type and, under ``mean``, of the mean over types; empty in a
            report of before there were any.
    """

    model: ModelRef
    results: tuple[TaskResult, ...]
    too_few: tuple[TooFew, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError(f"no task was scored for {self.model.name!r}: an empty evaluation is an error")

    def by_type(self) -> dict[str, float]:
        """Mean main score of each task type: languages within a task first, then tasks."""
        return mean_by_type(self.results, [result.main_score for result in self.results])

    def by_task(self) -> dict[str, float]:
        """Mean main score of each task over its languages, where a type has several tasks; else nothing."""
        tasks: dict[tuple[str, str], list[float]] = {}
        for result in self.results:
            tasks.setdefault((result.type, result.task), []).append(result.main_score)
        several = {kind for kind, _ in tasks if len([1 for other, _ in tasks if other == kind]) > 1}
        return {task: _mean(scores) for (kind, task), scores in tasks.items() if kind in several}

    @property
    def mean(self) -> float:
        """Mean over task types."""
        return _mean(self.by_type().values())

    def score(self, task: str, lang: str) -> float | None:
        """Main score of one task in one language; ``None`` when it was not scored."""
        for result in self.results:
            if (result.task, result.lang) == (task, lang):
                return result.main_score
        return None

    def retention(self, reference: EvalReport) -> dict[str, float]:
        """This model's score over the reference's, by task type; 1.0 means equal.

        Raises:
            ValueError: If the two reports do not cover the same tasks and data.
            DataError: If the reference scores nothing in a type, so that retention has no meaning.
        """
        mine, theirs = _keys(self), _keys(reference)
        if mine != theirs:
            raise ValueError(f"reports differ in what they scored: {sorted(mine ^ theirs)[:4]}")
        base = reference.by_type()
        for kind, score in base.items():
            # Dividing by a negative score would turn a worse model into a better one.
            if score <= 0:
                raise DataError(
                    f"{reference.model.name} scores {score:.4f} on {kind}, expected above 0: there is nothing to "
                    "retain, so leave these tasks out or choose another teacher"
                )
        return {kind: value / base[kind] for kind, value in self.by_type().items()}

    def mean_retention(self, reference: EvalReport) -> float:
        """Mean of :meth:`retention` over task types, each counted as 1 at most: no type makes up for another."""
        return _mean(min(1.0, kept) for kept in self.retention(reference).values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalReport:
        """The inverse of :meth:`to_dict`."""
        results = ({**result, "interval": _interval(result.get("interval"))} for result in data["results"])
        return cls(
            ModelRef(**data["model"]),
            tuple(TaskResult(**result) for result in results),
            tuple(TooFew(**entry) for entry in data.get("too_few", ())),
            {kind: (low, high) for kind, (low, high) in data.get("intervals", {}).items()},
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate.

    Attributes:
        name: What is compared, e.g. ``retention of STS``.
        value: What was measured.
        limit: What it is held against.
        at_least: ``True``: value must be at least limit; ``False``: at most.
    """

    name: str
    value: float
    limit: float
    at_least: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.limit)):
            raise NonFiniteError(f"gate check {self.name!r} compares {self.value} with {self.limit}")

    @property
    def passed(self) -> bool:
        """Whether the condition holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{self.name} is {self.value:.4f}, must be {word} {self.limit:.4f}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict: every check, and whether all hold."""

    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("a gate without checks passes nothing: expected at least one")

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the outcome of each check spelled out."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "checks": checks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateResult:
        """Rebuild from plain data. The stored outcome is ignored: it is recomputed from the values."""
        names = {f.name for f in fields(Check)}
        return cls(tuple(Check(**{k: v for k, v in check.items() if k in names}) for check in data["checks"]))


def mean_by_type(results: Sequence[TaskResult], scores: Sequence[_Score]) -> dict[str, _Score]:
    """Return the mean score of each task type: languages within a task first, then tasks.

    Args:
        results: What was scored.
        scores: For each, a number, or an array of numbers of which each is averaged by itself.
    """
    types: dict[str, dict[str, list[_Score]]] = {}
    for result, score in zip(results, scores, strict=True):
        types.setdefault(result.type, {}).setdefault(result.task, []).append(score)
    return {kind: _mean(_mean(scores) for scores in tasks.values()) for kind, tasks in types.items()}


def _mean(values: Iterable[_Score]) -> _Score:
    numbers = list(values)
    total: Any = sum(numbers)
    mean: _Score = total / len(numbers)
    return mean


def _interval(ends: Sequence[float] | None) -> Interval | None:
    return (ends[0], ends[1]) if ends else None


def _keys(report: EvalReport) -> set[tuple[str, str, str]]:
    return {(result.task, result.lang, result.data) for result in report.results}
