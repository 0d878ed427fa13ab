"""The file formats of evaluation sets: strict readers from a file to what is scored in each language.

Readers know nothing of scores, and the scores in ``kinds.py`` nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import DataError, NoRowsError
from leafembed.judge.probes import pick_documents
from leafembed.text import languages_of, normalise_lang, normalise_text, read_rows

__all__ = [
    "CROSS",
    "Groups",
    "Item",
    "Options",
    "item_key",
    "read_bitext",
    "read_classification",
    "read_clustering",
    "read_pair",
    "read_reranking",
    "read_retrieval",
    "read_sts",
    "require_spread",
]

CROSS = "cross"
"""Split of an STS file that pairs an English first sentence with the second sentence of every other language."""

_SPLIT = "test"
"""Split that is scored where a file has several and none is named."""

_SECOND = frozenset("ar de en es fr it ja ko nl pl pt ru tr zh".split())
"""Languages that may be second in a pair; what else follows a language is its country, as in ``ko-kr``."""

Item = tuple[Any, ...]
Groups = dict[str, tuple[list[Item], Any]]
"""Language to what is scored, and to what it is scored against."""
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What of a file to score.

    Attributes:
        languages: Normalised languages; empty: all.
        max_rows: Most scored items in one language; ``None``: all.
        seed: Seed of drawing them.
        excluded: Scored items to leave out, in the form of :func:`item_key`.
        min_rows: Fewest of them that are scored; a language with fewer need not be fit to be scored.
    """

    languages: frozenset[str]
    max_rows: int | None
    seed: int
    excluded: frozenset[tuple[str, ...]] = frozenset()
    min_rows: int = 1

    def wants(self, sides: Sequence[str]) -> bool:
        """Whether rows in this language, or pair of languages, are scored."""
        # English is the other side of nearly every pair: asking for German means German with English too.
        pivot = {"en"} if len(sides) > 1 else set()
        return not self.languages or set(sides) <= self.languages | pivot

    def sample(self, items: list[Item], *, texts: int) -> list[Item]:
        """Return at most ``max_rows`` of the items that are not excluded, in their order.

        Args:
            items: Rows to score.
            texts: Leading fields of an item that are its texts.
        """
        items = [item for item in items if item_key(item, texts) not in self.excluded] if self.excluded else items
        if self.max_rows is None or len(items) <= self.max_rows:
            return items
        chosen = np.random.default_rng(self.seed).choice(len(items), self.max_rows, replace=False)
        return [items[i] for i in sorted(chosen)]


def item_key(item: Item, texts: int) -> tuple[str, ...]:
    """What a scored item is recognised by: its normalised texts, whichever comes first."""
    return tuple(sorted(map(normalise_text, item[:texts])))


def _grouped(rows: Sequence[_Row], key: str, options: Options) -> dict[str, list[_Row]]:
    """Rows by normalised language, of the wanted languages.

    A variant such as ``EN-ext`` is ``en_ext`` where the file holds plain ``EN`` too: they are two sets. Two languages
    in small letters, as ``de-en``, are a pair; ``pt-BR`` and ``ko-kr`` are one language.
    """
    tags = {row[key] for row in rows}
    plain = {normalise_lang(tag) for tag in tags if tag.isalpha()}
    shown = {}
    for tag in tags:
        sides = languages_of(tag) if key == "lang_pair" or _is_pair(tag) else [normalise_lang(tag)]
        if options.wants(sides):
            variant = len(sides) == 1 and sides[0] in plain and not tag.isalpha()
            shown[tag] = tag.lower().replace("-", "_") if variant else "-".join(sides)
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        if row[key] in shown:
            groups.setdefault(shown[row[key]], []).append(row)
    return groups


def _is_pair(tag: str) -> bool:
    first, _, second = tag.partition("-")
    return tag.islower() and normalise_lang(first) != (other := normalise_lang(second)) and other in _SECOND


