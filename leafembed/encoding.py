"""What ``leaf encode`` does: texts of any number go in, vectors go to a file that survives being killed, or out.

Only some thousands of texts are in memory at a time. A file can be taken up again where it was left: the texts that it
holds already are read once more and compared by their hash, so that vectors of another text are never kept.
"""

from __future__ import annotations

import gzip
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from leafembed.progress import progress, say
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.vectors_file import VectorsFile
from leafembed.stages import fingerprint
from leafembed.text import stream_texts

__all__ = ["encode_file", "encode_out"]

_STDIN = "-"


def encode_out(encoder: BundleEncoder, texts: Iterable[str], options: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the vectors of texts, one at a time, and say at the end how many texts were cut."""
    cut = done = 0
    for part in encoder.encode_stream(texts, **options):
        yield from part.vectors
        done, cut = done + len(part.vectors), cut + part.cut
    _say_cut(encoder, cut, done)


def encode_file(
    encoder: BundleEncoder,
    source: Path,
    target: Path,
    options: Mapping[str, Any],
    *,
    identity: str,
    jsonl: bool = False,
) -> tuple[int, int]:
    """Write the vectors of a file's texts to another file, and return its shape.

    Args:
        encoder: A bundle.
        source: Text a line, or JSON lines with ``text``; ``-``: standard input, which cannot be taken up again.
        target: File to write, ``.npy``, ``.parquet`` or ``.jsonl``; it appears when it is complete.
        options: Of :meth:`leafembed.ship.encoder.BundleEncoder.encode_stream`.
        identity: Hash of the model's files; an interrupted call with another is not taken up.
        jsonl: The source holds JSON lines, whatever its name is.

    Raises:
        DataError: If the target's suffix says no format, or the source cannot be read.
        ValueError: If an option is out of range.
    """
    streamed = str(source) == _STDIN
    dim = options.get("dim") or encoder.dim
    file = VectorsFile(target, dim=dim, inputs=fingerprint(identity, encoder.exit, dict(options)))
    try:
        texts = _taken_up(file, partial(stream_texts, source, jsonl=jsonl), source, restart=streamed)
        total = 0 if streamed else _count(source)
        with progress("encoding", total, "texts", done=file.state.texts, brief=True) as advance:
            for part in encoder.encode_stream(texts, **options):
                count = file.state.texts + len(part.vectors)
                file.append(part.vectors, cut=part.cut, digest=texts.digest_after(count))
                if not streamed:  # of standard input the total is not known
                    advance(len(part.vectors))
    except BaseException:
        if streamed or not file.state.texts:
            file.abandon()  # there is nothing to take up
        file.close()
        raise
    _say_cut(encoder, file.state.cut, file.state.texts)
    file.finish()
    return file.state.texts, dim


class _Hashed:
    """Texts on their way through, with the hash of all texts up to each that was not asked for yet."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._hash = hashlib.blake2b(digest_size=16)
        self._digests: deque[tuple[int, str]] = deque()
        self._count = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._hash.update(text.encode("utf-8") + b"\n")
            self._count += 1
            self._digests.append((self._count, self._hash.hexdigest()))
            yield text

    def skip(self, count: int) -> tuple[int, str]:
        """Pass over so many texts, or as many as there are: how many, and the hash up to there; none is kept."""
        passed = 0
        for text in islice(self._texts, count):
            self._hash.update(text.encode("utf-8") + b"\n")
            passed += 1
        self._count += passed
        return passed, self._hash.hexdigest()

    def digest_after(self, count: int) -> str:
        """Hash of the first so many texts; those before are forgotten."""
        while True:
            found, digest = self._digests.popleft()
            if found == count:
                return digest


def _taken_up(file: VectorsFile, read: Callable[[], Iterator[str]], source: Path, *, restart: bool) -> _Hashed:
    """The texts that the file does not hold yet."""
    texts = _Hashed(read())
    known = file.state.texts
    if restart:
        file.restart()
    elif known:
        if texts.skip(known) == (known, file.state.digest):
            say(f"{file.path.name}: going on after {known:,} texts")
            return texts
        say(f"{source}: not the texts that {file.path.name} was begun with; begun anew")
        file.restart()
        return _Hashed(read())
    return texts


def _count(source: Path) -> int:
    """Lines of a file, each a text."""
    with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as file:
        return sum(1 for _ in file)


def _say_cut(encoder: BundleEncoder, cut: int, texts: int) -> None:
    if cut:
        say(f"{cut} of {texts} texts were cut to {encoder.max_seq_length} tokens; --chunk reads them whole")
