"""From a bundle back to the student that it was made of, so that training can go on from what was shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leafembed.errors import BundleError, Error, RecipeError
from leafembed.learn.factors import read_factors
from leafembed.learn.vocabulary import REPORT
from leafembed.lineage import LINEAGE_FILES, Lineage, carry_lineage, read_lineage
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.ship.bundle import verify
from leafembed.ship.weights import REST, unpack_student, write_rest
from leafembed.stages import fingerprint, once

__all__ = ["earlier_lineage", "earlier_student", "pack_source"]


def pack_source(student: Path, folder: Path) -> None:
    """Add to a bundle that is being put together what :func:`earlier_student` makes a student of it with."""
    carry_lineage(student, folder)
    factorised = read_factors(student) is not None  # the graph holds the factors, training wants their product
    if factorised or not write_rest(student, folder):
        say("training cannot go on from this bundle: its graph does not hold the student's matrices; keep the run")


def earlier_student(recipe: Recipe) -> Path:
    """Folder of the student that ``train.start`` names: one made of a bundle, or a run's, which may not be there.

    Raises:
        RecipeError: If it names a bundle that is altered or holds too little.
    """
    start = recipe.train.start
    assert start is not None
    start = start.expanduser()
    if not (start / "model.xml").is_file():
        return start / "student"
    try:
        manifest = verify(start)
        unlisted = sorted({REST, *LINEAGE_FILES} - manifest["files"].keys())
        if unlisted:
            raise BundleError(f"{start}: its manifest lists no {', '.join(unlisted)}")
        key = fingerprint(manifest["seal"])
        folder = recipe.cache_dir / "unpacked" / key / "student"

        def build(target: Path) -> dict[str, Any]:
            say(f"unpacking the student of {start}")
            unpack_student(start, target)
            carry_lineage(start, target)
            if "vocabulary" in manifest:
                text = json.dumps(manifest["vocabulary"], ensure_ascii=False) + "\n"
                (target / REPORT).write_text(text, encoding="utf-8")
            return dict(manifest["training"])

        once(folder, key, build)
    except Error as error:
        raise RecipeError(
            f"train.start: got {start}, expected a bundle that leaf run made, from which training can go on: {error}"
        ) from error
    return folder


def earlier_lineage(recipe: Recipe) -> Lineage | None:
    """What the student that ``train.start`` names has learned from; ``None``: training starts anew.

    Raises:
        RecipeError: If it names neither a run that trained a student nor a bundle.
    """
    if recipe.train.start is None:
        return None
    folder = earlier_student(recipe)
    try:
        return read_lineage(folder)
    except Error as error:
        raise RecipeError(
            f"train.start: got {recipe.train.start}, expected the folder of a run that trained a student, or a bundle: "
            f"{error}"
        ) from error