def read_sts(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(sentence1, sentence2, score)`` by language, against the prompt name, and all texts."""
    rows = read_rows(path, texts=("sentence1", "sentence2"), names=("lang",), numbers=("score",))
    if split == CROSS and options.languages:
        options = replace(options, languages=options.languages | {"en"})
    pairs = {
        lang: [(row["sentence1"], row["sentence2"], row["score"]) for row in members]
        for lang, members in _grouped(rows, "lang", options).items()
    }
    if split == CROSS:
        pairs = _crossed(pairs, {normalise_lang(row["lang"]) for row in rows}, path)
    groups: Groups = {}
    for lang, members in pairs.items():
        items = options.sample(members, texts=2)
        if len(items) >= options.min_rows:
            require_spread(items, f"{path} ({lang})")
        groups[lang] = (items, "STS")
    return groups, [row[side] for row in rows for side in ("sentence1", "sentence2")]


def _crossed(pairs: dict[str, list[Item]], languages: set[str], path: Path) -> dict[str, list[Item]]:
    """English first sentences with the second sentences of each other language, row by row, as ``en-de`` and so on.

    The rows of all languages must be translations of each other in the same order, which equal scores vouch for.
    """
    english = pairs.get("en")
    if english is None or len(languages) < 2:
        raise NoRowsError(f"{path}: got the languages {sorted(languages)}, expected en and another one to cross with")
    crossed = {}
    for lang, others in pairs.items():
        if [score for *_, score in others] != [score for *_, score in english]:
            raise DataError(f"{path}: the rows in {lang} are not those in en, in order; expected translations of them")
        if lang != "en":
            crossed[f"en-{lang}"] = [
                (mine[0], theirs[1], mine[2]) for mine, theirs in zip(english, others, strict=True)
            ]
    return crossed


def require_spread(items: Sequence[Item], where: str) -> None:
    """Raise :class:`DataError` if every pair has the same score, so that there is no order to compare with."""
    if len({score for _, _, score in items}) < 2:
        raise DataError(f"{where}: all {len(items)} pairs have the same score; expected at least two different ones")


def read_bitext(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(sentence1, sentence2)`` by pair of languages, against the prompt name, and all texts."""
    rows = read_rows(path, texts=("sentence1", "sentence2"), names=("lang_pair",))
    for number, row in enumerate(rows, start=1):
        if row["lang_pair"].count("-") != 1:
            raise DataError(f"{path}:{number}: got lang_pair {row['lang_pair']!r}, expected two languages as deu-eng")
    groups: Groups = {
        pair: (options.sample([(row["sentence1"], row["sentence2"]) for row in members], texts=2), "BitextMining")
        for pair, members in _grouped(rows, "lang_pair", options).items()
    }
    return groups, [row[side] for row in rows for side in ("sentence1", "sentence2")]


def read_classification(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(text, label)`` of one split by language, against the same of the train split, and all texts."""
    rows = read_rows(path, texts=("text",), names=("label", "lang", "split"))
    splits, split = sorted({row["split"] for row in rows}), split or _SPLIT
    if split not in splits or split == "train" or "train" not in splits:
        raise DataError(f"{path}: got split {split!r} to score, expected one besides train of those there: {splits}")
    groups: Groups = {}
    for lang, members in _grouped(rows, "lang", options).items():
        probe = [(row["text"], row["label"]) for row in members if row["split"] == "train"]
        items = options.sample([(row["text"], row["label"]) for row in members if row["split"] == split], texts=1)
        if len(items) >= options.min_rows and len({label for _, label in probe}) < 2:
            raise DataError(f"{path} ({lang}): split train holds fewer than two labels to tell apart")
        if items:
            groups[lang] = (items, probe)
    return groups, [row["text"] for row in rows]


def read_clustering(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return drawn ``(text, label)`` by language, against how many they were drawn from, and all texts."""
    rows = read_rows(path, texts=("text",), names=("label", "lang"), optional=("split",))
    groups: Groups = {}
    for lang, members in _grouped(_of_split(rows, split, path), "lang", options).items():
        items = options.sample([(row["text"], row["label"]) for row in members], texts=1)
        drawn = [items[i] for i in pick_documents(len(items))]
        if len(drawn) >= options.min_rows and len({label for _, label in drawn}) < 2:
            raise DataError(
                f"{path} ({lang}): all {len(drawn)} texts have the same label; expected at least two labels"
            )
        groups[lang] = (drawn, len(items))
    return groups, [row["text"] for row in rows]


def read_pair(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(sentence1, sentence2, 0 or 1)`` by language, against nothing, and all texts."""
    rows = read_rows(path, texts=("sentence1", "sentence2"), names=("label", "lang"), optional=("split",))
    for number, row in enumerate(rows, start=1):
        if row["label"] not in ("0", "1"):
            raise DataError(f"{path}:{number}: got label {row['label']!r}, expected 1 for the same meaning, else 0")
    groups: Groups = {}
    for lang, members in _grouped(_of_split(rows, split, path), "lang", options).items():
        pairs = [(row["sentence1"], row["sentence2"], int(row["label"])) for row in members]
        items = options.sample(pairs, texts=2)
        if len(items) >= options.min_rows:
            require_spread(items, f"{path} ({lang})")
        groups[lang] = (items, None)
    return groups, [row[side] for row in rows for side in ("sentence1", "sentence2")]


def read_reranking(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(query, relevant texts, other texts)`` by language, against nothing, and all texts."""
    rows = read_rows(path, texts=("query",), names=("lang",), lists=("positive", "negative"), optional=("split",))
    groups: Groups = {
        lang: (options.sample([(row["query"], row["positive"], row["negative"]) for row in members], texts=1), None)
        for lang, members in _grouped(_of_split(rows, split, path), "lang", options).items()
    }
    return groups, [text for row in rows for text in (row["query"], *row["positive"], *row["negative"])]


def _of_split(rows: Sequence[_Row], split: str, path: Path) -> Sequence[_Row]:
    """The rows of one split; all of a file that names none."""
    splits = {row["split"] for row in rows}
    if splits == {""} and not split:
        return rows
    if (split or _SPLIT) not in splits or "" in splits:
        named = sorted(splits - {""}) or "none"
        raise DataError(f"{path}: got split {split or _SPLIT!r} to score, expected one that its rows name: {named}; "
                        "either all rows name one, or none does")  # fmt: skip
    return [row for row in rows if row["split"] == (split or _SPLIT)]


def read_retrieval(path: Path, options: Options, split: str) -> tuple[Groups, list[str]]:
    """Return ``(query, [(document index, relevance)])`` by language, against the documents, and all texts."""
    queries = _by_id(_either(path / "queries"), texts=("text",), names=("id", "lang"))
    corpus = _by_id(_either(path / "corpus"), names=("id",), optional=("title", "text"))
    documents = {id: " ".join(filter(None, (row["title"], row["text"]))) for id, row in corpus.items()}
    blank = [id for id, text in documents.items() if not text.strip()]
    if blank:
        raise DataError(f"{path}: {len(blank)} documents hold neither title nor text, such as id {blank[0]!r}")
    position = {id: i for i, id in enumerate(documents)}
    relevance: dict[str, dict[int, float]] = {}
    judgements = _either(path / "qrels")
    for number, row in enumerate(read_rows(judgements, names=("qid", "did"), numbers=("score",)), start=1):
        if row["qid"] not in queries or row["did"] not in documents:
            raise DataError(f"{judgements}:{number}: judges {row['qid']!r} with {row['did']!r}, expected known ids")
        if relevance.setdefault(row["qid"], {}).setdefault(position[row["did"]], row["score"]) != row["score"]:
            raise DataError(f"{judgements}:{number}: judges {row['qid']!r} with {row['did']!r} again and otherwise")
    # A query without a relevant document has no ideal ranking; benchmarks leave such queries out as well.
    judged = [row for id, row in queries.items() if max(relevance.get(id, {}).values(), default=0) > 0]
    groups: Groups = {}
    for lang, members in _grouped(judged, "lang", options).items():
        items = options.sample([(row["text"], list(relevance[row["id"]].items())) for row in members], texts=1)
        groups[lang] = (items, list(documents.values()))
    return groups, [*(row["text"] for row in queries.values()), *documents.values()]


def _either(path: Path) -> Path:
    found = [file for file in (path.with_name(f"{path.name}.jsonl{end}") for end in ("", ".gz")) if file.exists()]
    if len(found) != 1:
        raise DataError(f"{path}: got {len(found)} files named so; expected one, ending .jsonl or .jsonl.gz")
    return found[0]


def _by_id(path: Path, **columns: Sequence[str]) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for number, row in enumerate(read_rows(path, **columns), start=1):
        if rows.setdefault(row["id"], row) is not row:
            raise DataError(f"{path}:{number}: id {row['id']!r} occurs twice; expected each once")
    return rows
