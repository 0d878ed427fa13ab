"""What a student learned from, kept beside its weights: whoever goes on from it has to account for all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import Error
from leafembed.recipe import Recipe
from leafembed.recipe_io import load_recipe
from leafembed.record import portable, portable_path
from leafembed.ship.markdown import to_toml
from leafembed.stages import MARKER
from leafembed.text import normalise_text, text_hash

__all__ = ["LINEAGE_FILES", "Lineage", "carry_lineage", "hashes_of", "read_lineage", "read_training", "write_lineage"]

LINEAGE_FILES = _RECIPE, _FACTS, _TEXTS = "learned_by.toml", "learned_from.json", "learned_texts.npy"
"""Its files: the recipe, teacher and sources, hashes of the texts."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a student learned from, its earlier parts included.

    Attributes:
        recipe: The recipe of its last part.
        teacher: Fingerprint of its teacher.
        kept_out: Hash of each evaluation set that was kept out of all text, by task id.
        sources: ``path``, ``licence`` and ``origin`` of each source.
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
