"""Where a student sees other neighbours than its teacher: examples that people can read.

A score says how much is lost; the texts say what. No labels are needed, only both models' vectors of the same texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from leafembed.judge.metrics import rank
from leafembed.types import FloatArray, check_vectors

__all__ = ["disagreements"]


def disagreements(
    texts: Sequence[str],
    langs: Sequence[str],
    teacher: FloatArray,
    student: FloatArray,
    *,
    neighbours: int = 5,
    examples: int = 20,
) -> dict[str, Any]:
    """Return the texts whose nearest neighbour, as the student sees it, the teacher finds farthest from the truth.

    The *gap* of a text is the teacher's cosine to the teacher's own nearest neighbour less the teacher's cosine to the
    student's: 0 where both choose the same, at most 2. The *overlap* is the share of the teacher's nearest that are
    among the student's too.

    Args:
        texts: At least two different texts.
        langs: Language of each.
        teacher: ``(n, dim)``, unit length.
        student: ``(n, dim')``, unit length.
        neighbours: Nearest texts to compare; fewer where there are not as many.
        examples: Most texts to return, that of the largest gap first; texts without a gap are left out.

    Returns:
        ``texts``, ``neighbours``; ``overlap`` and ``gap``, means over all texts; ``by_language`` (``lang``, ``texts``,
        ``overlap``, ``gap``), that of most texts first; ``examples``: ``text``, ``lang``, ``gap``, ``overlap``,
        and ``teacher`` and ``student``: their nearest, as ``text``, ``lang`` and each one's own ``cosine``.

    Raises:
        ValueError: If there are fewer than two texts, or not as many languages and vectors.
        NonFiniteError: If a vector is not finite or not of unit length.
    """
    n = len(texts)
    if n < 2 or len(langs) != n:
        raise ValueError(f"got {n} texts and {len(langs)} languages, expected at least 2 and as many")
    k = min(neighbours, n - 1)
    seen = {
        name: _nearest(check_vectors(vectors, n=n, what=f"the {name}'s vectors"), k)
        for name, vectors in (("teacher", teacher), ("student", student))
    }
    own, other = (np.sum(teacher * teacher[places[:, 0]], axis=1) for places in seen.values())
    gaps = np.maximum(own - other, 0.0)
    overlap = np.array([len(set(a) & set(b)) / k for a, b in zip(*(p.tolist() for p in seen.values()), strict=True)])

    def shown(name: str, vectors: FloatArray, i: int) -> list[dict[str, Any]]:
        return [
            {"text": texts[j], "lang": langs[j], "cosine": float(vectors[i] @ vectors[j])}
            for j in seen[name][i].tolist()
        ]

    chosen = [int(i) for i in np.argsort(-gaps, kind="stable")[:examples] if gaps[i] > 0]
    return {
        "texts": n,
        "neighbours": k,
        "overlap": float(overlap.mean()),
        "gap": float(gaps.mean()),
        "by_language": _by_language(langs, overlap, gaps),
        "examples": [
            {
                "text": texts[i],
                "lang": langs[i],
                "gap": float(gaps[i]),
                "overlap": float(overlap[i]),
                "teacher": shown("teacher", teacher, i),
                "student": shown("student", student, i),
            }
            for i in chosen
        ],
    }


def _nearest(vectors: FloatArray, k: int) -> Any:
    """Places of the ``k`` nearest other texts of each text, ``(n, k)``, nearest first."""
    found = rank(vectors, vectors, k=k + 1)
    own = np.arange(len(vectors))[:, None]
    # A text may not be its own first where another has the same vector; then the last of k + 1 goes.
    drop = np.where((found == own).any(axis=1), (found == own).argmax(axis=1), k)
    keep = np.ones_like(found, dtype=bool)
    keep[np.arange(len(vectors)), drop] = False
    return found[keep].reshape(len(vectors), k)


def _by_language(langs: Sequence[str], overlap: Any, gaps: Any) -> list[dict[str, Any]]:
    of: dict[str, list[int]] = {}
    for i, lang in enumerate(langs):
        of.setdefault(lang, []).append(i)
    ranked = sorted(of.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"lang": lang, "texts": len(rows), "overlap": float(overlap[rows].mean()), "gap": float(gaps[rows].mean())}
        for lang, rows in ranked
    ]
