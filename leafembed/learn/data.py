"""Training text: read, clean, deduplicate, balance over languages, split.

A source is a file of lines, JSON lines or parquet, or a dataset on a model hub, fetched as parquet files at a pinned
commit. Nothing is executed to read it. The result depends on the text, the recipe and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, MissingExtraError
from leafembed.recipe_learn import DataConfig, Source
from leafembed.text import clean_text, normalise_lang, normalise_text, read_lines, read_objects
from leafembed.types import Corpus, Row

__all__ = ["Record", "balance", "corpus_fingerprint", "prepare_corpus"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Record:
    """One source row: a text, perhaps with a positive and a hard negative.

    Attributes:
        texts: One to three texts: text, positive, negative.
        langs: Language of each.
        prompt_names: Teacher prompt of each.
    """

    texts: tuple[str, ...]
    langs: tuple[str, ...]
    prompt_names: tuple[str | None, ...]

    @property
    def balance_lang(self) -> str:
        """Language it counts as when languages are balanced: of a pair, the positive's, which is the rarer one."""
        return self.langs[min(1, len(self.langs) - 1)]


def prepare_corpus(
    config: DataConfig, *, seed: int, prompt_name: str | None, forbidden: frozenset[str] = frozenset()
) -> Corpus:
    """Read every source and return the corpus to train on.

    Args:
        config: The recipe's ``[data]``.
        seed: Seed of sampling and splitting.
        prompt_name: Teacher prompt of texts whose source names none.
        forbidden: Normalised evaluation texts; a record holding one is dropped and counted.

    Raises:
        DataError: If a source cannot be read or nothing is left of it.
    """
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    records: list[Record] = []
    for source in config.sources:
        read = list(_read_source(source, config, prompt_name, forbidden, counts))
        kept = _sample(read, source.max_rows, seed)
        counts["left out: max_rows of the source"] += len(read) - len(kept)
        records += [record for record in kept if _is_new(record, seen, counts)]
    if config.max_rows is not None:
        drawn = balance(records, config.max_rows + config.validation_rows, config.temperature, seed)
        counts["left out: not drawn for balance"] += len(records) - len(drawn)
        records = drawn
    random.Random(seed).shuffle(records)
    train, validation = _split(records, config.validation_rows, counts)
    if len(train) < max(1, 2 * len(validation)):
        raise DataError(
            f"the corpus is too small: got {len(train)} training texts beside {len(validation)} for validation, "
            f"expected at least twice as many; add text or lower data.validation_rows (read: {dict(counts)})"
        )
    counts["train"], counts["validation"] = len(train), len(validation)
    sources = tuple(
        {"path": s.path or f"{s.hub}@{s.revision}", "licence": s.licence, "origin": s.origin} for s in config.sources
    )
    return Corpus(
        tuple(train),
        tuple(validation),
        {k: n for k, n in counts.items() if n},
        corpus_fingerprint([*train, *validation]),
        sources,
    )


