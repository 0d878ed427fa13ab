"""Hard negatives by the teacher's own vectors, which are on disk already when this runs.

The condition is that of ``sentence_transformers.util.mine_hard_negatives`` with a relative margin. That miner encodes
texts with a model, holds all vectors of a corpus, and returns texts; here vectors come from the store by block, a pool
is of one language, and row numbers are wanted. Hence these few lines instead of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from leafembed.learn.links import first_of_text, meanings
from leafembed.learn.rows import Rows
from leafembed.types import FloatArray

__all__ = ["MAX_POOL", "mine_negatives"]

MAX_POOL = 20_000
"""Most texts of one language and role among which negatives are looked for; of more, so many are drawn."""

_BLOCK = 1_024  # pairs in one matrix product: 80 MB of cosines


def mine_negatives(
    rows: Rows, vectors: Callable[[NDArray[np.int64]], FloatArray], *, hardest: int, margin: float, seed: int
) -> NDArray[np.int64]:
    """Return the ``negative`` of each row ``(n,)``, -1 for none: those that rows have already, and mined ones.

    A text with a positive and no negative gets one. Candidates have the language and the prompt of the positive, do not
    mean the same (:func:`~leafembed.learn.links.meanings`), and have a cosine to the text of at most that of the
    positive, less ``margin`` of its magnitude. Of the ``hardest`` such candidates one is drawn. Where there is none,
    the text has no negative.

    Args:
        rows: Training rows.
        vectors: Teacher vectors ``(m, dim)``, unit length, of row numbers ``(m,)``.
        hardest: Candidates to draw from, at least 1; 1 takes the hardest.
        margin: Share of the positive's cosine, e.g. 0.05.
        seed: Seed of pools and draws.
    """
    pair, negative = rows.column("pair"), rows.column("negative")
    positives = np.flatnonzero(pair >= 0)
    positives = positives[negative[pair[positives]] < 0]
    roles: dict[tuple[str, str | None], int] = {}
    of_rows = zip(rows.column("lang"), rows.column("prompt_name"), strict=True)
    codes = np.fromiter((roles.setdefault(role, len(roles)) for role in of_rows), dtype=np.int64, count=len(rows))
    first = first_of_text(rows)
    meaning = meanings(pair, first)
    for role, code in roles.items():
        wanting = positives[codes[positives] == code]
        if not len(wanting):
            continue
        rng = np.random.default_rng([seed, *repr(role).encode()])
        pool = np.flatnonzero(codes == code)
        pool = pool[np.sort(np.unique(first[pool], return_index=True)[1])]
        if len(pool) > MAX_POOL:
            pool = np.sort(rng.choice(pool, MAX_POOL, replace=False))
        candidates = vectors(pool)
        for block in _blocks(wanting):
            texts = pair[block]
            anchors = vectors(texts)
            limits = np.sum(anchors * vectors(block), axis=1)
            limits = limits - np.abs(limits) * np.float32(margin)
            cosines = anchors @ candidates.T
            same = meaning[texts][:, None] == meaning[pool]
            cosines[same | (cosines > limits[:, None])] = -np.inf
            negative[texts] = _drawn(cosines, pool, hardest, rng)
    return negative


def _blocks(rows: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    return (rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK))


def _drawn(cosines: FloatArray, pool: NDArray[np.int64], hardest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One of the ``hardest`` finite candidates of each line, as a member of the pool; -1 where there is none."""
    k, lines = min(hardest, cosines.shape[1]), np.arange(len(cosines))
    best = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(cosines, best, axis=1)
    best = np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)
    there = np.isfinite(values).sum(axis=1)
    chosen = best[lines, rng.integers(np.maximum(there, 1))]
    return np.where(there > 0, pool[chosen], -1)
