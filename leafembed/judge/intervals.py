"""How sure a score is: the bootstrap over what was scored (Efron, 1979; for two models Koehn, 2004).

The items of a task (pairs, queries, texts) are drawn again with replacement, as many as there are, and the score is
computed anew from each such resample. What is drawn depends on the number of items alone: so two models are held
against each other on the same resamples, and translations of one set, item by item in the same order, are drawn
together, since their scores rise and fall together.

A resample is how often each item was drawn, not a list of items: its ranks then follow from one sorting of all, and a
thousand resamples of 5,000 pairs take 0.2 seconds of one core. Nothing is said about what is not drawn: documents of
a retrieval task, examples that a classifier learns from, the tasks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError

__all__ = ["DRAWN", "LEVEL", "RESAMPLES", "STATISTICS", "Draws", "Items", "Scored", "bounds", "redraw"]

RESAMPLES = 1_000
"""Resamples of every score."""

DRAWN = (RESAMPLES, "centred V-measure")
"""How draws are made; results that were kept from other draws are computed again."""

LEVEL = 0.95
"""Share of the resamples whose score lies within an interval."""

_SEED = 20_260
_BLOCK = 200_000  # counts in memory at once: few enough to stay in the cache, which makes it three times as fast

Draws = NDArray[np.float64]
"""A score in each resample, ``(RESAMPLES,)``."""

_Counts = NDArray[np.int64]


def _mean(values_NK: NDArray[np.float64], counts_RN: _Counts) -> Draws:
    """Mean of the first column."""
    means: Draws = counts_RN @ values_NK[:, 0] / len(values_NK)
    return means


def _spearman(values_NK: NDArray[np.float64], counts_RN: _Counts) -> Draws:
    """Spearman's rank correlation of two columns; 0 where a column holds one value only."""
    middle = (len(values_NK) + 1) / 2
    a_RN, b_RN = (_ranks(column, counts_RN) - middle for column in values_NK.T)
    spread = np.sqrt((counts_RN * a_RN * a_RN).sum(axis=1) * (counts_RN * b_RN * b_RN).sum(axis=1))
    shared = (counts_RN * a_RN * b_RN).sum(axis=1)
    correlations: Draws = np.divide(shared, spread, out=np.zeros_like(shared), where=spread > 0)
    return correlations


def _ranks(values_N: NDArray[np.float64], counts_RN: _Counts) -> NDArray[np.float64]:
    """Rank of each item in each resample, from 1, equal values sharing the mean of theirs."""
    _, group_N = np.unique(values_N, return_inverse=True)
    order = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    drawn_RG = np.add.reduceat(counts_RN[:, order], starts, axis=1)
    ranks_RG = drawn_RG.cumsum(axis=1) - (drawn_RG - 1) / 2
    ranks: NDArray[np.float64] = ranks_RG[:, group_N]
    return ranks


def _max_ap(values_NK: NDArray[np.float64], counts_RN: _Counts) -> Draws:
    """Largest average precision over all columns but the last, which holds the labels 0 and 1."""
    *measures, labels_N = values_NK.T
    best: Draws = np.max([_average_precision(measure_N, labels_N, counts_RN) for measure_N in measures], axis=0)
    return best


def _average_precision(nearness_N: NDArray[np.float64], labels_N: NDArray[np.float64], counts_RN: _Counts) -> Draws:
    """Precision at each place of a pair with label 1, averaged, the nearest first; 0 where no such pair was drawn."""
    _, group_N = np.unique(-nearness_N, return_inverse=True)
    order = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))  # of equally near pairs, which share a place
    drawn_RG = np.add.reduceat(counts_RN[:, order], starts, axis=1)
    right_RG = np.add.reduceat((counts_RN * labels_N)[:, order], starts, axis=1)
    total_RG, found_RG = drawn_RG.cumsum(axis=1), right_RG.cumsum(axis=1)
    gained_R, every_R = (right_RG * found_RG / np.maximum(total_RG, 1)).sum(axis=1), found_RG[:, -1]
    precisions: Draws = np.divide(gained_R, every_R, out=np.zeros_like(gained_R), where=every_R > 0)
    return precisions


