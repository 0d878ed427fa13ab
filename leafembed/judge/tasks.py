"""Evaluation tasks from local files.

    DATA/sts/NAME.jsonl[.gz]              sentence1, sentence2, score, lang         (@cross: across languages)
    DATA/bitext/NAME.jsonl[.gz]           sentence1, sentence2, lang_pair
    DATA/classification/NAME.jsonl[.gz]   text, label, lang, split        (split train is the probe set)
    DATA/clustering/NAME.jsonl[.gz]       text, label, lang, split?
    DATA/pair/NAME.jsonl[.gz]             sentence1, sentence2, label (0 or 1), lang, split?
    DATA/reranking/NAME.jsonl[.gz]        query, positive [text, ...], negative [text, ...], lang, split?
    DATA/retrieval/NAME/                  queries {id, text, lang}, corpus {id, text, title?}, qrels {qid, did, score}

``lang`` is one language, ``pt-BR`` too, or a pair in small letters as ``de-en`` (docs/extending.md says which).
Where a file names splits, test is scored unless the task's name ends in another, as ``pair/pawsx@dev``.

A task is a value: rows already read and checked, and for each language a function from "how to encode" to scores.
Tasks know no encoder, so that teacher, student and floors are scored by the same rows and code.
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

from leafembed.errors import DataError, NoRowsError
from leafembed.judge import formats
from leafembed.judge.formats import Groups, Options
from leafembed.judge.intervals import Scored
from leafembed.judge.kinds import KINDS, Encode, Kind
from leafembed.progress import say
from leafembed.text import normalise_lang, normalise_text

__all__ = ["AGREEMENT", "Part", "Task", "build_task", "check_disjoint", "contents_of", "find_tasks", "load_tasks",
           "scored_items"]  # fmt: skip

AGREEMENT = "agreement"
"""Task id that :func:`load_tasks` skips: ``agreement.py`` makes it from a teacher's vectors."""

_WITH_SPLITS = ("classification/", "clustering/", "pair/", "reranking/")
"""What has splits within a file; the others have a file for each."""

_NOT_TEST = (".dev", ".train", ".valid", ".validation")
"""Ends of names of sets that a glob means only where it says so."""


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
        type: One of mteb's, as in ``kinds.py``, or ``Agreement``.
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


def load_tasks(
    data: Path,
    names: Sequence[str],
    *,
    languages: Sequence[str] = (),
    max_rows: int | None = None,
    min_rows: int = 1,
    seed: int = 0,
    excluded: frozenset[tuple[str, ...]] = frozenset(),
    dev: bool = False,
) -> tuple[Task, ...]:
    """Read the named tasks below ``data``, in the order named, each once.

    Args:
        data: Folder laid out as this module describes.
        names: Task ids or globs; ``NAME@SPLIT`` scores another split than test, ``sts/NAME@cross`` English first
            sentences with the second sentences of the other languages.
        languages: Languages to score, in any spelling; a pair counts when both sides are named or English. Empty:
            all. A glob skips tasks without them.
        max_rows: Most scored items in one language, drawn at random; probe sets and documents stay whole.
            ``None``: all.
        min_rows: Fewest items that a language is scored with; those with fewer go to ``Task.too_few``.
        seed: Seed of the draw.
        excluded: Scored items to leave out, as :func:`scored_items` gives them.
        dev: Whether a glob means dev and training sets too, which it otherwise does only if it ends in ``.dev`` or so.

    Raises:
        DataError: If a name matches nothing or a row is malformed.
        NoRowsError: If no language is left that has enough rows.
    """
    wanted = [name for name in names if name != AGREEMENT]
    paths = _discover(data) if wanted else {}
    options = Options(frozenset(map(normalise_lang, languages)), max_rows, seed, excluded, min_rows)
    tasks: dict[str, Task] = {}
    for name in wanted:
        found = [tasks.get(id) or _load(id, path, options) for id, path in _match(name, paths, data, dev=dev).items()]
        found = [task for task in found if task.parts]
        if not found:
            raise NoRowsError(f"{name}: holds no row to score in the languages {sorted(options.languages)}")
        tasks |= {task.id: task for task in found}
    return _with_enough(tasks.values(), min_rows)


