"""Writes vectors to a file that grows over hours and survives being killed.

    .NAME.partial/vectors      the rows so far, float32, behind room for the head of a .npy file
    .NAME.partial/state.json   how many of them count, written after they are on the disk
    NAME                       appears when complete, in one step

``.npy`` is the rows themselves with their head filled in. ``.parquet`` (a column ``embedding``) and ``.jsonl`` (a list
a line) are written from the rows at the end, since neither can be taken up again in the middle.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from leafembed.errors import DataError, MissingExtraError
from leafembed.ship.alone import alone
from leafembed.types import FloatArray

__all__ = ["FORMATS", "Progressed", "VectorsFile", "json_line"]

_HEAD = 128
"""Bytes of the head of a ``.npy`` file, a multiple of 64."""

_ROWS = 8_192
"""Rows that are converted at once."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a file has come.

    Attributes:
        inputs: Hash of everything that its vectors depend on but the texts.
        texts: Rows on the disk.
        cut: Texts of these that were cut.
        digest: Hash of these texts.
    """

    inputs: str
    texts: int = 0
    cut: int = 0
    digest: str = ""


class VectorsFile:
    """A file of vectors that is being written.

    Attributes:
        path: Where it will be.
        dim: Length of a row.
        state: How far it has come; more than nothing if an interrupted call is taken up.
    """

    def __init__(self, path: Path, *, dim: int, inputs: str) -> None:
        """Open it, or take up what an interrupted call with the same inputs left.

        Args:
            path: File to write, of a suffix in :data:`FORMATS`.
            dim: Length of a row.
            inputs: Hash of everything that the vectors depend on but the texts.

        Raises:
            DataError: If the suffix says no format, or another call writes the same file.
            MissingExtraError: If nothing that writes it is installed.
        """
        if path.suffix not in FORMATS:
            raise DataError(f"{path}: got a name that ends in {path.suffix!r}, expected one of {', '.join(FORMATS)}")
        if path.suffix == ".parquet":
            _arrow()
        self.path = path
        self.dim = dim
        self._folder = path.with_name(f".{path.name}.partial")
        self._folder.mkdir(exist_ok=True)
        self._alone = ExitStack()  # two that write the same rows would leave holes
        busy = DataError(f"{path}: another leaf encode writes it; wait until it ends, or name another file")
        self._alone.enter_context(alone(self._folder, busy))
        self.state = self._found(inputs)
        if not self.state.texts:
            self.restart()
        self._file = (self._folder / "vectors").open("r+b")
        self._file.truncate(self._end)
        self._file.seek(self._end)

    @property
    def _end(self) -> int:
        return _HEAD + 4 * self.dim * self.state.texts

    def _found(self, inputs: str) -> Progressed:
        try:
            state = Progressed(**json.loads((self._folder / "state.json").read_text(encoding="utf-8")))
            whole = (self._folder / "vectors").stat().st_size >= _HEAD + 4 * self.dim * state.texts
        except (OSError, ValueError, TypeError):
            return Progressed(inputs)
        return state if whole and state.inputs == inputs else Progressed(inputs)

    def restart(self) -> None:
        """Forget every row."""
        self.state = Progressed(self.state.inputs)
        (self._folder / "state.json").unlink(missing_ok=True)
        (self._folder / "vectors").write_bytes(bytes(_HEAD))
        if hasattr(self, "_file"):
            self._file.seek(_HEAD)

    def append(self, vectors: FloatArray, *, cut: int, digest: str) -> None:
        """Put rows ``(n, dim)`` on the disk and note that they are there.

        Args:
            vectors: The rows.
            cut: Texts of these that were cut.
            digest: Hash of all texts so far.
        """
        self._file.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        _sync(self._file)
        texts, cut = self.state.texts + len(vectors), self.state.cut + cut
        self.state = replace(self.state, texts=texts, cut=cut, digest=digest)
        draft = self._folder / "state.json.new"
        with draft.open("wb") as file:
            file.write(json.dumps(asdict(self.state)).encode())
            _sync(file)
        draft.replace(self._folder / "state.json")

    def finish(self) -> None:
        """Put the file into its place; what was there is replaced."""
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.state.texts, self.dim)}
        text = repr(head).ljust(_HEAD - 11) + "\n"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + (_HEAD - 10).to_bytes(2, "little") + text.encode())
        _sync(self._file)
        self._file.close()
        rows = self._folder / "vectors"
        made = self._folder / f"made{self.path.suffix}"
        FORMATS[self.path.suffix](rows, made)
        made.replace(self.path)
        shutil.rmtree(self._folder)
        self._alone.close()

    def close(self) -> None:
        """Leave it as it is, to be taken up again."""
        self._file.close()
        self._alone.close()

    def abandon(self) -> None:
        """Remove every trace."""
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._alone.close()


def json_line(vector: FloatArray) -> str:
    """A vector as one line of JSON, without the line end."""
    return json.dumps([round(float(value), 7) for value in vector])


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _blocks(rows: Path) -> Iterator[FloatArray]:
    matrix = np.load(rows, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(matrix), _ROWS):
        yield np.array(matrix[start : start + _ROWS])


def _to_npy(rows: Path, target: Path) -> None:
    rows.rename(target)


def _to_jsonl(rows: Path, target: Path) -> None:
    with target.open("w", encoding="utf-8") as file:
        for block in _blocks(rows):
            file.writelines(f"{json_line(vector)}\n" for vector in block)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow") from error
    return pyarrow, parquet


def _to_parquet(rows: Path, target: Path) -> None:
    pyarrow, parquet = _arrow()
    dim = np.load(rows, mmap_mode="r", allow_pickle=False).shape[1]
    schema = pyarrow.schema([("embedding", pyarrow.list_(pyarrow.float32(), dim))])
    with parquet.ParquetWriter(target, schema) as writer:
        for block in _blocks(rows):
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1)), dim)
            writer.write_table(pyarrow.Table.from_arrays([column], schema=schema))


FORMATS: dict[str, Callable[[Path, Path], None]] = {".npy": _to_npy, ".parquet": _to_parquet, ".jsonl": _to_jsonl}
"""What writes a file of each suffix from the rows."""
