"""Brings the planned batches to the student: texts with its prompts, cut to the limit of the phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from leafembed.errors import ModelError
from leafembed.learn.batches import Plan
from leafembed.learn.rows import Rows
from leafembed.learn.tokens import token_ends
from leafembed.types import Corpus, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

__all__ = ["Collator", "Item", "PlannedBatches", "Texts", "Visit", "count_tokens"]

_CHUNK = 1024
"""Texts tokenised at once while counting."""

Visit = tuple[int, int]
"""Row number and token limit."""

Item = tuple[int, int, str, int]
"""Row number, token limit, text with prompt, and how many characters of it are the prompt."""


class Texts(Dataset[Item]):
    """The corpus as the student reads it, read row by row; training rows first, then validation rows.

    Args:
        corpus: Training and validation text.
        prompts: The student's own prompts, by name.
    """

    def __init__(self, corpus: Corpus, prompts: Mapping[str, str]) -> None:
        self.corpus = corpus
        self.prompts = prompts
        self._names: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.corpus.train) + len(self.corpus.validation)

    def __getitem__(self, visit: Visit) -> Item:
        """What a batch needs of one row."""
        return self.__getitems__([visit])[0]

    def __getitems__(self, visits: Sequence[Visit]) -> list[Item]:
        """As :meth:`__getitem__`, of a whole batch: its texts are fetched at once, each part of the corpus in turn."""
        numbers = np.array([number for number, _ in visits])
        first = len(self.corpus.train)
        found: dict[int, tuple[str, int]] = {}
        for rows, chosen, start in ((self.corpus.train, numbers < first, 0),
                                    (self.corpus.validation, numbers >= first, first)):  # fmt: skip
            places = numbers[chosen]
            found |= dict(zip(places.tolist(), self._read(rows, places - start), strict=True))
        return [(number, limit, *found[number]) for number, limit in visits]

    def text(self, number: int) -> str:
        """The text of a row with its prompt."""
        return self[(number, 0)][2]

    def _read(self, rows: Sequence[Row], places: NDArray[np.int64]) -> list[tuple[str, int]]:
        if isinstance(rows, Rows):
            if id(rows) not in self._names:
                self._names[id(rows)] = rows.column("prompt_name")
            names, texts = self._names[id(rows)][places].tolist(), rows.texts(places)
        else:
            chosen = [rows[i] for i in places.tolist()]
            names, texts = [row.prompt_name for row in chosen], [row.text for row in chosen]
        prompts = [self.prompts.get(name or "", "") for name in names]
        return [(prompt + text, len(prompt)) for prompt, text in zip(prompts, texts, strict=True)]


class PlannedBatches(BatchSampler):
    """The plan as a batch sampler: each batch a list of (row, token limit), so that skipping keeps the phase."""

    def __init__(self, plan: Plan, batch_size: int) -> None:
        self.plan = plan
        self.batch_size = batch_size
        self.drop_last = False

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the batches in order."""
        for i in range(len(self.plan)):
            rows, limit = self.plan[i]
            yield [(row, limit) for row in rows.tolist()]


class Collator:
    """Turns planned texts into the student's input; the row numbers are the labels.

    Args:
        model: The student; its length limit is lowered for the batch only.
        ends: Whether the ends of tokens are wanted.
    """

    valid_label_columns = ("label",)

    def __init__(self, model: SentenceTransformer, ends: bool = False) -> None:
        self.model = model
        self.ends = ends

    def __call__(self, batch: Sequence[Item]) -> dict[str, Any]:
        """Tensors ``sentence_...`` of the texts, padded to the longest, and ``label`` of shape ``(B,)``."""
        rows, limits, texts, prompts = zip(*batch, strict=True)
        full = self.model.max_seq_length
        cuts = isinstance(full, int)  # a token table reads any length
        try:
            if cuts:
                self.model.max_seq_length = min(full, *limits)
            features = self.model.preprocess(list(texts))
            if self.ends:
                ends = token_ends(self.model, features["input_ids"], texts, prompts)
                features["token_ends"] = torch.from_numpy(ends)
        finally:
            if cuts:
                self.model.max_seq_length = full
        return {f"sentence_{name}": value for name, value in features.items()} | {"label": torch.tensor(rows)}


def count_tokens(texts: Texts, model: SentenceTransformer, store: Path) -> NDArray[np.int32]:
    """Tokens of every row with special tokens and prompt, not cut, ``(n_rows,)``; counted once and kept in ``store``.

    Raises:
        ModelError: If the student has no fast tokenizer.
    """
    if store.is_file():
        kept: NDArray[np.int32] = np.load(store, allow_pickle=False)
        if len(kept) == len(texts):
            return kept
    tokenizer = model.tokenizer
    fast = getattr(tokenizer, "_tokenizer", tokenizer)
    if not hasattr(fast, "encode_batch_fast"):
        raise ModelError(f"got a student with {type(tokenizer).__name__}, expected a fast tokenizer")
    fast.no_truncation()
    fast.no_padding()  # left on by the model's own last call, it would make all texts of a chunk equally long
    special = isinstance(model.max_seq_length, int)  # a token table adds none
    counts = np.empty(len(texts), dtype=np.int32)
    for start in range(0, len(texts), _CHUNK):
        numbers = range(start, min(start + _CHUNK, len(texts)))
        chunk = [text for _, _, text, _ in texts.__getitems__([(i, 0) for i in numbers])]
        encoded = fast.encode_batch_fast(chunk, add_special_tokens=special)
        counts[start : start + len(encoded)] = [len(item) for item in encoded]
    partial = store.with_name(f".{store.name}")
    with partial.open("wb") as file:
        np.save(file, counts, allow_pickle=False)
    partial.replace(store)
    return counts
