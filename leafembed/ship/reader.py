"""Reads texts as a model does: prompt, tokens, the cut, or windows instead of the cut."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leafembed.ship.beginnings import Beginnings, slices
from leafembed.ship.folder import EncoderConfig
from leafembed.ship.stream import WINDOW_CHARACTERS, Window, windows
from leafembed.ship.texts import Ids, check_texts, require_overlap, split_text

__all__ = ["READ_CHARACTERS", "Reader"]

READ_CHARACTERS = 16
"""Characters that are read of a long text for each token of the limit; more of it only where they gave too few."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What stands before a model.

    Attributes:
        tokenizer: A ``tokenizers.Tokenizer`` that cuts at the model's limit.
        config: What the tokenizer does not say.
    """

    tokenizer: Any
    config: EncoderConfig
    _beginnings: Beginnings = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_beginnings", Beginnings(self.tokenizer))

    def tokenize(self, texts: Sequence[str], prompt: str) -> tuple[list[Ids], list[bool]]:
        """Return the token ids that the model reads of each text ``(n_tokens,)`` int64, and whether it was cut.

        Args:
            texts: Any number.
            prompt: Put before each.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold.
        """
        check_texts(texts)
        cuts = self.tokenizer.truncation or {}
        limit = cuts["max_length"] if cuts.get("direction") == "right" else None
        size = sys.maxsize if limit is None else READ_CHARACTERS * limit
        result: list[Ids] = []
        cut: list[bool] = []
        for part in slices(texts, size, WINDOW_CHARACTERS):  # in smaller ones short texts take a quarter longer
            ids, was_cut = self._read([prompt + text for text in texts[part]], size)
            result += ids
            cut += was_cut
        return result, cut

    def _read(self, texts: Sequence[str], size: int) -> tuple[list[Ids], list[bool]]:
        """Ids of each text, and whether it was cut; ``size``: characters that are read first."""
        parts = [text if len(text) <= size else self._beginnings.of(text, size) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(parts, add_special_tokens=self.config.add_special_tokens)
        # One attended padding token stands for a text of no tokens: a mean over nothing would be NaN.
        ids = [np.array(encoding.ids or [self.config.pad_token_id], np.int64) for encoding in encodings]
        cut = [bool(encoding.overflowing) for encoding in encodings]
        for place, part in enumerate(parts):
            if len(part) < len(texts[place]) and not cut[place]:
                (ids[place],), (cut[place],) = self._read([texts[place]], 2 * len(part))
        return ids, cut

    def windows(self, texts: Iterable[str], prompt: str, overlap: int | None) -> Iterator[Window]:
        """Yield the texts tokenised, in windows of bounded size.

        Args:
            texts: Read as they are needed.
            prompt: Put before each.
            overlap: Tokens that the pieces of a text share which is too long; ``None``: it is cut.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold, or pieces with this overlap would not advance.
        """
        if overlap is not None:  # else the first long text would say so, perhaps after hours
            require_overlap(self.tokenizer, overlap, prompt=prompt, special=self.config.add_special_tokens)
        first = 0
        for part in windows(texts):
            check_texts(part, first=first)
            ids, was_cut = self.tokenize(part, prompt)
            if overlap is None or not any(was_cut):
                yield Window(ids, None, len(part), sum(was_cut))
            else:
                yield self._in_pieces(part, ids, was_cut, prompt, overlap)
            first += len(part)

    def _in_pieces(
        self, texts: Sequence[str], ids: Sequence[Ids], was_cut: Sequence[bool], prompt: str, overlap: int
    ) -> Window:
        special = self.config.add_special_tokens
        pieces: list[Ids] = []
        owners: list[int] = []
        still_cut = 0
        for row, text in enumerate(texts):
            here = [ids[row]]
            if was_cut[row]:
                parts = split_text(self.tokenizer, text, prompt=prompt, overlap=overlap, special=special)
                here, cut = self.tokenize(parts, prompt)
                still_cut += any(cut)
            pieces += here
            owners += [row] * len(here)
        return Window(pieces, np.array(owners, dtype=np.int64), len(texts), still_cut)
