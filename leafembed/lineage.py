"""What a student learned from, kept beside its weights: whoever goes on from it has to account for all of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import Error, require
from leafembed.recipe import Recipe
from leafembed.recipe_io import load_recipe
from leafembed.record import portable, portable_path
from leafembed.ship.markdown import to_toml
from leafembed.stages import MARKER
from leafembed.text import normalise_text, text_hash

__all__ = [
    "AFRESH",
    "LINEAGE_FILES",
    "Lineage",
    "carry_lineage",
    "hashes_of",
    "kept_out_of_all",
    "read_lineage",
    "read_training",
    "require_goes_on",
    "require_listed",
    "require_same_teacher",
    "write_lineage",
]

AFRESH = "or leave train.start out, to train afresh"
"""What is always left to do where a run cannot go on from another."""

LINEAGE_FILES = _RECIPE, _FACTS, _TEXTS = "learned_by.toml", "learned_from.json", "learned_texts.npy"
"""Its files: the recipe, teacher and sources, hashes of the texts."""

_FREE_OF_TEACHER = {"model", "name", "revision", "engine", "precision", "batch_tokens", "shard_rows", "api_key_file"}
"""Settings of the teacher that may change between parts: names and places, of which the fingerprint says more, and
arithmetic."""

_FREE_OF_STUDENT = {"exits", "dims", "matrix_bits", "model", "vocab_text"}
"""Settings of the student that may change: what is trained besides, how it is rounded at the end, and places."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a student learned from, its earlier parts included.

    Attributes:
        recipe: The recipe of its last part.
        teacher: Fingerprint of its teacher.
        kept_out: Hash of each evaluation set that was kept out of all text, by task id.
        sources: ``path``, ``licence``, ``origin`` and ``sha256`` of each source.
        texts: Hashes of all training texts ``(n,)`` uint64, ascending.
    """

    recipe: Recipe
    teacher: str
    kept_out: Mapping[str, str]
    sources: tuple[Mapping[str, Any], ...]
    texts: NDArray[np.uint64]


def hashes_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Hashes of texts, each once ``(n,)``, ascending; case, width and white space do not count."""
    return np.unique(np.fromiter((text_hash(normalise_text(text)) for text in texts), dtype=np.uint64))


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write it into a student's folder, whose marker comes later; the recipe names no one's machine."""
    (folder / _RECIPE).write_text(to_toml(portable(lineage.recipe)), encoding="utf-8")
    sources = [{**source, "path": portable_path(source["path"])} for source in lineage.sources]
    facts = {"teacher": lineage.teacher, "kept_out": dict(lineage.kept_out), "sources": sources}
    (folder / _FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    np.save(folder / _TEXTS, lineage.texts)


def read_lineage(folder: Path) -> Lineage:
    """Read it from a student's folder.

    Raises:
        Error: If the folder holds no finished student, or one without it.
    """
    read_training(folder)
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        texts = np.load(folder / _TEXTS, allow_pickle=False)
        return Lineage(
            load_recipe(folder / _RECIPE), facts["teacher"], facts["kept_out"], tuple(facts["sources"]), texts
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise Error(f"{folder}: no record of what it learned from ({error!r})") from error


def carry_lineage(student: Path, folder: Path) -> None:
    """Copy it from a student's folder into a bundle that is being put together."""
    for name in LINEAGE_FILES:
        shutil.copyfile(student / name, folder / name)


def read_training(folder: Path) -> dict[str, Any]:
    """What training reported of the student in this folder.

    Raises:
        Error: If the folder is no such student.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))["facts"]
        _ = facts["where"]["corpus"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Error(f"{folder}: no record of training in it ({error!r})") from error
    return facts


def require_goes_on(
    recipe: Recipe, before: Lineage | None, *, test: Mapping[str, str], dev: Mapping[str, Collection[str]]
) -> None:
    """Check that a run may go on from a student: what the card says of all training must hold for its first part too.

    Args:
        recipe: Of the run.
        before: What the student learned from; ``None``: the run starts anew, and nothing has to hold.
        test: Hash of each evaluation set that the run judges by, by task id.
        dev: Texts of each set that it chooses by, as ``normalise_text`` returns them, by task id.

    Raises:
        RecipeError: If settings of teacher or student differ, if a set to judge by was not kept out of the student's
            text, or if a set to choose by shares a whole text with it.
    """
    if before is None:
        return
    for section, free in (("teacher", _FREE_OF_TEACHER), ("student", _FREE_OF_STUDENT)):
        then, now = (one.to_dict()[section] for one in (before.recipe, recipe))
        for key in sorted({*then, *now} - free):
            require(then.get(key) == now.get(key), f"{section}.{key} of train.start", then.get(key),
                    f"{now.get(key)!r}, as the recipe's: set {section}.{key} to what it was, {AFRESH}")  # fmt: skip
    loose = sorted(test.keys() - kept_out_of_all(before, test).keys())
    require(not loose, "eval.test", loose, "only tasks, with the same content, that train.start kept out of its text, "
            f"as its eval.dev, eval.test or eval.decontaminate: {sorted(before.kept_out)}; leave "
            f"{', '.join(loose)} out of eval.test, {AFRESH}")  # fmt: skip
    met = sorted(task for task, texts in dev.items() if np.isin(hashes_of(texts), before.texts).any())
    require(not met, "eval.dev", met, "only tasks of whose texts train.start learned none; leave "
            f"{', '.join(met)} out of eval.dev, {AFRESH}")  # fmt: skip


def kept_out_of_all(before: Lineage | None, kept_out: Mapping[str, str]) -> dict[str, str]:
    """Of the evaluation sets that a run keeps out of its text, those that were kept out of all earlier text too.

    A student that has met a set once has met it, however well later parts avoid it.

    Args:
        before: What the student learned from; ``None``: nothing.
        kept_out: Hash of each set, by task id.
    """
    same = {task: content for task, content in kept_out.items() if before and before.kept_out.get(task) == content}
    return same if before else dict(kept_out)


def require_listed(sources: Iterable[Mapping[str, Any]], before: Lineage | None) -> None:
    """Check that ``sources`` name every source that a student learned from before; ``None``: it is a new one.

    Raises:
        RecipeError: If they do not.
    """
    unlisted = _unlisted(before.sources, sources) if before else []
    require(not unlisted, "data.sources", "nothing of " + ", ".join(unlisted), "every source of train.start, by the "
            f"same origin: list it (weight 0 does not), {AFRESH}")  # fmt: skip


def require_same_teacher(fingerprint: str | None, before: Lineage | None) -> None:
    """Check that a student had the teacher with this fingerprint before; ``None``: it is a new one.

    Raises:
        RecipeError: If it had another.
    """
    if before is not None:
        require(before.teacher == fingerprint, "teacher of train.start", before.teacher,
                f"{fingerprint}, as the recipe's: name the same files as teacher.model, {AFRESH}")  # fmt: skip


def _unlisted(before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the sources before that are not among those now."""
    return sorted(name for name, *_ in (Counter(map(_origin, before)) - Counter(map(_origin, now))).elements())


def _origin(source: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a source is known by, wherever its file lies; its licence may have been corrected since."""
    return Path(source["path"]).name, source.get("origin")
