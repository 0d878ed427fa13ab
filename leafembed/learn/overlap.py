"""Which training texts repeat an evaluation text, whole or in part, and which evaluation texts they touch.

Two texts overlap if they share an n-gram of words, after GPT-3 (arXiv 2005.14165, appendix C): punctuation, white space
and case do not count; n is 13, or 8 for short texts, below which chance finds too many. Where that paper chooses n for
a data set, it is chosen for each evaluation text here, because sets mix questions with documents:

* 13 words or more: any 13 of them in a row
* 8 to 12 words: any 8 in a row
* fewer: the training text consists of the same words

In scripts without spaces a character stands for a part of a word, so that n is in characters: twice as many for Han and
kana, four times as many for Thai, Lao, Khmer and Burmese (about the mean length of a word). A text is of the script
that most of its words are in. Unlike the paper, n-grams that many training rows share are not excused: to lose a row
costs less than to keep one that should not be there.

Evaluation texts are held as one sorted array of 64-bit hashes; training texts pass by in batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import MissingExtraError
from leafembed.text import text_hash

__all__ = ["EXACT", "NGRAM", "EvaluationTexts", "JudgedSet", "sets_fingerprint"]

EXACT, NGRAM = "dropped: equals an evaluation text", "dropped: shares an n-gram with an evaluation text"
"""Why a record is dropped."""

_WORDS, _LEAST = 13, 8
_CHARACTERS = (1, 2, 4)  # of a word: in scripts with spaces; in Han and kana; in Thai, Lao, Khmer and Burmese
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_KEPT_WORDS = 1 << 19
_BATCH = 8_192

_Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """The texts of one evaluation set, all in the form of ``normalise_text``.

    Attributes:
        items: Texts of each scored item.
        texts: Every text of the set, also of documents and probe sets.
    """

    items: frozenset[tuple[str, ...]]
    texts: frozenset[str]


def sets_fingerprint(sets: Mapping[str, JudgedSet]) -> str:
    """Hash of evaluation sets by id."""
    digest = hashlib.sha256()
    for name, judged in sorted(sets.items()):
        lines = [name, *sorted("\1".join(item) for item in judged.items), "", *sorted(judged.texts)]
        digest.update("\0".join(lines).encode("utf-8", "surrogatepass") + b"\2")
    return digest.hexdigest()


class EvaluationTexts:
    """Every text of some evaluation sets, asked whether training records repeat them.

    It remembers which evaluation texts were touched and how many records touched each set.

    Args:
        sets: Evaluation sets by id.
    """

    def __init__(self, sets: Mapping[str, JudgedSet]) -> None:
        self._sets = dict(sets)
        every = sorted(frozenset[str]().union(*(judged.texts for judged in sets.values())))
        self._place = {text: i for i, text in enumerate(every)}
        owners: list[list[int]] = [[] for _ in every]
        for number, judged in enumerate(sets.values()):
            for text in judged.texts:
                owners[self._place[text]].append(number)
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._sets_of = [known.setdefault(key, key) for key in map(tuple, owners)]
        self._words = _Words()
        self._keys, self._owners = _index(every, self._words)
        self._filter = _Filter(self._keys)
        self._seen: dict[int, frozenset[int]] = {}
        self._touched = {kind: np.zeros(len(every), dtype=np.bool_) for kind in (EXACT, NGRAM)}
        self._rows = {kind: np.zeros(len(sets), dtype=np.int64) for kind in (EXACT, NGRAM)}

    def judge(self, records: Sequence[Sequence[str]]) -> list[str | None]:
        """Return why each record is to be dropped, ``EXACT`` before ``NGRAM``; ``None``: it overlaps with nothing.

        Args:
            records: Texts of each record, in the form of ``normalise_text``.
        """
        if not self._place:
            return [None] * len(records)
        texts = [text for record in records for text in record]
        rows = np.repeat(np.arange(len(records)), [len(record) for record in records]).tolist()
        found: dict[str, dict[int, set[int]]] = {EXACT: {}, NGRAM: {}}
        for row, text in zip(rows, texts, strict=True):
            if (place := self._place.get(text)) is not None:
                self._touched[EXACT][place] = True
                found[EXACT].setdefault(row, set()).update(self._sets_of[place])
        for owner, key in self._shared(texts):
            found[NGRAM].setdefault(rows[owner], set()).update(self._sets_with(key))
        for sets in found[EXACT].values():
            self._rows[EXACT][list(sets)] += 1
        for row, sets in found[NGRAM].items():
            self._rows[NGRAM][list(sets - found[EXACT].get(row, set()))] += 1
        return [next((kind for kind in found if row in found[kind]), None) for row in range(len(records))]

    def touched(self) -> list[dict[str, Any]]:
        """Return for each set what the records so far touched, as :class:`~leafembed.evidence.Contamination` has it."""
        return [self._touched_of(number, name, judged) for number, (name, judged) in enumerate(self._sets.items())]

    def _touched_of(self, number: int, name: str, judged: JudgedSet) -> dict[str, Any]:
        exact, ngram = self._touched[EXACT], self._touched[NGRAM]
        places = [[self._place[text] for text in item] for item in judged.items]
        equal = sum(bool(exact[item].any()) for item in places)
        either = sum(bool((exact[item] | ngram[item]).any()) for item in places)
        rows = {f"rows_{word}": int(self._rows[kind][number]) for word, kind in (("exact", EXACT), ("ngram", NGRAM))}
        return {"task": name, "items": len(places), "exact": equal, "ngram": either - equal, **rows}

    def _shared(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield text number and hash of every n-gram that an evaluation text holds too."""
        for hashes, owners in _hashed(texts, self._words, everything=True):
            for i in self._filter.pass_(hashes).tolist():
                yield int(owners[i]), int(hashes[i])

    def _sets_with(self, key: int) -> frozenset[int]:
        """The sets that hold an n-gram; the first time, its texts are noted as touched."""
        if key not in self._seen:
            ends = (int(np.searchsorted(self._keys, np.uint64(key), side=side)) for side in ("left", "right"))
            places = self._owners[slice(*ends)]
            self._touched[NGRAM][places] = True
            self._seen[key] = frozenset(number for place in places.tolist() for number in self._sets_of[place])
        return self._seen[key]