def corpus_fingerprint(rows: Sequence[Row]) -> str:
    """Hash of all rows in order."""
    digest = hashlib.sha256()
    for row in rows:
        fields = (row.text, row.lang, row.prompt_name, row.pair, row.negative)
        digest.update(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def balance(records: Sequence[Record], total: int, temperature: float, seed: int) -> list[Record]:
    """Draw ``total`` records with language shares proportional to ``n^(1/temperature)``.

    The exponential smoothing of multilingual BERT (Devlin et al. 2018) and XLM (arXiv 1901.07291, eq. 1). A language
    that has fewer records than its share gives all it has, and the rest is shared by the others.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.balance_lang, []).append(record)
    chosen: list[Record] = []
    left, todo = total, sorted(groups, key=lambda lang: (len(groups[lang]), lang))
    for i, lang in enumerate(todo):  # smallest first, so that what they cannot fill flows on to the larger
        weights = [len(groups[name]) ** (1 / temperature) for name in todo[i:]]
        quota = min(len(groups[lang]), round(left * weights[0] / sum(weights)))
        chosen += random.Random(f"{seed}-{lang}").sample(groups[lang], quota)
        left -= quota
    return chosen


def _read_source(
    source: Source, config: DataConfig, prompt_name: str | None, forbidden: frozenset[str], counts: Counter[str]
) -> Iterator[Record]:
    name = source.path or source.hub
    prompts = (source.prompt_name or prompt_name, source.positive_prompt_name or source.prompt_name or prompt_name)
    columns = [column for column in (source.text, source.positive, source.negative) if column]
    languages = {normalise_lang(tag) for tag in config.languages}
    found = False
    for path in _files(source, config.root):
        for line, values in _READERS[_kind(path)](path, config.max_line_bytes):
            counts[f"read from {name}"] += 1
            found = True
            missing = [column for column in columns if not isinstance(values.get(column), str)]
            if missing:
                got = ", ".join(map(str, values)) or "nothing"
                raise DataError(f"{path}:{line}: no text in column {missing[0]!r}, found {got}; see data.sources")
            if any(_SURROGATE.search(values[column]) for column in columns):
                raise DataError(f"{path}:{line}: holds half of a surrogate pair, which is not text; mend the escapes")
            record = _clean(source, config, prompts, values, columns)
            if record is None:
                counts["dropped: too short"] += 1
            elif any(normalise_text(text) in forbidden for text in record.texts):
                counts["dropped: equals an evaluation text"] += 1
            elif languages and not languages.issuperset(record.langs):
                counts["dropped: language not asked for"] += 1
            else:  # cut last: half of an evaluation text would no longer be known for one
                yield replace(record, texts=tuple(text[: config.max_chars] for text in record.texts))
    if not found:
        raise DataError(f"{name}: the source is empty; expected at least one row of text")


def _clean(
    source: Source,
    config: DataConfig,
    prompts: tuple[str | None, str | None],
    values: Mapping[str, Any],
    columns: Sequence[str],
) -> Record | None:
    texts = tuple(clean_text(values[column]) for column in columns)
    if any(len(text) < config.min_chars for text in texts):
        return None
    lang = normalise_lang(source.lang or str(values.get("lang") or ""))
    other = normalise_lang(str(values.get(source.positive_lang) or lang))
    langs = (lang, other, other)[: len(texts)]
    return Record(texts, langs, (prompts[0], prompts[1], prompts[1])[: len(texts)])


def _files(source: Source, root: Path) -> list[Path]:
    if source.hub:
        return _hub_files(source)
    if not source.path:
        raise DataError("data.sources: got a table without path and hub, expected one: a source needs a path or a hub")
    path = Path(source.path).expanduser()
    folder, pattern = (
        (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (root, str(path))
    )
    found = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not found:
        raise DataError(f"data.sources: no file matches {folder / pattern}; set data.root to the folder of your text")
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


def _sample(records: list[Record], limit: int | None, seed: int) -> list[Record]:
    return records if limit is None or len(records) <= limit else random.Random(seed).sample(records, limit)


def _is_new(record: Record, seen: set[bytes], counts: Counter[str]) -> bool:
    """Whether any text of a record was not seen before."""
    keys = [normalise_text(text) for text in record.texts]
    hashes = [hashlib.blake2b(key.encode(), digest_size=12).digest() for key in keys]
    if all(item in seen for item in hashes):
        counts["dropped: duplicate"] += 1
        return False
    seen.update(hashes)
    return True


def _split(records: Sequence[Record], validation_rows: int, counts: Counter[str]) -> tuple[list[Row], list[Row]]:
    """Lay the records out as rows; a pair stays on one side, and so does a text that several pairs share."""
    validation: list[Row] = []
    cut = 0
    while cut < len(records) and len(validation) < validation_rows:
        validation += _rows(records[cut], len(validation))
        cut += 1
    held_out = {normalise_text(row.text) for row in validation}
    train: list[Row] = []
    for record in records[cut:]:
        if any(normalise_text(text) in held_out for text in record.texts):
            counts["dropped: shares a text with validation"] += 1
        else:
            train += _rows(record, len(train))
    return train, validation


def _rows(record: Record, start: int) -> list[Row]:
    """The first row is the text; its positive points back to it, and it points to its negative."""
    negative = start + 2 if len(record.texts) == 3 else None
    rows = [Row(record.texts[0], record.langs[0], record.prompt_names[0], None, negative)]
    for i in range(1, len(record.texts)):
        rows.append(Row(record.texts[i], record.langs[i], record.prompt_names[i], start if i == 1 else None))
    return rows
