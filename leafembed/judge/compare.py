"""Holds models against each other on the same tasks: who is better, how sure that is, what is kept of a reference.

Everything comes from two things: the scores of each model, and its scores in each resample of the items (see
``intervals.py``). Resamples are the same for all models, so their difference is resampled too: the paired bootstrap
(Koehn, 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from leafembed.judge.evaluate import draws_by_type
from leafembed.judge.intervals import Draws, bounds
from leafembed.reports import EvalReport, Interval

__all__ = ["Estimate", "Judged", "Pair", "pairs", "retention"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and the 95 % interval of the bootstrap around it."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Judged:
    """One model of a comparison.

    Attributes:
        label: What tables call it, each once.
        spec: What it was named by.
        key: Hash of what its vectors depend on.
        report: Its scores.
        draws: For each of ``report.results``, the main score in each resample.
    """

    label: str
    spec: str
    key: str
    report: EvalReport
    draws: tuple[Draws, ...]

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Mean score by task type, and the mean over types under ``mean``."""
        return {**self.report.by_type(), "mean": self.report.mean}

    @cached_property
    def drawn(self) -> Mapping[str, Draws]:
        """The same in each resample."""
        return draws_by_type(self.report.results, self.draws)

    def by_language(self) -> dict[tuple[str, str], Estimate]:
        """Mean over the tasks of each type in each language."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, result in enumerate(self.report.results):
            groups.setdefault((result.type, result.lang), []).append(i)
        return {
            key: Estimate(
                float(np.mean([self.report.results[i].main_score for i in group])),
                bounds(np.mean([self.draws[i] for i in group], axis=0)),
            )
            for key, group in groups.items()
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models held against each other.

    Attributes:
        a: Label of the one that has the higher mean.
        b: Label of the other.
        above: Share of the resamples in which the mean of ``a`` is above that of ``b``; equal ones count half.
        difference: ``a`` minus ``b``, by task type and for ``mean``.
    """

    a: str
    b: str
    above: float
    difference: Mapping[str, Estimate]

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference of means leaves out 0."""
        low, high = self.difference["mean"].interval
        return low > 0 or high < 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "clear": self.clear}


def pairs(models: Sequence[Judged]) -> tuple[Pair, ...]:
    """Return every two models, the best of all first.

    Raises:
        ValueError: If they were not scored on the same tasks and data.
    """
    scored = [{(r.task, r.lang, r.data) for r in model.report.results} for model in models]
    if any(each != scored[0] for each in scored):
        raise ValueError("models to compare were scored on different tasks or data")
    ranked = sorted(models, key=lambda model: -model.scores["mean"])
    return tuple(_pair(a, b) for a, b in combinations(ranked, 2))


def _pair(a: Judged, b: Judged) -> Pair:
    differences = {kind: a.drawn[kind] - b.drawn[kind] for kind in a.scores}
    estimates = {kind: Estimate(a.scores[kind] - b.scores[kind], bounds(drawn)) for kind, drawn in differences.items()}
    above = (np.sign(differences["mean"]).mean() + 1) / 2
    return Pair(a.label, b.label, float(above), estimates)


def retention(model: Judged, reference: Judged) -> dict[str, Estimate]:
    """Return the model's score over the reference's, by task type, and under ``mean`` their mean.

    As the gate has it, each type counts as 1 at most in the mean: no type makes up for another. A type in which the
    reference scores 0 or less in some resample is left out, since nothing is there to retain; then there is no mean
    either.
    """
    drawn = {
        kind: model.drawn[kind] / base
        for kind, base in reference.drawn.items()
        if kind != "mean" and reference.scores[kind] > 0 and base.min() > 0
    }
    ratios = {kind: model.scores[kind] / reference.scores[kind] for kind in drawn}
    found = {kind: Estimate(ratio, bounds(drawn[kind])) for kind, ratio in ratios.items()}
    if len(found) == len(reference.report.by_type()):
        mean = float(np.minimum(list(ratios.values()), 1).mean())
        found["mean"] = Estimate(mean, bounds(np.minimum(list(drawn.values()), 1).mean(axis=0)))
    return found