class _Filter:
    """Whether sorted keys hold a hash: a bit for its leading digits first, since nearly all are not held."""

    def __init__(self, keys: _Hashes) -> None:
        self._keys = keys
        self._shift = np.uint64(64 - min(26, max(10, len(keys).bit_length() + 4)))
        self._bits = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._bits[keys >> self._shift] = True

    def pass_(self, hashes: _Hashes) -> NDArray[np.intp]:
        """Return which of the hashes the keys hold."""
        maybe = np.flatnonzero(self._bits[hashes >> self._shift])
        if not len(self._keys):
            return maybe[:0]
        place = np.minimum(np.searchsorted(self._keys, hashes[maybe]), len(self._keys) - 1)
        held: NDArray[np.intp] = maybe[self._keys[place] == hashes[maybe]]
        return held


def _index(texts: Sequence[str], known: _Words) -> tuple[_Hashes, NDArray[np.int32]]:
    """Sorted hashes of what each text is recognised by, and the number of the text that each belongs to."""
    keys, owners = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int32)]
    for start in range(0, len(texts), _BATCH):
        for hashes, places in _hashed(texts[start : start + _BATCH], known, everything=False):
            keys.append(hashes)
            owners.append((places + start).astype(np.int32))
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate(owners)[order]


def _hashed(texts: Sequence[str], known: _Words, *, everything: bool) -> Iterator[tuple[_Hashes, NDArray[np.int64]]]:
    """Yield hashes of n-grams and the number of the text of each.

    Of an evaluation text those that it is recognised by; with ``everything`` those of every size, as a training text
    may hold evaluation texts of any.
    """
    words, starts, scripts = _units(texts, known)
    powers = np.multiply.accumulate(np.full(len(words) + 1, _BASE))
    undo = np.multiply.accumulate(np.full(len(words) + 1, _INVERSE))
    # Sums to the left of each word: the hash of a run is a difference, moved to the start (Rabin & Karp 1987).
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(words * powers[:-1], dtype=np.uint64)])
    lengths = np.diff(starts)
    kinds = np.argmax(scripts / np.array(_CHARACTERS), axis=1)
    for kind, characters in enumerate(_CHARACTERS):
        most, least = _WORDS * characters, _LEAST * characters
        able = scripts[:, kind] > 0 if everything else kinds == kind
        for size in (most, least):
            fits = able & (lengths >= size) & (everything | (size == most) | (lengths < most))
            first, owner = _windows(starts, lengths, np.flatnonzero(fits), size)
            yield _finish(sums, undo, first, first + size, size), owner
        short = np.flatnonzero(able & (lengths > 0) & (lengths < least))
        # The whole of a text counts as its own kind of n-gram: a longer text that holds it is not meant.
        yield _finish(sums, undo, starts[short], starts[short] + lengths[short], 1 << 20), short


def _windows(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], texts: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run of ``size`` words begins, and the text that it is in."""
    many = lengths[texts] - size + 1
    within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(starts[texts], many) + within, np.repeat(texts, many)


def _finish(sums: _Hashes, undo: _Hashes, first: NDArray[np.int64], last: NDArray[np.int64], salt: int) -> _Hashes:
    """Hashes of the words from ``first`` to before ``last``, other ones for another ``salt``."""
    runs = (sums[last] - sums[first]) * undo[first]
    result: _Hashes = (runs ^ (runs >> np.uint64(29))) * np.uint64(2 * salt + 1) * _BASE
    return result


class _Words(dict[str, int]):
    """Hashes of words, each computed once while there are not too many of them."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KEPT_WORDS:
            self.clear()
        self[word] = hashed = text_hash(word)
        return hashed


def _units(texts: Sequence[str], known: _Words) -> tuple[_Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """Hashes of the words of all texts, where each text begins among them, and its words by script ``(n_texts, 3)``."""
    every, wide, narrow = _patterns()
    words: list[int] = []
    starts, scripts = [0], np.zeros((len(texts), len(_CHARACTERS)), dtype=np.int64)
    for i, text in enumerate(texts):
        found = every.findall(text)
        words += [known[word] for word in found]
        starts.append(len(words))
        others = (0, 0) if text.isascii() else (len(wide.findall(text)), len(narrow.findall(text)))
        scripts[i] = len(found) - sum(others), *others
    return np.array(words, dtype=np.uint64), np.array(starts, dtype=np.int64), scripts


@cache
def _patterns() -> tuple[Any, Any, Any]:
    """What counts as a word in any script; the same in Han and kana; in Thai, Lao, Khmer and Burmese."""
    try:
        import regex
    except ImportError as error:
        raise MissingExtraError("regex", "train") from error
    said = r"[\p{L}\p{M}\p{N}]"
    wide, narrow = r"[\p{Han}\p{Hiragana}\p{Katakana}]", r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    one, other = (rf"[{said}&&{script}]" for script in (wide, narrow))
    every = rf"[{said}--{wide}--{narrow}]+|{one}|{other}"
    return tuple(regex.compile(pattern, regex.V1) for pattern in (every, one, other))