def contents_of(tasks: Iterable[Task]) -> list[tuple[str, str, str]]:
    """What scores on the tasks depend on besides who is scored: task, language and hash of the rows."""
    return [(task.id, part.lang, part.data) for task in tasks for part in task.parts]


def _with_enough(tasks: Iterable[Task], min_rows: int) -> tuple[Task, ...]:
    """The tasks, with only those languages that have enough rows."""
    result: list[Task] = []
    for task in tasks:
        few = {part.lang: part.n for part in task.parts if part.n < min_rows}
        result.append(replace(task, parts=tuple(p for p in task.parts if p.lang not in few), too_few=few))
    if result and not any(task.parts for task in result):
        raise NoRowsError(f"got too few rows in every language, {dict(result[0].too_few)} in {result[0].id}, expected "
                          f"{min_rows} in one at least: name larger sets, or lower eval.min_rows")  # fmt: skip
    return tuple(result)


def build_task(id: str, kind: Kind, groups: Groups, texts: Sequence[str]) -> Task:
    """Return the task of rows that are read.

    Args:
        id: What recipes and reports call it.
        kind: How it is scored.
        groups: What is scored in each language, and against what.
        texts: Every text of the set.

    Raises:
        DataError: If a language has no row.
    """
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


def find_tasks(data: Path, name: str) -> list[str]:
    """Return the ids of the tasks below ``data`` that a name or glob means; empty: there is none, or no such folder."""
    return [id for id in _files(data) if fnmatchcase(id, name.partition("@")[0])]


def _files(data: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for folder in KINDS:
        for path in sorted((data / folder).glob("*")):
            id = f"{folder}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
            if path.is_dir() if folder == "retrieval" else path.name.endswith((".jsonl", ".jsonl.gz")):
                if id in paths:
                    raise DataError(
                        f"{id}: got both {paths[id].name} and {path.name}; expected one, so remove the other"
                    )
                paths[id] = path
    return paths


def _discover(data: Path) -> dict[str, Path]:
    paths = _files(data)
    if not paths:
        raise DataError(
            f"{data}: holds no task; expected files in one of its folders {sorted(KINDS)}; name a folder "
            "that holds some by eval.data or --data"
        )
    return paths


def _match(name: str, paths: Mapping[str, Path], data: Path, *, dev: bool) -> dict[str, Path]:
    pattern, _, split = name.partition("@")
    crossed = pattern.startswith("sts/") and split == formats.CROSS
    if split and not (crossed or pattern.startswith(_WITH_SPLITS)):
        raise DataError(
            f"{name}: got split {split!r}, but only tasks in {', '.join(_WITH_SPLITS)} have splits to choose from, and "
            f"those in sts/ have {formats.CROSS!r}"
        )
    matched = {id: path for id, path in paths.items() if fnmatchcase(id, pattern)}
    left = [] if dev or pattern.endswith(_NOT_TEST) else [id for id in matched if id.endswith(_NOT_TEST)]
    if left:
        matched = {id: path for id, path in matched.items() if id not in left}
        say(f"{name} leaves out {', '.join(left)}: models are chosen on these; name them to score them")
    if not matched:
        near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.5) or sorted(paths)
        raise DataError(f"no task {name!r} in {data}: expected an id or glob of those there, such as {near}")
    return {f"{id}@{split}" if split else id: path for id, path in matched.items()}


def _load(id: str, path: Path, options: Options) -> Task:
    folder = id.partition("/")[0]
    kind, read = KINDS[folder]
    groups, texts = read(path, options, id.partition("@")[2])
    return build_task(id, kind, groups, texts)
