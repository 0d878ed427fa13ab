"""Finds the stretches of text over which the tokens of two tokenizers can be compared.

Both cut a text at characters; where both cut, a stretch ends. A word that one of them takes whole and the other in
three pieces is one stretch. What stands after the last common cut of a text belongs to none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leafembed.learn.token_store import TokenVectors

__all__ = ["Stretches", "mean_by", "stretches"]

_FAR = 1 << 32  # more characters than any text has


@dataclass(frozen=True, slots=True)
class Stretches:
    """Stretches of a batch, numbered over all its texts.

    Attributes:
        n: How many there are.
        places: Student tokens that belong to one, as places in the flat batch ``(P,)``.
        student: Stretch of each of these ``(P,)``.
        teacher: Stretch of each teacher token ``(T,)``; -1: none.
    """

    n: int
    places: NDArray[np.int64]
    student: NDArray[np.int64]
    teacher: NDArray[np.int64]


def stretches(student_ends: NDArray[np.int64], tokens: TokenVectors) -> Stretches:
    """Stretches of a batch.

    Args:
        student_ends: Characters up to the end of each student token ``(B, tokens)``; 0: not of the text.
        tokens: Teacher tokens of the same texts; a text may have none.
    """
    width = student_ends.shape[1]
    ends = student_ends.reshape(-1)
    places = np.flatnonzero(ends > 0)
    mine = places // width * _FAR + ends[places]
    theirs = tokens.texts * _FAR + tokens.ends
    cuts = np.intersect1d(mine, theirs)
    student, teacher = _stretch(mine, cuts), _stretch(theirs, cuts)
    within = student >= 0
    return Stretches(len(cuts), places[within], student[within], teacher)


def _stretch(keys: NDArray[np.int64], cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the first cut at or after each key within its text; -1: none."""
    if not len(cuts):
        return np.full(len(keys), -1, dtype=np.int64)
    found = np.searchsorted(cuts, keys)
    last = np.minimum(found, len(cuts) - 1)
    return np.where((found < len(cuts)) & (cuts[last] // _FAR == keys // _FAR), found, -1)


def mean_by(vectors_PD: Tensor, groups: NDArray[np.int64], n: int) -> Tensor:
    """Means ``(n, D)`` of the vectors of each group; every group has one at least."""
    index = torch.from_numpy(groups).to(vectors_PD.device)
    sums = torch.zeros(n, vectors_PD.shape[1], device=vectors_PD.device).index_add(0, index, vectors_PD)
    counts = torch.bincount(index, minlength=n).unsqueeze(1)
    return sums / counts