def _v_measure(values_NK: NDArray[np.float64], counts_RN: _Counts) -> Draws:
    """Mean V-measure over clusterings: the labels, a column of clusters for each, then how often each drew a document.

    Clusterings are of documents drawn with replacement; one that is drawn again weighs as often as it was in there.
    """
    labels_N, (clusters, weights) = values_NK[:, 0], np.split(values_NK[:, 1:].T, 2)
    both = zip(clusters, weights, strict=True)
    means: Draws = np.mean([_v(labels_N, clusters_N, counts_RN * drawn_N) for clusters_N, drawn_N in both], axis=0)
    return means


def _v(labels_N: NDArray[np.float64], clusters_N: NDArray[np.float64], weights_RN: NDArray[np.float64]) -> Draws:
    """V-measure under each row of weights: twice the shared information over the sum of both entropies."""
    (_, label_N), (_, cluster_N) = (np.unique(column, return_inverse=True) for column in (labels_N, clusters_N))
    rows, columns = label_N.max() + 1, cluster_N.max() + 1
    measures = np.empty(len(weights_RN))
    for i, weights_N in enumerate(weights_RN):
        cells = np.bincount(label_N * columns + cluster_N, weights_N, rows * columns).reshape(rows, columns)
        joint = cells / weights_N.sum()
        apart = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
        measures[i] = 2 * (apart - _entropy(joint)) / apart if apart > 0 else 1.0
    return measures


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return -float((positive * np.log(positive)).sum())


STATISTICS: Mapping[str, Callable[[NDArray[np.float64], _Counts], Draws]] = {
    "max_ap": _max_ap,
    "mean": _mean,
    "spearman": _spearman,
    "v_measure": _v_measure,
}
"""How a score follows from its items: ``(n, columns)`` values and ``(r, n)`` times that each was drawn, to ``(r,)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What a main score was computed from, an item a row: all that is needed to compute it again from other draws.

    Attributes:
        statistic: A name in :data:`STATISTICS`.
        values: ``(n, columns)`` float64: for ``mean`` what each item earned, for ``spearman`` the two values of a pair,
            for ``max_ap`` how near a pair is by each measure and its label, for ``v_measure`` the label of a document,
            its cluster in each clustering, and how often each drew it.
    """

    statistic: str
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values[:, None] if values.ndim == 1 else values)
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(f"items: got shape {values.shape}, expected (n, columns) with at least one item")
        if self.statistic not in STATISTICS:
            raise ValueError(f"items: got statistic {self.statistic!r}, expected one of {sorted(STATISTICS)}")
        if not np.isfinite(self.values).all():
            raise NonFiniteError(f"items of shape {values.shape} to resample hold NaN or infinity")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Every score of a task in one language by name, and what its main score is resampled from."""

    scores: dict[str, float]
    items: Items


def redraw(items: Items) -> Draws:
    """Return the score in each of :data:`RESAMPLES` resamples of the items, the same for as many items."""
    statistic, n = STATISTICS[items.statistic], len(items.values)
    draws = np.concatenate([statistic(items.values, counts_RN) for counts_RN in _resamples(n)])
    if items.statistic == "v_measure":
        # A resample holds fewer different documents, whose clusters tell more of their labels by chance: by as much as
        # the draws lie above the score, they are moved down.
        (score,) = statistic(items.values, np.ones((1, n), dtype=np.int64))
        draws = np.clip(draws + score - draws.mean(), 0, 1)
    return draws


def bounds(draws: Draws) -> tuple[float, float]:
    """Return the interval that holds :data:`LEVEL` of the draws, as much beyond it on either side.

    Raises:
        NonFiniteError: If a draw is NaN or infinite.
    """
    if not np.isfinite(draws).all():
        raise NonFiniteError(f"{int((~np.isfinite(draws)).sum())} of {draws.size} resamples are NaN or infinite")
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resamples(n: int) -> Iterator[_Counts]:
    """How often each of ``n`` items is drawn, ``(some, n)`` at a time."""
    rng, block = np.random.default_rng([_SEED, n]), max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
