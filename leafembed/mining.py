"""Hard negatives for the pairs of a corpus, mined with the teacher's vectors and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leafembed.learn.cache import VectorStore
from leafembed.learn.negatives import MAX_POOL, mine_negatives
from leafembed.learn.rows import Rows
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.stages import fingerprint, once
from leafembed.types import Corpus, FloatArray

__all__ = ["with_negatives"]


def with_negatives(
    recipe: Recipe, corpus: Corpus, store: VectorStore, positions: Sequence[NDArray[np.int64]], *, targets_id: str
) -> Corpus:
    """The corpus with mined negatives, which its fingerprint then covers; mined once for the same rows and vectors.

    Args:
        recipe: How they are mined, by ``[data]``.
        corpus: Its pairs without a negative get one.
        store: The teacher's vectors.
        positions: Where in it the vector of each training row and of each validation row lies.
        targets_id: What the vectors depend on besides the texts.
    """
    how = {"hardest": recipe.data.mine_negatives, "margin": recipe.data.negative_margin, "seed": recipe.seed}
    folder = recipe.cache_dir / "negatives" / fingerprint(corpus.fingerprint, targets_id, how, MAX_POOL)
    parts = [Rows.of(corpus.train), Rows.of(corpus.validation)]

    def build(target: Path) -> None:
        target.mkdir()
        for i, rows in enumerate(parts):
            say(f"mining negatives among {len(rows):,} rows")
            found = mine_negatives(
                rows,
                partial(_take, store, positions[i]),
                hardest=recipe.data.mine_negatives,
                margin=recipe.data.negative_margin,
                seed=recipe.seed,
            )
            np.save(target / f"{i}.npy", found)

    once(folder, folder.name, build)
    found = [np.load(folder / f"{i}.npy", allow_pickle=False) for i in range(len(parts))]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in found)).hexdigest()
    mined = sum(
        int((array >= 0).sum() - (rows.column("negative") >= 0).sum()) for array, rows in zip(found, parts, strict=True)
    )
    train, validation = (rows.with_pointers("negative", array) for rows, array in zip(parts, found, strict=True))
    return replace(
        corpus,
        train=train,
        validation=validation,
        counts={**corpus.counts, "negatives mined": mined},
        fingerprint=fingerprint(corpus.fingerprint, digest),
    )


def _take(store: VectorStore, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> FloatArray:
    return store.take(positions[rows])
