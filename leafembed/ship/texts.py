"""From texts to batches: what is a text, its tokenizer, windows of a long text, texts of one length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import ModelError, first_line

__all__ = ["Ids", "batches_by_length", "check_texts", "open_tokenizer", "padded", "require_overlap", "split_text"]

Ids = NDArray[np.int64]

_SHORTEST = 2
"""Shortest batch in tokens: graphs are traced with at least 2, since tracers treat a dimension of 1 as fixed."""

_SLACK = 4
"""Tokens of a window left free: cut out of its text, it may take one or two more than it did there."""


def open_tokenizer(path: Path, max_seq_length: int | None) -> Any:
    """Open a ``tokenizer.json`` that pads nothing and cuts at ``max_seq_length`` tokens; ``None``: it cuts nothing.

    Raises:
        ModelError: If it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise ModelError(f"{path}: not a tokenizer: {first_line(error)}") from error
    direction = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()  # we pad each batch to its own longest
    tokenizer.no_truncation()
    if max_seq_length is not None:
        tokenizer.enable_truncation(max_seq_length, direction=direction)
    return tokenizer


def check_texts(texts: Sequence[str], *, first: int = 0) -> None:
    """Raise a ``ValueError`` naming the first item that is not a text that UTF-8 can hold; ``first``: its number."""
    if isinstance(texts, (str, bytes)):
        raise ValueError("texts: got a single text, expected a list of texts; pass [text]")
    for index, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}]: got {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{index}]: a lone surrogate at character {error.start} is not text") from error


def require_overlap(tokenizer: Any, overlap: int, *, prompt: str, special: bool) -> int:
    """Return how many tokens of a text a window holds; the arguments are those of :func:`split_text`.

    Raises:
        ValueError: If windows with this overlap would not advance.
    """
    limit = int(tokenizer.truncation["max_length"])
    room = limit - len(tokenizer.encode(prompt, add_special_tokens=special).ids) - min(_SLACK, limit // 8)
    if not 0 <= overlap < room:
        raise ValueError(f"overlap: got {overlap} tokens, expected 0 to {room - 1}: a window holds {room}")
    return room


def split_text(tokenizer: Any, text: str, *, prompt: str, overlap: int, special: bool) -> list[str]:
    """Return windows of a text, each of which the model reads whole, in order.

    Args:
        tokenizer: As :func:`open_tokenizer` gives it, with a limit.
        text: Longer than the limit.
        prompt: What each window will have before it.
        overlap: Tokens that a window shares with the one before.
        special: Whether special tokens will be added.

    Raises:
        ValueError: If windows with this overlap would not advance.
    """
    room = require_overlap(tokenizer, overlap, prompt=prompt, special=special)
    whole = tokenizer.encode(text, add_special_tokens=False)
    # What was cut is kept by the tokenizer, in pieces; a cut on the left has them in another order.
    spans = sorted(span for part in (whole, *whole.overflowing) for span in part.offsets)
    windows = []
    for start in range(0, max(1, len(spans) - overlap), room - overlap):
        inside = spans[start : start + room]
        windows.append(text[inside[0][0] : max(end for _, end in inside)])
    return windows


def batches_by_length(ids: Sequence[Ids], size: int, budget: int | None = None) -> Iterator[NDArray[np.intp]]:
    """Yield indices of texts of about the same number of tokens, longest first.

    Args:
        ids: Token ids of each text.
        size: Most texts of a batch.
        budget: Most tokens of a batch, padding included, which one text alone may exceed; ``None``: no limit.
    """
    # Longest first: too little memory shows at once.
    lengths = np.array([len(tokens) for tokens in ids], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        fitting = size if budget is None else max(1, min(size, budget // max(1, int(lengths[order[start]]))))
        yield order[start : start + fitting]
        start += fitting


def padded(ids: Sequence[Ids], pad: int, *, left: bool) -> tuple[Ids, Ids]:
    """Return token ids and attention mask of a batch, both ``(n_texts, longest)``; ``left``: where the filling goes."""
    longest = max(_SHORTEST, *map(len, ids))
    input_ids = np.full((len(ids), longest), pad, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, tokens in enumerate(ids):
        place = slice(longest - len(tokens), None) if left else slice(len(tokens))
        input_ids[row, place] = tokens
        mask[row, place] = 1
    return input_ids, mask
