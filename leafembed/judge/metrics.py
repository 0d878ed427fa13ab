"""Scores of embeddings against labels, as the MTEB benchmark defines them (arXiv 2210.07316).

Pure functions over arrays. Embeddings are ``(n, dim)`` and of unit length, so that a dot product is a cosine. Empty
input is a ``ValueError`` and NaN or infinity a ``NonFiniteError``, because both can otherwise pass for a low score.
A collapsed model, whose vectors are all alike, is a model all the same: it gets the low score that it earns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError
from leafembed.judge.intervals import Items, Scored
from leafembed.types import FloatArray

__all__ = [
    "IntArray",
    "bitext",
    "classification",
    "cosine_spearman",
    "cosines",
    "draw_examples",
    "ndcg_at_k",
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
    _check(a, b, gold)
    if not len(a) == len(b) == len(gold):
        raise ValueError(f"cosine_spearman: got {len(a)} and {len(b)} vectors and {len(gold)} scores, expected as many")
    if np.ptp(gold) == 0:
        raise ValueError(f"cosine_spearman: all {len(gold)} gold scores are {gold[0]}, expected at least two values")
    found = cosines(a, b)
    return float(spearmanr(found, gold).statistic) if found.any() else 0.0


def cosines(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """Return the cosine of each row of ``a`` with that of ``b``, ``(n,)``; all 0 when they are all the same."""
    found: NDArray[np.float64] = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return np.zeros_like(found) if np.ptp(found) < _SAME_COSINE else found


def rank(queries: FloatArray, documents: FloatArray, *, k: int) -> IntArray:
    """Return ``(n_queries, min(k, n_documents))`` document indices, nearest first.

    Among documents of the same cosine the earlier one comes first.
    """
    _check(queries, documents)
    blocks = (queries[start : start + _BLOCK] @ documents.T for start in range(0, len(queries), _BLOCK))
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k] for block in blocks])


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


def draw_examples(
    labels: Sequence[str], *, seed: int, samples_per_label: int = 8, n_experiments: int = 10
) -> list[IntArray]:
    """Return, for each experiment, the indices of ``samples_per_label`` random examples of every label.

    A label with fewer examples gives all that it has. Encoders compared under one seed get the same examples.
    """
    names, rng = np.asarray(labels), np.random.default_rng(seed)
    orders = [rng.permutation(len(names)) for _ in range(n_experiments)]
    return [
        np.concatenate([order[names[order] == name][:samples_per_label] for name in np.unique(names)])
        for order in orders
    ]


def classification(
    train: FloatArray,
    train_labels: Sequence[str],
    test: FloatArray,
    test_labels: Sequence[str],
    *,
    draws: Sequence[IntArray],
) -> Scored:
    """Return ``accuracy`` and macro ``f1``, in 0..1, as means over logistic regressions on few examples.

    Resampled are the texts that are scored: of each, the share of the regressions that label it right.

    Args:
        train: ``(n_train, dim)``, the examples that are drawn from.
        train_labels: ``n_train`` labels, at least two different.
        test: ``(n_test, dim)``, what is scored.
        test_labels: ``n_test`` labels.
        draws: Rows of ``train`` for each regression, as :func:`draw_examples` picks them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from threadpoolctl import threadpool_limits

    _check(train, test)
    if (len(train), len(test)) != (len(train_labels), len(test_labels)):
        sizes = f"{len(train)} and {len(test)} vectors, {len(train_labels)} and {len(test_labels)} labels"
        raise ValueError(f"classification: got {sizes}, expected a label for each vector")
    labels, gold = np.asarray(train_labels), np.asarray(test_labels)
    right, f1s = [], []
    for draw in draws:
        model = LogisticRegression(max_iter=100)
        # One thread: the matrices are so small that handing out their rows costs more than it saves.
        with threadpool_limits(1), warnings.catch_warnings():
            # MTEB stops after 100 iterations, converged or not: the cap is part of the definition.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted = model.fit(train[draw], labels[draw]).predict(test)
        right.append(predicted == gold)
        f1s.append(f1_score(gold, predicted, average="macro", zero_division=0))
    return Scored({"accuracy": float(np.mean(right)), "f1": float(np.mean(f1s))}, Items("mean", np.mean(right, axis=0)))


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


def _check(*arrays: NDArray[Any]) -> None:
    for array in arrays:
        if not array.size:
            raise ValueError(f"got an empty array of shape {array.shape}, expected at least one row to score")
        if not np.isfinite(array).all():
            raise NonFiniteError(f"an array of shape {array.shape} to score holds NaN or infinity")
