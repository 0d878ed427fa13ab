"""Reads sources: files of lines, JSON lines or parquet, or a dataset on a model hub at a pinned commit.

Nothing is executed to read them, and nothing is held but the row that is being read. Prompts of EmbeddingGemma and its
like differ between query and document, so each text of a record has its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, MissingExtraError
from leafembed.learn.overlap import EvaluationTexts
from leafembed.recipe_text import DataConfig, Source
from leafembed.text import clean_text, normalise_lang, normalise_text, read_lines, read_objects, text_hash

__all__ = ["Record", "label", "read_source", "source_files"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCH_CHARACTERS = 2_000_000  # of texts that wait to be compared with evaluation texts


@dataclass(frozen=True, slots=True)
class Record:
    """One source row: a text, perhaps with a positive and a hard negative.

    Attributes:
        texts: One to three texts: text, positive, negative.
        langs: Language of each.
        prompt_names: Teacher prompt of each.
        hashes: :func:`~leafembed.text.text_hash` of each.
    """

    texts: tuple[str, ...]
    langs: tuple[str, ...]
    prompt_names: tuple[str | None, ...]
    hashes: tuple[int, ...] = ()

    @property
    def balance_lang(self) -> str:
        """Language it counts as when languages are balanced: of a pair, the positive's, which is the rarer one."""
        return self.langs[min(1, len(self.langs) - 1)]


def label(source: Source) -> str:
    """What counts and errors call a source."""
    return source.path or source.hub


def read_source(
    source: Source,
    files: Sequence[Path],
    config: DataConfig,
    *,
    prompt_name: str | None,
    evaluation: EvaluationTexts,
    counts: Counter[str],
) -> Iterator[Record]:
    """Yield the clean records of a source, counting those that it drops by reason.

    Args:
        source: What to read.
        files: Its files, from :func:`source_files`.
        config: The recipe's ``[data]``.
        prompt_name: Teacher prompt where the source names none.
        evaluation: What no record may overlap with.
        counts: Counter to add to.

    Raises:
        DataError: If a row is damaged or holds no text, or there is none; names file and row.
    """
    clean = _Cleaner(source, config, prompt_name)
    found, waiting, characters = False, list[_Clean](), 0
    for path in files:
        for line, values in _READERS[_kind(path)](path, config.max_line_bytes):
            counts[f"read from {label(source)}"] += 1
            found = True
            record = clean(values, f"{path}:{line}")
            if isinstance(record, str):
                counts[record] += 1
                continue
            waiting.append(record)
            characters += sum(map(len, record[1]))
            if characters >= _BATCH_CHARACTERS:
                yield from _judged(waiting, evaluation, counts)
                waiting, characters = [], 0
    yield from _judged(waiting, evaluation, counts)
    if not found:
        raise DataError(f"{label(source)}: the source is empty; expected at least one row of text")


# A record and its texts normalised before they were cut: half of an evaluation text is hard to know for one.
_Clean = tuple[Record, list[str]]


def _judged(records: Sequence[_Clean], evaluation: EvaluationTexts, counts: Counter[str]) -> Iterator[Record]:
    """Yield the records that overlap with no evaluation text, counting the others by reason."""
    reasons = evaluation.judge([whole for _, whole in records])
    for (record, _), reason in zip(records, reasons, strict=True):
        if reason is None:
            yield record
        else:
            counts[reason] += 1


class _Cleaner:
    """Turns the columns of a row into a record and its normalised texts, or into the reason why it is dropped."""

    def __init__(self, source: Source, config: DataConfig, prompt_name: str | None) -> None:
        self.source, self.config = source, config
        own = source.prompt_name or prompt_name
        other = source.positive_prompt_name or own
        self.columns = [column for column in (source.text, source.positive, source.negative) if column]
        self.prompts = (own, other, other)[: len(self.columns)]
        self.languages = {normalise_lang(tag) for tag in config.languages}

    def __call__(self, values: Mapping[str, Any], where: str) -> _Clean | str:
        missing = [column for column in self.columns if not isinstance(values.get(column), str)]
        if missing:
            got = ", ".join(map(str, values)) or "nothing"
            raise DataError(f"{where}: no text in column {missing[0]!r}, found {got}; see data.sources")
        if any(_SURROGATE.search(values[column]) for column in self.columns):
            raise DataError(f"{where}: holds half of a surrogate pair, which is not text; mend the escapes")
        texts = [clean_text(values[column]) for column in self.columns]
        if any(len(text) < self.config.min_chars for text in texts):
            return "dropped: too short"
        langs = self._languages(values)
        if self.languages and not self.languages.issuperset(langs):
            return "dropped: language not asked for"
        whole, limit = [normalise_text(text) for text in texts], self.config.max_chars
        kept = [text[:limit] for text in texts]
        cut = [normalise_text(text) if len(text) < len(texts[i]) else whole[i] for i, text in enumerate(kept)]
        return Record(tuple(kept), langs, self.prompts, tuple(map(text_hash, cut))), whole

    def _languages(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        lang = normalise_lang(self.source.lang or str(values.get("lang") or ""))
        other = normalise_lang(str(values.get(self.source.positive_lang) or lang))
        return (lang, other, other)[: len(self.columns)]


def source_files(source: Source, root: Path) -> list[Path]:
    """The files of a source, in the order of their names; those of a hub dataset are fetched.

    Raises:
        DataError: If there are none, or the source names no place or no commit.
    """
    if source.hub:
        return _hub_files(source)
    if not source.path:
        raise DataError(
            "data.sources: got a table without path, hub and named, expected one: a source needs a path or a hub"
        )
    path = Path(source.path).expanduser()
    folder, pattern = (
        (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (root, str(path))
    )
    found = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not found:
        raise DataError(f"data.sources: no file matches {folder / pattern}; set data.root to the folder of your text")
    for file in found:
        _kind(file)
    return found


def _hub_files(source: Source) -> list[Path]:
    if not _COMMIT.fullmatch(source.revision):
        raise DataError(
            f"{source.hub}: got revision {source.revision!r}, expected a 40-digit commit, so that the data cannot move"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    try:
        folder = snapshot_download(
            source.hub, repo_type="dataset", revision=source.revision, allow_patterns=[source.files]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source.hub}@{source.revision}: cannot be fetched: {reason}") from error
    found = sorted(path for path in Path(folder).glob(f"**/{source.files}") if path.is_file())
    if not found:
        raise DataError(f"{source.hub}@{source.revision}: no file matches {source.files!r}")
    return found


def _kind(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS:
        raise DataError(f"{path}: got a {suffix or 'nameless'} file, expected one of {', '.join(_READERS)}")
    return suffix


def _read_txt(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in read_lines(path, max_line_bytes=max_line_bytes):
        if line.strip():
            yield number, {"text": line}


def _read_jsonl(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return read_objects(path, max_line_bytes=max_line_bytes)


def _read_parquet(path: Path, max_line_bytes: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


_READERS: dict[str, Callable[[Path, int], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
