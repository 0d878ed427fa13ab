"""Which training rows belong together, and where they lie in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leafembed.learn.rows import Rows
from leafembed.types import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Links", "pairs_in", "triplets_in"]


@dataclass(frozen=True, slots=True)
class Links:
    """Which training rows belong to each other.

    Attributes:
        pair: Row that each row is a positive of, ``(n,)``; -1: none.
        negative: Row that is a hard negative of each row, ``(n,)``; -1: none.
        group: Number of the set of rows with one meaning that a row belongs to, ``(n,)``: pairs, and pairs of pairs.
    """

    pair: NDArray[np.int64]
    negative: NDArray[np.int64]
    group: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Links:
        """Read them from the rows."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n, columns = len(rows), Rows.of(rows)
        pair, negative = columns.column("pair"), columns.column("negative")
        linked = np.flatnonzero(pair >= 0)
        edges = coo_array((np.ones(len(linked), dtype=np.int8), (linked, pair[linked])), shape=(n, n))
        return cls(pair, negative, connected_components(edges, directed=False)[1].astype(np.int64))


def pairs_in(rows: Sequence[int], links: Links) -> tuple[list[int], list[int]]:
    """Places in the batch of the two sides of its pairs: anchors, positives.

    One pair of a group, since a second one would be a negative of the same meaning.
    """
    place = {row: i for i, row in enumerate(rows)}
    found: dict[int, tuple[int, int]] = {}
    for i, row in enumerate(rows):
        anchor = _anchor(row, links)
        if anchor in place:
            found.setdefault(int(links.group[row]), (place[anchor], i))
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
