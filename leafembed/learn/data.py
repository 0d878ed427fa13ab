"""Training text: read, clean, deduplicate, draw by weights, split; the result lies on disk, not in memory.

One pass reads the sources into a scratch file and keeps a few numbers a record: source, language, length, place,
hashes. Those decide what is kept. The chosen records are then fetched in random order and written as rows to Arrow
files, which are memory-mapped. Memory does not grow with the length of texts; the scratch file goes at the end.

The result depends on the text, the recipe and the seed alone. It is kept under a hash of these, marker last, and used
again by any run that asks for the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import DataError
from leafembed.evidence import Contamination
from leafembed.learn.draw import by_language, draw, first_seen, length_class, uniform
from leafembed.learn.named import expand
from leafembed.learn.overlap import EvaluationTexts, JudgedSet, sets_fingerprint
from leafembed.learn.rows import Rows, write_rows
from leafembed.learn.sources import Record, read_source, source_files
from leafembed.progress import progress
from leafembed.recipe_text import DataConfig, Source
from leafembed.stages import file_sha256, fingerprint, once
from leafembed.types import Corpus, Row

__all__ = ["LAYOUT", "corpus_fingerprint", "prepare_corpus"]

LAYOUT = 4
"""Raised when the same sources are read or laid out otherwise than before, so that no old corpus is taken for new."""

_values = attrgetter(*(item.name for item in dataclasses.fields(Row)))


def prepare_corpus(
    config: DataConfig,
    folder: Path,
    *,
    seed: int,
    prompt_name: str | None,
    judged: Mapping[str, JudgedSet] = MappingProxyType({}),
    learned: NDArray[np.uint64] | None = None,
) -> Corpus:
    """Read every source and return the corpus to train on, or the stored one that was made of the same.

    Args:
        config: The recipe's ``[data]``.
        folder: Where corpora are kept; each has a subfolder of its own.
        seed: Seed of sampling and splitting.
        prompt_name: Teacher prompt of texts whose source names none.
        judged: Evaluation sets by task id; a record that overlaps with one is dropped and counted.
        learned: Hashes of texts that the student knows already; none of them is held out.

    Raises:
        DataError: If a source cannot be read or nothing is left of it.
    """
    sources = tuple(one for source in config.sources if source.weight > 0 for one in expand(source))
    files = [source_files(source, config.root) for source in sources]
    contents = [[file_sha256(path) for path in found] for found in files]
    config = dataclasses.replace(config, sources=sources, language_weights=by_language(config.language_weights))
    key = _key(config, contents, seed, prompt_name, judged)
    if learned is not None and len(learned):
        key = fingerprint(key, hashlib.sha256(learned.tobytes()).hexdigest())

    def build(target: Path) -> dict[str, object]:
        target.mkdir(parents=True)
        evaluation = EvaluationTexts(judged)
        with tempfile.TemporaryFile(dir=target) as scratch:
            index = _read_all(config, files, scratch, prompt_name=prompt_name, evaluation=evaluation)
            train, validation = _choose(index, config, seed, learned)
            digest = hashlib.sha256()
            for name, chosen in (("train", train), ("validation", validation)):
                write_rows(target / f"{name}.arrow", _hashed(digest, _laid_out(index, chosen, scratch, sources)))
        return {
            "counts": {k: n for k, n in index.counts.items() if n},
            "fingerprint": digest.hexdigest()[:16],
            "contamination": evaluation.touched(),
        }

    facts = once(folder / key, key, build)
    place = [{"path": one.path or f"{one.hub}@{one.revision}", "licence": one.licence, "origin": one.origin,
              "sha256": " ".join(hashes)} for one, hashes in zip(sources, contents, strict=True)]  # fmt: skip
    train, validation = (Rows.open(folder / key / f"{name}.arrow") for name in ("train", "validation"))
    touched = tuple(Contamination(**entry) for entry in facts["contamination"])
    return Corpus(train, validation, facts["counts"], facts["fingerprint"], tuple(place), touched)


def corpus_fingerprint(rows: Iterable[Row]) -> str:
    """Hash of all rows in order."""
    digest = hashlib.sha256()
    for _ in _hashed(digest, rows):
        pass
    return digest.hexdigest()[:16]


_SOURCE, _DRAW, _ORDER = range(3)
"""Uses of chance, which must not depend on each other."""


@dataclass
class _Index:
    """What is known of every record that was read, in the order of reading; five small arrays instead of its texts."""

    counts: Counter[str] = field(default_factory=Counter)
    langs: dict[str, int] = field(default_factory=dict)
    source: array[int] = field(default_factory=lambda: array("i"))
    lang: array[int] = field(default_factory=lambda: array("i"))
    length: array[int] = field(default_factory=lambda: array("i"))
    place: array[int] = field(default_factory=lambda: array("q"))
    first_hash: array[int] = field(default_factory=lambda: array("q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, record: Record, source: int, place: int) -> None:
        """Take down a record that begins at byte ``place`` of the scratch file."""
        self.source.append(source)
        self.lang.append(self.langs.setdefault(record.balance_lang, len(self.langs)))
        self.length.append(len(record.texts[0]))
        self.place.append(place)
        self.hashes.extend(record.hashes)
        self.first_hash.append(len(self.hashes))

    @property
    def texts(self) -> NDArray[np.int64]:
        """Number of texts of each record, ``(n,)``."""
        starts = np.frombuffer(self.first_hash, dtype=np.int64)
        return starts[1:] - starts[:-1]

    def chance(self, records: NDArray[np.int64], seed: int, use: int) -> NDArray[np.float64]:
        """A number of its own for each record, from its texts and not from its place; see :func:`uniform`."""
        hashes, owners = self.hashes_of(records)
        starts = np.searchsorted(owners, np.arange(len(records)))
        # Times 1, 3, 5: texts of a record that are equal must not take each other out.
        mixed = hashes * (2 * (np.arange(len(owners)) - starts[owners]) + 1).astype(np.uint64)
        return uniform(np.bitwise_xor.reduceat(mixed, starts) if len(records) else hashes, seed, use)

    def hashes_of(self, records: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of all texts of the records, and the place of each one's record in ``records``."""
        texts, starts = self.texts[records], np.frombuffer(self.first_hash, dtype=np.int64)[records]
        owners = np.repeat(np.arange(len(records)), texts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(texts) - texts, texts)
        return np.frombuffer(self.hashes, dtype=np.uint64)[starts[owners] + within], owners


