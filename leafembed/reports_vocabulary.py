"""What pruning a vocabulary changed, as measured on held-out text; it goes through JSON and back as scores do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from leafembed.errors import NonFiniteError

__all__ = ["Retokenised", "VocabularyReport"]


@dataclass(frozen=True, slots=True)
class Retokenised:
    """How held-out texts of one language are tokenised before and after pruning.

    Attributes:
        lang: Language tag; ``all`` for the total.
        texts: Number of texts, at least 1.
        identical: Texts of which every token is the same as before.
        tokens_before: Tokens of all texts, without special ones.
        tokens_after: The same after pruning.
        fallback_before: Of these, tokens that stand for bytes or for unknown text.
        fallback_after: The same after pruning.
    """

    lang: str
    texts: int
    identical: int
    tokens_before: int
    tokens_after: int
    fallback_before: int
    fallback_after: int

    def __post_init__(self) -> None:
        if not 0 <= self.identical <= self.texts or self.texts < 1:
            raise ValueError(f"{self.lang}: got {self.identical} identical of {self.texts} texts, expected 0 to all")

    @property
    def identical_share(self) -> float:
        """Share of texts tokenised as before, 0 to 1."""
        return self.identical / self.texts

    @property
    def inflation(self) -> float:
        """Tokens after over tokens before; 1 is none."""
        return self.tokens_after / max(1, self.tokens_before)

    @property
    def fallback_shares(self) -> tuple[float, float]:
        """Share of fallback tokens before and after, 0 to 1."""
        return self.fallback_before / max(1, self.tokens_before), self.fallback_after / max(1, self.tokens_after)


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """What pruning a vocabulary changed, on texts that took no part in choosing the tokens.

    Attributes:
        size_before: Tokens of the tokenizer before.
        size_after: Tokens after.
        counted_texts: Texts whose tokens were counted to choose by.
        languages: One entry a language, that of most texts first.
        dev: Dev score of the teacher itself, without a prompt, with all tokens and with those that are kept; empty: not
            measured.
        dev_tasks: The tasks that it is the mean of.
    """

    size_before: int
    size_after: int
    counted_texts: int
    languages: tuple[Retokenised, ...]
    dev: tuple[float, ...] = ()
    dev_tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.dev) not in (0, 2):
            raise ValueError(f"dev scores of a pruned vocabulary: got {len(self.dev)}, expected two or none")
        if not all(map(math.isfinite, self.dev)):
            raise NonFiniteError(f"dev scores of a pruned vocabulary: got {self.dev}, expected finite numbers")
        if not self.languages:
            raise ValueError("got no held-out text, expected some: without it nothing is known of a pruned vocabulary")

    @property
    def total(self) -> Retokenised:
        """All languages together."""
        names = [f.name for f in fields(Retokenised) if f.name != "lang"]
        return Retokenised("all", *(sum(getattr(entry, name) for entry in self.languages) for name in names))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("dev", "dev_tasks")}
        return {**asdict(self), **lists, "languages": [asdict(entry) for entry in self.languages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VocabularyReport:
        """The inverse of :meth:`to_dict`."""
        lists = {name: tuple(data.get(name, ())) for name in ("dev", "dev_tasks")}
        return cls(**{**data, **lists, "languages": tuple(Retokenised(**entry) for entry in data["languages"])})
