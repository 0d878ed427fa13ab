"""Evaluation tasks from local files, and one that needs no labels.

    DATA/sts/NAME.jsonl[.gz]              sentence1, sentence2, score, lang         (@cross: across languages)
    DATA/bitext/NAME.jsonl[.gz]           sentence1, sentence2, lang_pair
    DATA/classification/NAME.jsonl[.gz]   text, label, lang, split        (split train is the probe set)
    DATA/retrieval/NAME/                  queries {id, text, lang}, corpus {id, text, title?}, qrels {qid, did, score}

A task is a value: checked rows, and for each language a function from "how to encode" to scores. Tasks know no encoder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import DataError
from leafembed.judge import formats, metrics
from leafembed.judge.formats import Groups, Item, Options
from leafembed.judge.intervals import Items, Scored
from leafembed.text import normalise_lang, normalise_text
from leafembed.types import FloatArray

__all__ = ["AGREEMENT", "Encode", "Part", "Task", "agreement_task", "check_disjoint", "load_tasks", "scored_items"]

AGREEMENT = "agreement"
"""Task id that :func:`load_tasks` skips: it is made from a teacher's vectors by :func:`agreement_task`."""

Encode = Callable[[Sequence[str], str | None], FloatArray]
"""Texts and a prompt name to ``(n_texts, dim)`` float32, unit length, in the order of the texts."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task in one language.

    Attributes:
        lang: Language tag, ``de-en`` for a pair of languages, ``all`` for a mixture.
        n: Scored items: pairs, queries or texts.
        data: Short hash of everything the score depends on, except the encoder.
        score: Every score by name and what they are resampled from, given how to encode.
        texts: Texts of the scored items.
    """

    lang: str
    n: int
    data: str
    score: Callable[[Encode], Scored]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One evaluation set.

    Attributes:
        id: What recipes and reports call it, e.g. ``sts/sts17_en.test``.
        type: ``STS``, ``BitextMining``, ``Classification``, ``Retrieval`` or ``Agreement``.
        metric: Name of the main score among those of every part.
        parts: One for each language.
        scored: Normalised texts of each scored item; what dev and test must not share.
        texts: Every normalised text of the set, also of documents and probe sets; what training must not contain.
        too_few: Rows of each language that has too few of them to be scored.
    """

    id: str
    type: str
    metric: str
    parts: tuple[Part, ...]
    scored: frozenset[tuple[str, ...]]
    texts: frozenset[str]
    too_few: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Kind:
    type: str
    metric: str
    texts: int  # leading fields of an item that are its texts
    score: Callable[[list[Item], Any, Encode], Scored]


def load_tasks(
    data: Path,
    names: Sequence[str],
    *,
    languages: Sequence[str] = (),
    max_rows: int | None = None,
    min_rows: int = 1,
    seed: int = 0,
    excluded: frozenset[tuple[str, ...]] = frozenset(),
) -> tuple[Task, ...]:
    """Read the named tasks below ``data``, in the order named, each once.

    Args:
        data: Folder laid out as this module describes.
        names: Task ids or globs; ``classification/NAME@SPLIT`` scores another split than test, ``sts/NAME@cross``
            English first sentences with the second sentences of the other languages.
        languages: Languages to score, in any spelling; a pair counts when both sides are named or English. Empty:
            all. A glob skips tasks without them.
        max_rows: Most scored items in one language, drawn at random; probe sets and documents stay whole.
            ``None``: all.
        min_rows: Fewest items that a language is scored with; those with fewer go to ``Task.too_few``.
        seed: Seed of the draw, and of the examples that classification learns from.
        excluded: Scored items to leave out, as :func:`scored_items` gives them.

    Raises:
        DataError: If a name matches nothing, a row is malformed, or no language is left that has enough rows.
    """
    wanted = [name for name in names if name != AGREEMENT]
    paths = _discover(data) if wanted else {}
    options = Options(frozenset(map(normalise_lang, languages)), max_rows, seed, excluded, min_rows)
    tasks: dict[str, Task] = {}
    for name in wanted:
        found = [tasks.get(id) or _load(id, path, options) for id, path in _match(name, paths, data).items()]
        found = [task for task in found if task.parts]
        if not found:
            raise DataError(f"{name}: holds no row to score in the languages {sorted(options.languages)}")
        tasks |= {task.id: task for task in found}
    return _with_enough(tasks.values(), min_rows)


def _with_enough(tasks: Iterable[Task], min_rows: int) -> tuple[Task, ...]:
    """The tasks, with only those languages that have enough rows."""
    result: list[Task] = []
    for task in tasks:
        few = {part.lang: part.n for part in task.parts if part.n < min_rows}
        result.append(replace(task, parts=tuple(p for p in task.parts if p.lang not in few), too_few=few))
    if result and not any(task.parts for task in result):
        raise DataError(f"got too few rows in every language, {dict(result[0].too_few)} in {result[0].id}, expected "
                        f"{min_rows} in one at least: name larger sets, or lower eval.min_rows")  # fmt: skip
    return tuple(result)


def check_disjoint(dev: Sequence[Task], test: Sequence[Task]) -> None:
    """Require that no scored item of a dev task is scored by a test task too.

    Pairs are compared as pairs, whichever side comes first; all texts in the form of ``normalise_text``.

    Raises:
        DataError: If items are shared; names the two tasks, how many, and one of them.
    """
    for chooser in dev:
        for judge in test:
            shared = chooser.scored & judge.scored
            if shared:
                raise DataError(
                    f"{chooser.id} (dev) and {judge.id} (test) share {len(shared)} scored items, such as "
                    f"{min(shared)}; expected none, so choose another dev task or split, or set eval.drop_shared = true"
                )


def scored_items(tasks: Sequence[Task]) -> frozenset[tuple[str, ...]]:
    """All items that the tasks score, for leaving them out of others."""
    return frozenset[tuple[str, ...]]().union(*(task.scored for task in tasks))


def agreement_task(
    texts: Sequence[str], langs: Sequence[str], vectors: FloatArray, *, prompt_name: str | None = None, seed: int = 0
) -> Task:
    """Return a task without labels: Spearman between the encoder's cosines and the teacher's over pairs of texts.

    Each text is paired with its nearest neighbour by the teacher and with a random text, of its own language where
    that has another one: otherwise telling languages apart would be enough to score.

    Args:
        texts: At least three different texts that are not trained on.
        langs: The language of each.
        vectors: ``(n_texts, dim)``, what the teacher makes of them, unit length.
        prompt_name: Prompt that the encoder reads them with; ``None``: no prompt.
        seed: Seed of the random partners.

    Raises:
        DataError: If there are too few texts or the teacher sees all pairs alike.
    """
    if not len(texts) == len(langs) == len(vectors):
        raise ValueError(f"got {len(texts)} texts, {len(langs)} languages, {len(vectors)} vectors, expected as many")
    if len(set(texts)) < 3:
        raise DataError(f"{AGREEMENT}: got {len(set(texts))} different texts, expected at least 3 to form pairs")
    neighbours = metrics.rank(vectors, vectors, k=2)
    nearest = np.where(neighbours[:, 0] == np.arange(len(texts)), neighbours[:, 1], neighbours[:, 0])
    partners = [*enumerate(nearest.tolist()), *enumerate(_partners(langs, seed))]
    couples = sorted({(min(i, j), max(i, j)) for i, j in partners})
    # A text and its copy have cosine 1 under every encoder: such a pair tells nothing.
    pairs = [(texts[i], texts[j], float(vectors[i] @ vectors[j])) for i, j in couples if texts[i] != texts[j]]
    formats.require_spread(pairs, AGREEMENT)
    kind = _Kind("Agreement", "cosine_spearman", 2, _score_pairs)
    return _task(AGREEMENT, kind, {"all": (pairs, prompt_name)}, texts)


def _partners(langs: Sequence[str], seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for i, lang in enumerate(langs):
        members.setdefault(lang, []).append(i)
    partners = []
    for i, lang in enumerate(langs):
        pool = members[lang] if len(members[lang]) > 1 else range(len(langs))
        draw = int(rng.integers(len(pool) - 1))
        # Drawing from one fewer and stepping over the text itself keeps the draw uniform over the others.
        partners.append(pool[draw] if pool[draw] < i else pool[draw + 1])
    return partners


def _discover(data: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for folder in _READERS:
        for path in sorted((data / folder).glob("*")):
            id = f"{folder}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
            if path.is_dir() if folder == "retrieval" else path.name.endswith((".jsonl", ".jsonl.gz")):
                if id in paths:
                    raise DataError(
                        f"{id}: got both {paths[id].name} and {path.name}; expected one, so remove the other"
                    )
                paths[id] = path
    if not paths:
        raise DataError(f"{data}: holds no task; expected files in one of its folders {sorted(_READERS)}")
    return paths


def _match(name: str, paths: Mapping[str, Path], data: Path) -> dict[str, Path]:
    pattern, _, split = name.partition("@")
    if split and not (pattern.startswith("classification/") or (pattern.startswith("sts/") and split == formats.CROSS)):
        raise DataError(
            f"{name}: got split {split!r}, but only tasks in classification/ have splits to choose from, and those in "
            f"sts/ have {formats.CROSS!r}"
        )
    matched = {id: path for id, path in paths.items() if fnmatchcase(id, pattern)}
    if not matched:
        near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.5) or sorted(paths)
        raise DataError(f"no task {name!r} in {data}: expected an id or glob of those there, such as {near}")
    return {f"{id}@{split}" if split else id: path for id, path in matched.items()}


def _load(id: str, path: Path, options: Options) -> Task:
    folder = id.partition("/")[0]
    kind, read = _READERS[folder]
    groups, texts = read(path, options, id.partition("@")[2] or "test")
    return _task(id, kind, groups, texts)


def _task(id: str, kind: _Kind, groups: Groups, texts: Sequence[str]) -> Task:
    parts, scored = [], set()
    for lang, (items, context) in sorted(groups.items()):
        if not items:
            raise DataError(
                f"{id} ({lang}): got no row to score, expected at least 1; leave the language out of eval.languages, "
                "or give the set rows that no test task holds"
            )
        plain = json.dumps([kind.type, items, context], sort_keys=True)
        hashed = hashlib.sha256(plain.encode()).hexdigest()[:16]
        own = tuple(text for item in items for text in item[: kind.texts])
        parts.append(Part(lang, len(items), hashed, partial(kind.score, items, context), own))
        scored |= {formats.item_key(item, kind.texts) for item in items}
    return Task(id, kind.type, kind.metric, tuple(parts), frozenset(scored), frozenset(map(normalise_text, texts)))


def _score_pairs(items: list[Item], prompt_name: str | None, encode: Encode) -> Scored:
    left, right, gold = zip(*items, strict=True)
    a, b = np.split(encode([*left, *right], prompt_name), 2)
    score = metrics.cosine_spearman(a, b, gold)
    return Scored({"cosine_spearman": score}, Items("spearman", np.column_stack([metrics.cosines(a, b), gold])))


def _score_bitext(items: list[Item], prompt_name: str, encode: Encode) -> Scored:
    left, right = zip(*items, strict=True)
    return metrics.bitext(encode(left, prompt_name), encode(right, prompt_name))


def _score_classification(items: list[Item], context: Mapping[str, Any], encode: Encode) -> Scored:
    (known, labels), (texts, gold) = zip(*context["probe"], strict=True), zip(*items, strict=True)
    draws = metrics.draw_examples(labels, seed=context["seed"])
    used = np.unique(np.concatenate(draws))  # a probe set can be a hundred times what the draws take of it
    train, test = encode([known[i] for i in used], "Classification"), encode(texts, "Classification")
    placed = [np.searchsorted(used, draw) for draw in draws]
    return metrics.classification(train, [labels[i] for i in used], test, gold, draws=placed)


def _score_retrieval(items: list[Item], documents: list[str], encode: Encode) -> Scored:
    queries, judgements = zip(*items, strict=True)
    ranked = metrics.rank(encode(queries, "query"), encode(documents, "document"), k=10)
    relevance = [dict(judged) for judged in judgements]
    gains, found = metrics.ndcg_at_k(ranked, relevance, k=10), metrics.recall_at_k(ranked, relevance, k=10)
    return Scored({"ndcg_at_10": float(gains.mean()), "recall_at_10": float(found.mean())}, Items("mean", gains))


_READERS: dict[str, tuple[_Kind, Callable[[Path, Options, str], tuple[Groups, list[str]]]]] = {
    "sts": (_Kind("STS", "cosine_spearman", 2, _score_pairs), formats.read_sts),
    "bitext": (_Kind("BitextMining", "f1", 2, _score_bitext), formats.read_bitext),
    "classification": (_Kind("Classification", "accuracy", 1, _score_classification), formats.read_classification),
    "retrieval": (_Kind("Retrieval", "ndcg_at_10", 1, _score_retrieval), formats.read_retrieval),
}