def _read_all(
    config: DataConfig,
    files: Sequence[Sequence[Path]],
    scratch: IO[bytes],
    *,
    prompt_name: str | None,
    evaluation: EvaluationTexts,
) -> _Index:
    """Read every source once: texts into the scratch file, numbers into the index."""
    index, place = _Index(), 0
    with progress("reading the corpus", None, "records") as advance:
        for i, source in enumerate(config.sources):
            for record in read_source(source, files[i], config, prompt_name=prompt_name, evaluation=evaluation,
                                      counts=index.counts):  # fmt: skip
                index.add(record, i, place)
                line = (record.texts, record.langs, record.prompt_names)
                place += scratch.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                if len(index.source) % 1000 == 0:  # a bar that moves with each record takes a tenth of the time
                    advance(1000)
    return index


def _choose(
    index: _Index, config: DataConfig, seed: int, learned: NDArray[np.uint64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Records to train on and records to hold out, each in the order in which they are laid out."""
    counts, kept = index.counts, _sample_sources(index, config.sources, seed)
    new = first_seen(*index.hashes_of(kept), len(kept))
    counts["dropped: duplicate"] += int((~new).sum())
    kept = kept[new]
    weights = _weights(index, kept, config)
    counts["left out: weight 0"] += int((weights == 0).sum())
    kept, weights = kept[weights > 0], weights[weights > 0]
    if config.max_rows is not None:
        langs, codes = list(index.langs), np.frombuffer(index.lang, dtype=np.int32)[kept].astype(np.int64)
        total, factors = config.max_rows + config.validation_rows, config.language_weights
        chance = index.chance(kept, seed, _DRAW)
        drawn = draw(langs, codes, weights, total, temperature=config.temperature, factors=factors, chance=chance)
        counts["left out: not drawn for balance"] += len(kept) - len(drawn)
        kept = kept[drawn]
    return _split(index, kept[np.argsort(index.chance(kept, seed, _ORDER), kind="stable")], config, learned)


def _sample_sources(index: _Index, sources: Sequence[Source], seed: int) -> NDArray[np.int64]:
    """All records but those beyond a source's ``max_rows``, in the order of reading."""
    owner, kept = np.frombuffer(index.source, dtype=np.int32), []
    for i, source in enumerate(sources):
        found = np.flatnonzero(owner == i)
        if source.max_rows is not None and len(found) > source.max_rows:
            index.counts["left out: max_rows of the source"] += len(found) - source.max_rows
            found = np.sort(found[np.argsort(index.chance(found, seed, _SOURCE), kind="stable")[: source.max_rows]])
        kept.append(found)
    return np.concatenate([np.empty(0, dtype=np.int64), *kept])


def _weights(index: _Index, records: NDArray[np.int64], config: DataConfig) -> NDArray[np.float64]:
    """Weight of each record within its language; 0 where source, length or language has weight 0."""
    by_source = np.array([source.weight for source in config.sources])
    by_lang = np.array([float(config.language_weights.get(lang, 1) > 0) for lang in index.langs])
    lengths = np.frombuffer(index.length, dtype=np.int32)[records].astype(np.int64)
    source, lang = (np.frombuffer(item, dtype=np.int32)[records] for item in (index.source, index.lang))
    result: NDArray[np.float64] = by_source[source] * by_lang[lang] * length_class(lengths, config.length_weights)
    return result


def _split(
    index: _Index, records: NDArray[np.int64], config: DataConfig, learned: NDArray[np.uint64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out the first records without a learned text; a pair stays on one side, and so does what shares a text."""
    known = np.zeros(len(records), dtype=np.bool_)
    if learned is not None and len(records):
        hashes, owners = index.hashes_of(records)
        known[owners[np.isin(hashes, learned)]] = True
        index.counts["known from earlier training"] += int(known.sum())
    roles = np.array([len(source.roles) for source in config.sources])
    rows = index.texts[records] + roles[np.frombuffer(index.source, dtype=np.int32)[records]]
    cut = int(np.searchsorted(np.cumsum(rows[~known]), config.validation_rows)) + 1 if len(rows) else 0
    out = np.zeros(len(records), dtype=np.bool_)
    out[np.flatnonzero(~known)[:cut]] = True
    held, others = records[out], records[~out]
    hashes, owners = index.hashes_of(others)
    shared = np.zeros(len(others), dtype=np.bool_)
    shared[owners[np.isin(hashes, index.hashes_of(held)[0])]] = True
    train, n_validation, n_train = others[~shared], int(rows[out].sum()), int(rows[~out][~shared].sum())
    if 2 * n_validation < min(config.validation_rows, int(rows.sum()) // 3):  # only text that is known is left
        raise DataError(
            f"got {n_validation} texts to hold out that the student has not learned from before, expected "
            f"data.validation_rows = {config.validation_rows}: add other text, or lower it"
        )
    index.counts["dropped: shares a text with validation"] += int(shared.sum())
    if n_train < max(1, 2 * n_validation):
        raise DataError(
            f"the corpus is too small: got {n_train} training texts beside {n_validation} for validation, "
            f"expected at least twice as many; add text or lower data.validation_rows (read: {dict(index.counts)})"
        )
    index.counts["train"], index.counts["validation"] = n_train, n_validation
    return train, held


def _laid_out(
    index: _Index, records: NDArray[np.int64], scratch: IO[bytes], sources: Sequence[Source]
) -> Iterator[Row]:
    """The rows of records: the text, its positive and negative, then the text again in each further role."""
    start = 0
    for i in records.tolist():
        scratch.seek(index.place[i])
        texts, langs, prompts = json.loads(scratch.readline())
        rows = _rows(sources[index.source[i]], Record(tuple(texts), tuple(langs), tuple(prompts)), start)
        yield from rows
        start += len(rows)


def _rows(source: Source, record: Record, start: int) -> list[Row]:
    """The first row is the text; its positive points back to it, and it points to its negative."""
    texts, langs, prompts = record.texts, record.langs, record.prompt_names
    rows = [Row(texts[0], langs[0], prompts[0], negative=start + 2 if len(texts) == 3 else None)]
    target = start if source.positive_target == "text" else None
    if len(texts) > 1:
        rows.append(Row(texts[1], langs[1], prompts[1], pair=start, target=target))
    if len(texts) > 2:
        rows.append(Row(texts[2], langs[2], prompts[2]))
    return rows + [Row(texts[0], langs[0], role) for role in source.roles]


def _hashed(digest: hashlib._Hash, rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, each added to a hash on its way."""
    for row in rows:
        digest.update(json.dumps(_values(row), ensure_ascii=False).encode() + b"\n")
        yield row


def _key(
    config: DataConfig,
    contents: Sequence[Sequence[str]],
    seed: int,
    prompt_name: str | None,
    judged: Mapping[str, JudgedSet],
) -> str:
    """Hash of everything that the corpus depends on: the bytes of all files, not their names or times."""
    plain = dataclasses.asdict(config)
    for name in ("root", "mixture", "mine_negatives", "negative_margin"):
        del plain[name]
    return fingerprint(LAYOUT, plain, contents, seed, prompt_name, sets_fingerprint(judged))
