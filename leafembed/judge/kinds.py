"""What a task of each type is: its main score, and how to get from vectors to scores. The registry is :data:`KINDS`.

Every type is scored as the classes of mteb score it, prompts and random draws included; ``tools/compare_with_mteb.py``
holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.judge import formats, metrics, probes
from leafembed.judge.formats import Groups, Item, Options
from leafembed.judge.intervals import Items, Scored
from leafembed.types import FloatArray

__all__ = ["KINDS", "Encode", "Kind", "find_prompt", "score_pairs"]

Encode = Callable[[Sequence[str], str | None], FloatArray]
"""Texts and a prompt name to ``(n_texts, dim)`` float32, unit length, in the order of the texts."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of task.

    Attributes:
        type: What mteb calls it.
        metric: Name of the main score among those that ``score`` returns.
        texts: Leading fields of an item that are its texts.
        score: Items, what they are scored against and how to encode, to every score by name and what the main one is
            resampled from.
    """

    type: str
    metric: str
    texts: int
    score: Callable[[list[Item], Any, Encode], Scored]


def find_prompt(prompts: Mapping[str, str], wanted: str | None) -> str | None:
    """Return the prompt of a model that a task's wish comes down to; ``None``: the bare text.

    A wish is a type, or a type and a role: for ``Retrieval-query`` a model is looked through for that, for
    ``Retrieval`` and for ``query``, in this order, which is mteb's.
    """
    kind, _, role = (wanted or "").partition("-")
    return next((name for name in (wanted, kind, role) if name and name in prompts), None)


def score_pairs(items: list[Item], prompt_name: str | None, encode: Encode) -> Scored:
    """Spearman between the cosines of pairs and their gold scores."""
    left, right, gold = zip(*items, strict=True)
    a, b = np.split(encode([*left, *right], prompt_name), 2)
    score = metrics.cosine_spearman(a, b, gold)
    return Scored({"cosine_spearman": score}, Items("spearman", np.column_stack([metrics.cosines(a, b), gold])))


def _score_bitext(items: list[Item], prompt_name: str, encode: Encode) -> Scored:
    left, right = zip(*items, strict=True)
    return metrics.bitext(encode(left, prompt_name), encode(right, prompt_name))


def _score_classification(items: list[Item], probe: list[Item], encode: Encode) -> Scored:
    (known, labels), (texts, gold) = zip(*probe, strict=True), zip(*items, strict=True)
    draws = probes.draw_examples(labels)
    used = np.unique(np.concatenate(draws))  # a probe set can be a hundred times what the draws take of it
    train, test = encode([known[i] for i in used], "Classification"), encode(texts, "Classification")
    placed = [np.searchsorted(used, draw) for draw in draws]
    return probes.classification(train, [labels[i] for i in used], test, gold, draws=placed)


def _score_retrieval(items: list[Item], documents: list[str], encode: Encode) -> Scored:
    queries, judgements = zip(*items, strict=True)
    ranked = metrics.rank(encode(queries, "Retrieval-query"), encode(documents, "Retrieval-document"), k=10)
    relevance = [dict(judged) for judged in judgements]
    gains, found = metrics.ndcg_at_k(ranked, relevance, k=10), metrics.recall_at_k(ranked, relevance, k=10)
    return Scored({"ndcg_at_10": float(gains.mean()), "recall_at_10": float(found.mean())}, Items("mean", gains))


def _score_clustering(items: list[Item], total: int, encode: Encode) -> Scored:
    texts, labels = zip(*items, strict=True)
    return probes.clustering(encode(texts, "Clustering"), labels, draws=probes.draw_documents(total))


def _score_duplicates(items: list[Item], _: None, encode: Encode) -> Scored:
    left, right, labels = zip(*items, strict=True)
    a, b = np.split(encode([*left, *right], "PairClassification"), 2)
    return metrics.pair_classification(a, b, labels)


def _score_reranking(items: list[Item], _: None, encode: Encode) -> Scored:
    queries, positives, negatives = zip(*items, strict=True)
    candidates = [[*good, *bad] for good, bad in zip(positives, negatives, strict=True)]
    vectors = encode([text for texts in candidates for text in texts], "Reranking-document")
    documents = np.split(vectors, np.cumsum([len(texts) for texts in candidates])[:-1])
    cosines = [d @ q for q, d in zip(encode(queries, "Reranking-query"), documents, strict=True)]
    earned = metrics.average_precision_at_k(cosines, [len(texts) for texts in positives], k=1000)
    return Scored({"map_at_1000": float(earned.mean())}, Items("mean", earned))


_Reader = Callable[[Path, Options, str], tuple[Groups, list[str]]]

KINDS: dict[str, tuple[Kind, _Reader]] = {
    "sts": (Kind("STS", "cosine_spearman", 2, score_pairs), formats.read_sts),
    "bitext": (Kind("BitextMining", "f1", 2, _score_bitext), formats.read_bitext),
    "classification": (Kind("Classification", "accuracy", 1, _score_classification), formats.read_classification),
    "retrieval": (Kind("Retrieval", "ndcg_at_10", 1, _score_retrieval), formats.read_retrieval),
    "clustering": (Kind("Clustering", "v_measure", 1, _score_clustering), formats.read_clustering),
    "pair": (Kind("PairClassification", "max_ap", 2, _score_duplicates), formats.read_pair),
    "reranking": (Kind("Reranking", "map_at_1000", 1, _score_reranking), formats.read_reranking),
}
"""Folder of the evaluation data to the type of its tasks and the reader of its files."""
