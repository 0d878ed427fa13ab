"""Any number of texts in bounded memory: windows of them, each tokenised while the one before is embedded.

A window is sorted by length within itself. Which texts share one depends on their place alone, so that a stream that is
taken up again at the beginning of a window gives the same vectors.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError
from leafembed.ship.texts import Ids
from leafembed.types import FloatArray

__all__ = ["WINDOW_CHARACTERS", "WINDOW_TEXTS", "Encoded", "Window", "ahead", "pooled", "unit", "windows"]

WINDOW_TEXTS = 4_096
"""Most texts of a window; token ids are kept, the tokenizer's larger bookkeeping is not."""

WINDOW_CHARACTERS = 1 << 20
"""A window ends with the text that brings it to this many characters."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Vectors of some texts in a row.

    Attributes:
        vectors: ``(n_texts, dim)`` float32.
        cut: Texts that the model did not read to their end.
    """

    vectors: FloatArray
    cut: int


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Texts in a row, tokenised.

    Attributes:
        ids: Token ids of each piece.
        owners: Number of the text that each piece is of, ascending ``(n_pieces,)``; ``None``: a piece is a text.
        n: Texts.
        cut: Texts that the model will not read to their end.
    """

    ids: list[Ids]
    owners: NDArray[np.int64] | None
    n: int
    cut: int


def windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of bounded length; what is no text is passed on, to be refused by who reads it."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) == WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def pooled(vectors: FloatArray, window: Window) -> FloatArray:
    """Return one unit vector a text ``(n_texts, dim)``: the mean over its pieces, by their tokens."""
    if window.owners is None:
        return vectors
    sums = np.zeros((window.n, vectors.shape[1]), dtype=np.float32)
    weights = np.array([len(ids) for ids in window.ids], dtype=np.float32)
    np.add.at(sums, window.owners, vectors * weights[:, None])
    lengths: FloatArray = np.linalg.norm(sums, axis=1, keepdims=True)
    lengths[lengths == 0] = 1  # no direction: refused by who checks the vectors
    sums /= lengths
    return sums


def ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yield the items of an iterator that works in a thread, one item ahead; its errors are raised here.

    An iterator of one item costs no thread.
    """
    beginning = []
    for item in items:
        beginning.append(item)
        if len(beginning) == 2:
            break
    if len(beginning) < 2:
        yield from beginning
        return
    yield from _ahead(chain(beginning, items))


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    ready: queue.Queue[tuple[_T | None, BaseException | None] | None] = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(entry: tuple[_T | None, BaseException | None] | None) -> None:
        while not ended.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, the reader must not wait for ever
            put((None, error))

    thread = threading.Thread(target=work, name="leaf-tokenizer", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            item, error = entry
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item may be None only where T allows it
    finally:
        ended.set()
        thread.join()


def unit(vectors: FloatArray, what: str) -> FloatArray:
    """The vectors ``(n, dim)`` scaled to unit length.

    Raises:
        NonFiniteError: If one is 0 and has no direction; says ``what`` they are.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        row = int((norms == 0).argmax())
        raise NonFiniteError(
            f"{what}: the first {vectors.shape[1]} values of row {row} are all 0 and have no direction"
        )
    unit: FloatArray = vectors / norms
    return unit
