"""What a model is judged by besides its scores: overlap of training with evaluation text, and how it behaves.

Both are frozen, check themselves when built, and are stored in the manifest, from which the verdict can be had again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from leafembed.errors import NonFiniteError

__all__ = ["Behaviour", "Contamination"]


@dataclass(frozen=True, slots=True)
class Contamination:
    """How much of one evaluation set the sources of training text hold. What overlaps is dropped before training.

    Attributes:
        task: Task id.
        items: Different scored items.
        exact: Items of which a text equals a training text.
        ngram: Further items of which a text shares an n-gram with one.
        rows_exact: Training records that equal a text of the set, documents and probe sets included.
        rows_ngram: Further records that share an n-gram with one.
    """

    task: str
    items: int
    exact: int
    ngram: int
    rows_exact: int
    rows_ngram: int

    def __post_init__(self) -> None:
        if self.items < 1 or min(self.exact, self.ngram, self.rows_exact, self.rows_ngram) < 0:
            raise ValueError(f"contamination of {self.task}: got {self}, expected an item at least, no count below 0")
        if self.exact + self.ngram > self.items:
            raise ValueError(
                f"contamination of {self.task}: got {self.exact} + {self.ngram} touched items of {self.items}"
            )

    @property
    def share(self) -> float:
        """Share of the items that are touched, 0 to 1."""
        return (self.exact + self.ngram) / self.items

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the share included."""
        return {**asdict(self), "share": self.share}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Contamination:
        """The inverse of :meth:`to_dict`; a share that is not that of the counts is a ``ValueError``."""
        found = cls(**{name: value for name, value in data.items() if name != "share"})
        if data["share"] != found.share:
            raise ValueError(f"contamination of {found.task}: got share {data['share']}, the counts give {found.share}")
        return found


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How an encoder behaves where no task looks.

    Attributes:
        texts: Texts that it was measured on.
        batch_cosine: Least cosine between the vector of a text alone and in a batch with longer ones, -1 to 1.
        tail: Mean of 1 - cosine between a text and the same text with another end, 0 to 2.
        teacher_tail: The same of the teacher.
    """

    texts: int
    batch_cosine: float
    tail: float
    teacher_tail: float

    def __post_init__(self) -> None:
        for name in ("batch_cosine", "tail", "teacher_tail"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} of a model's behaviour is {value}: it must be a number")
        if self.texts < 1:
            raise ValueError(f"behaviour observed on {self.texts} texts: an empty measurement is an error")
