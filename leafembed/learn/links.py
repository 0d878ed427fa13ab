"""Which training rows belong together, and where they lie in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leafembed.learn.rows import Rows
from leafembed.text import normalise_text, text_hash
from leafembed.types import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Links", "first_of_text", "meanings", "pairs_in", "triplets_in"]


@dataclass(frozen=True, slots=True)
class Links:
    """Which training rows belong to each other.

    Attributes:
        pair: Row that each row is a positive of, ``(n,)``; -1: none.
        negative: Row that is a hard negative of each row, ``(n,)``; -1: none.
        group: Number of the set of linked rows that a row belongs to, ``(n,)``: a text and its positives.
        meaning: Number of the set of rows with one meaning that a row belongs to, ``(n,)``: groups that share a text,
            such as an English one and its translations into several languages.
    """

    pair: NDArray[np.int64]
    negative: NDArray[np.int64]
    group: NDArray[np.int64]
    meaning: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Links:
        """Read them from the rows."""
        columns = Rows.of(rows)
        pair = columns.column("pair")
        group, meaning = _components(_linked(pair), len(rows)), meanings(pair, first_of_text(columns))
        return cls(pair, columns.column("negative"), group, meaning)

    def after(self, n: int) -> Links:
        """The same links of rows that follow ``n`` others, which have none."""
        none, alone = np.full(n, -1), np.arange(n)
        pair, negative = (np.where(column >= 0, column + n, -1) for column in (self.pair, self.negative))
        group, meaning = (np.concatenate([alone, column + n]) for column in (self.group, self.meaning))
        return Links(np.concatenate([none, pair]), np.concatenate([none, negative]), group, meaning)


def first_of_text(rows: Rows) -> NDArray[np.int64]:
    """The first row that holds the same text as each row, ``(n,)``; case and white space do not count."""
    hashes = np.fromiter((text_hash(normalise_text(row.text)) for row in rows), dtype=np.uint64, count=len(rows))
    first, which = np.unique(hashes, return_index=True, return_inverse=True)[1:]
    result: NDArray[np.int64] = first[which].astype(np.int64)
    return result


def meanings(pair: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the set of rows with one meaning that each row belongs to, ``(n,)``.

    Rows are of one set if they are a pair, hold the same text, or are linked by a chain of such rows.

    Args:
        pair: Row that each row is a positive of; -1: none.
        first: What :func:`first_of_text` gives.
    """
    same = np.stack([np.arange(len(first)), first])
    return _components(np.concatenate([_linked(pair), same], axis=1), len(first))


def _linked(pair: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs as edges ``(2, n_pairs)``."""
    rows = np.flatnonzero(pair >= 0)
    return np.stack([rows, pair[rows]])


def _components(edges: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Number of the connected component of each of ``n`` rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1])), shape=(n, n))
    components: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return components


def pairs_in(rows: Sequence[int], links: Links) -> tuple[list[int], list[int]]:
    """Places in the batch of the two sides of its pairs: anchors, positives.

    One pair of a meaning, since a second one would be a negative that means the same.
    """
    place = {row: i for i, row in enumerate(rows)}
    found: dict[int, tuple[int, int]] = {}
    for i, row in enumerate(rows):
        anchor = _anchor(row, links)
        if anchor in place:
            found.setdefault(int(links.meaning[row]), (place[anchor], i))
    return [anchor for anchor, _ in found.values()], [positive for _, positive in found.values()]


def triplets_in(rows: Sequence[int], links: Links) -> tuple[list[int], list[int], list[int]]:
    """Places in the batch of the three sides of its triplets: anchors, positives, hard negatives."""
    place = {row: i for i, row in enumerate(rows)}
    found: list[tuple[int, int, int]] = []
    for i, row in enumerate(rows):
        anchor = _anchor(row, links)
        negative = int(links.negative[anchor]) if anchor in place else -1
        if negative in place:
            found.append((place[anchor], i, place[negative]))
    anchors, positives, negatives = (list(side) for side in zip(*found, strict=True)) if found else ([], [], [])
    return anchors, positives, negatives


def _anchor(row: int, links: Links) -> int:
    """Row that a row is a positive of; -1 for none, and for validation rows, which follow the training rows."""
    return int(links.pair[row]) if row < len(links.pair) else -1
