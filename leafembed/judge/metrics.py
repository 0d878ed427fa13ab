"""Scores of embeddings against labels, as the MTEB benchmark defines them (arXiv 2210.07316).

Pure functions over arrays. Embeddings are ``(n, dim)`` and of unit length, so that a dot product is a cosine. Empty
input is a ``ValueError`` and NaN or infinity a ``NonFiniteError``, because both can otherwise pass for a low score.
A collapsed model, whose vectors are all alike, is a model all the same: it gets the low score that it earns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError
from leafembed.judge.intervals import Items, Scored
from leafembed.types import FloatArray

__all__ = [
    "IntArray",
    "average_precision_at_k",
    "bitext",
    "check_arrays",
    "cosine_spearman",
    "cosines",
    "ndcg_at_k",
    "pair_classification",
    "rank",
    "recall_at_k",
]

IntArray = NDArray[np.int64]

# Cosines of one vector with itself differ by about 1e-7 in float32; a spread below this carries no order.
_SAME_COSINE = 1e-6
_BLOCK = 256  # queries ranked at once: with 100,000 documents, 100 MB of similarities


def cosine_spearman(a: FloatArray, b: FloatArray, scores: Sequence[float]) -> float:
    """Return Spearman's rank correlation, in -1..1, between row cosines and ``scores``.

    Args:
        a: ``(n, dim)``, the first text of each pair.
        b: ``(n, dim)``, the second text of each pair.
        scores: ``n`` gold similarities on any scale, not all equal.

    Returns:
        The correlation; exactly 0.0 when all cosines are the same, where the correlation is undefined: a model that
        cannot tell pairs apart knows nothing of their order.
    """
    from scipy.stats import spearmanr

    gold = np.asarray(scores, dtype=np.float64)
    check_arrays(a, b, gold)
    if not len(a) == len(b) == len(gold):
        raise ValueError(f"cosine_spearman: got {len(a)} and {len(b)} vectors and {len(gold)} scores, expected as many")
    if np.ptp(gold) == 0:
        raise ValueError(f"cosine_spearman: all {len(gold)} gold scores are {gold[0]}, expected at least two values")
    found = cosines(a, b)
    return float(spearmanr(found, gold).statistic) if found.any() else 0.0


def cosines(a: FloatArray, b: FloatArray) -> NDArray[np.float32]:
    """Return the cosine of each row of ``a`` with that of ``b``, ``(n,)``; all 0 when they are all the same."""
    from sklearn.metrics.pairwise import paired_cosine_distances

    found: NDArray[np.float32] = 1 - paired_cosine_distances(a, b)  # as mteb does: which pairs tie is of rounding
    return np.zeros_like(found) if np.ptp(found) < _SAME_COSINE else found


def rank(queries: FloatArray, documents: FloatArray, *, k: int) -> IntArray:
    """Return ``(n_queries, min(k, n_documents))`` document indices, nearest first.

    Among documents of the same cosine the earlier one comes first.
    """
    check_arrays(queries, documents)
    blocks = (queries[start : start + _BLOCK] @ documents.T for start in range(0, len(queries), _BLOCK))
    # Copied, since a view would keep the whole order of its block, 8 bytes for every query and document.
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k].copy() for block in blocks])


def ndcg_at_k(ranked: IntArray, relevance: Sequence[Mapping[int, float]], *, k: int) -> NDArray[np.float64]:
    """Return DCG / ideal DCG of the first ``k`` documents of each query, ``(n_queries,)`` in 0..1.

    A document of relevance r at rank i (from 0) gains r / log2(i + 2); the ideal order is over all judged documents.

    Args:
        ranked: ``(n_queries, at least k or all documents)`` document indices, as :func:`rank` returns them.
        relevance: For each query, relevance by document index; at least one must be positive.
        k: Documents that count.
    """
    return _by_query(ranked, relevance, lambda found, judged: _dcg(found[:k]) / _dcg(judged[:k]))


def recall_at_k(ranked: IntArray, relevance: Sequence[Mapping[int, float]], *, k: int) -> NDArray[np.float64]:
    """Return the share of each query's relevant documents among the first ``k``, ``(n_queries,)`` in 0..1.

    The arguments are those of :func:`ndcg_at_k`; every positive relevance counts alike.
    """
    return _by_query(ranked, relevance, lambda found, judged: np.count_nonzero(found[:k]) / len(judged))


def bitext(a: FloatArray, b: FloatArray) -> Scored:
    """Return ``f1`` and ``accuracy``, in 0..1, of finding row i of ``b`` as the nearest to row i of ``a``.

    ``f1`` is averaged over the targets, so a target that many sentences pick is punished for the wrong ones. Targets
    are what is resampled.
    """
    if len(a) != len(b):
        raise ValueError(f"bitext: got {len(a)} and {len(b)} vectors, expected as many")
    picked = rank(a, b, k=1)[:, 0]
    hits = picked == np.arange(len(a))
    # Every target is wanted once, so its F1 is 2 hit / (times picked + 1).
    f1 = 2 * hits / (np.bincount(picked, minlength=len(b)) + 1)
    return Scored({"f1": float(f1.mean()), "accuracy": float(hits.mean())}, Items("mean", f1))


def pair_classification(a: FloatArray, b: FloatArray, labels: Sequence[int]) -> Scored:
    """Return the average precision, in 0..1, of ranking pairs by how near they are: by four measures, and the best.

    Pairs are what is resampled, and the best measure is chosen anew each time.

    They are those of mteb, computed as there: ``cosine_ap``, ``dot_ap``, ``euclidean_ap`` and ``manhattan_ap``, and
    ``max_ap``. Between unit vectors the first three give one order but for rounding. It matters where a set holds
    pairs of one text twice, as PAWS-X does: their distance is 0 and a tie, but the dot product scatters about 1.

    Args:
        a: ``(n, dim)``, the first text of each pair.
        b: ``(n, dim)``, the second text of each pair.
        labels: ``n`` times 1 for a pair that means the same, else 0; both must occur.
    """
    from sklearn.metrics import average_precision_score
    from sklearn.metrics.pairwise import (
        paired_cosine_distances,
        paired_euclidean_distances,
        paired_manhattan_distances,
    )

    check_arrays(a, b)
    gold = np.asarray(labels)
    if not len(a) == len(b) == len(gold) or set(gold.tolist()) != {0, 1}:
        raise ValueError(
            f"pair_classification: got {len(a)} and {len(b)} vectors and {len(gold)} labels {sorted(set(labels))}, "
            "expected as many, labelled 0 and 1"
        )
    nearness = {
        "cosine_ap": 1 - paired_cosine_distances(a, b),
        "dot_ap": np.array([np.dot(one, other) for one, other in zip(a, b, strict=True)]),
        "euclidean_ap": -paired_euclidean_distances(a, b),
        "manhattan_ap": -paired_manhattan_distances(a, b),
    }
    found = {name: float(average_precision_score(gold, values)) for name, values in nearness.items()}
    items = Items("max_ap", np.column_stack([*nearness.values(), gold]))
    return Scored({"max_ap": max(found.values()), **found}, items)


def average_precision_at_k(
    cosines: Sequence[NDArray[np.float32]], relevant: Sequence[int], *, k: int
) -> NDArray[np.float64]:
    """Return the average precision of the first ``k`` of each query's own candidates, ``(n_queries,)`` in 0..1.

    Args:
        cosines: For each query, the cosine of each candidate, those that are relevant first. Among equal cosines a
            relevant candidate comes last: a model that cannot tell them apart earns nothing by it.
        relevant: For each query, how many candidates are relevant, at least 1.
        k: Candidates that count.
    """
    if len(cosines) != len(relevant) or not len(cosines):
        raise ValueError(f"got {len(cosines)} rankings and {len(relevant)} counts, expected as many, at least one")
    found = np.empty(len(cosines))
    for i, (values, count) in enumerate(zip(cosines, relevant, strict=True)):
        check_arrays(values)
        if not 1 <= count <= len(values):
            raise ValueError(f"got {count} relevant of {len(values)} candidates, expected at least 1")
        order = np.argsort(-values[::-1], kind="stable")
        ranks = np.flatnonzero(order[:k] >= len(values) - count) + 1
        found[i] = (np.arange(1, len(ranks) + 1) / ranks).sum() / count
    return found


def _by_query(ranked: IntArray, relevance: Sequence[Mapping[int, float]], score: Any) -> NDArray[np.float64]:
    if len(ranked) != len(relevance) or not len(ranked):
        raise ValueError(f"got {len(ranked)} rankings and {len(relevance)} judgements, expected as many, at least one")
    found = np.empty(len(ranked))
    for i, (documents, judged) in enumerate(zip(ranked.tolist(), relevance, strict=True)):
        positive = np.array(sorted((r for r in judged.values() if r > 0), reverse=True))
        if not len(positive):
            raise ValueError("a query without a relevant document cannot be scored: leave it out")
        found[i] = score(np.array([max(judged.get(document, 0.0), 0.0) for document in documents]), positive)
    return found


def _dcg(gains: NDArray[np.float64]) -> float:
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def check_arrays(*arrays: NDArray[Any]) -> None:
    """Refuse what would pass for a low score.

    Raises:
        ValueError: If an array is empty.
        NonFiniteError: If one holds NaN or infinity.
    """
    for array in arrays:
        if not array.size:
            raise ValueError(f"got an empty array of shape {array.shape}, expected at least one row to score")
        if not np.isfinite(array).all():
            raise NonFiniteError(f"an array of shape {array.shape} to score holds NaN or infinity")
