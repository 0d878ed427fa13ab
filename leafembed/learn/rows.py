"""Rows of a corpus in a memory-mapped Arrow file: millions of texts, of which only those asked for are in memory.

:class:`Rows` is a ``Sequence[Row]``, so whoever takes a tuple of rows takes it too. Whole columns other than the text
are small and come as arrays; texts come by index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import DataError, MissingExtraError
from leafembed.types import Row

if TYPE_CHECKING:
    import pyarrow

__all__ = ["BATCH_ROWS", "POINTERS", "Rows", "write_rows"]

BATCH_ROWS = 16_384
"""Rows that are in memory at once where a file is written or iterated over."""

POINTERS = ("pair", "negative", "target")
"""Columns that hold the index of another row."""

_BATCH_CHARACTERS = 2_000_000
_NAMES = tuple(field.name for field in fields(Row))
_values = attrgetter(*_NAMES)


class Rows(Sequence[Row]):
    """A sequence of rows over an Arrow table.

    Indices in ``pair``, ``negative`` and ``target`` count from the start of the whole sequence, also in a slice of it.

    Args:
        table: Columns named as the fields of :class:`~leafembed.types.Row`.
    """

    def __init__(self, table: pyarrow.Table) -> None:
        self.table = table
        chunks = table.column("text").chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)], dtype=np.int64)

    @classmethod
    def open(cls, path: Path) -> Rows:
        """Map a file of :func:`write_rows`.

        Raises:
            DataError: If it is missing or damaged.
        """
        arrow = _arrow()
        try:
            with arrow.memory_map(str(path)) as source:
                return cls(arrow.ipc.open_file(source).read_all())
        except (OSError, arrow.ArrowException, KeyError) as error:
            raise DataError(f"{path}: damaged corpus ({error}); delete {path.parent} and run again") from error

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """The same rows as a table in memory; rows that are one already are returned as they are."""
        if isinstance(rows, Rows):
            return rows
        return cls(_arrow().Table.from_batches([_batch(rows)]))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        """The row at an index, or a view of a slice."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Rows(self.table.slice(start, max(0, stop - start)))
            return Rows(self.table.take(_arrow().array(range(start, stop, step), type=_arrow().int64())))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index}: got an index beyond {len(self)} rows")
        return next(iter(_rows(self.table.slice(position, 1))))

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=BATCH_ROWS):
            yield from _rows(batch)

    def __eq__(self, other: object) -> bool:
        """Whether the other rows are equal in content and order, wherever they lie."""
        return self.table.equals(other.table) if isinstance(other, Rows) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def texts(self, indices: Iterable[int] | NDArray[np.int64]) -> list[str]:
        """The texts at indices from 0, in their order; others are not read."""
        wanted = np.fromiter(indices, dtype=np.int64)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"got rows {wanted.min()} to {wanted.max()}, expected 0 to {len(self) - 1}")
        chunks = self.table.column("text").chunks
        which = np.searchsorted(self._starts, wanted, side="right") - 1
        places = (wanted - self._starts[which]).tolist()
        return [chunks[chunk][place].as_py() for chunk, place in zip(which.tolist(), places, strict=True)]

    def column(self, name: str) -> NDArray[Any]:
        """A whole column ``(n,)``: ``pair``, ``negative`` and ``target`` as int64 with -1 for none, others as objects.

        Equal strings are one object, so ``lang`` and ``prompt_name`` cost 8 bytes a row. The ``text`` column is
        refused, since it need not fit in memory: use :meth:`texts` or iterate.
        """
        if name not in _NAMES[1:]:
            raise ValueError(f"got column {name!r}, expected one of {', '.join(_NAMES[1:])}")
        column = self.table.column(name)
        if name in POINTERS:
            pointers: NDArray[np.int64] = column.fill_null(-1).to_numpy().astype(np.int64)
            return pointers
        values = np.empty(len(self), dtype=object)
        shared: dict[str | None, str | None] = {}
        for start, chunk in zip(self._starts, column.chunks, strict=False):
            names = [shared.setdefault(value, value) for value in chunk.to_pylist()]
            values[start : start + len(chunk)] = names
        return values

    def lengths(self) -> NDArray[np.int64]:
        """Characters of each text, ``(n,)``."""
        import pyarrow.compute

        counts = pyarrow.compute.utf8_length(self.table.column("text"))
        result: NDArray[np.int64] = counts.to_numpy().astype(np.int64)
        return result

    def with_pointers(self, name: str, values: NDArray[np.int64]) -> Rows:
        """The same rows with another ``pair``, ``negative`` or ``target``, int64 ``(n,)`` with -1 for none."""
        if name not in POINTERS or values.shape != (len(self),):
            raise ValueError(f"got {name!r} {values.shape}, expected one of {', '.join(POINTERS)} and ({len(self)},)")
        arrow = _arrow()
        array = arrow.array(values, type=arrow.int64(), mask=values < 0)
        return Rows(self.table.set_column(_NAMES.index(name), _schema().field(name), array))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to an Arrow file, at most :data:`BATCH_ROWS` or 2 million characters in memory at once."""
    arrow = _arrow()
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_file(sink, _schema()) as writer:
        part: list[Row] = []
        characters = 0
        for row in rows:
            part.append(row)
            characters += len(row.text)
            if len(part) == BATCH_ROWS or characters >= _BATCH_CHARACTERS:
                writer.write_batch(_batch(part))
                part, characters = [], 0
        if part:
            writer.write_batch(_batch(part))


def _rows(table: pyarrow.Table | pyarrow.RecordBatch) -> Iterator[Row]:
    columns = [table.column(name).to_pylist() for name in _NAMES]
    yield from (Row(*values) for values in zip(*columns, strict=True))


def _batch(rows: Sequence[Row]) -> pyarrow.RecordBatch:
    columns = zip(*map(_values, rows), strict=True) if rows else ([] for _ in _NAMES)
    schema = _schema()
    arrays = [_arrow().array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return _arrow().record_batch(arrays, schema=schema)


def _schema() -> pyarrow.Schema:
    arrow = _arrow()
    text, pointer = arrow.string(), arrow.int64()
    kinds = [(name, pointer if name in POINTERS else text) for name in _NAMES]
    return arrow.schema(kinds)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    return pyarrow
