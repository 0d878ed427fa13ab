"""From a bundle back to the student that it was made of, so that training can go on from what was shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leafembed.errors import Error, RecipeError
from leafembed.lineage import carry_lineage
from leafembed.progress import say
from leafembed.recipe import Recipe
from leafembed.ship.bundle import verify
from leafembed.ship.weights import unpack_student, write_rest
from leafembed.stages import fingerprint, once

__all__ = ["earlier_student", "pack_source"]


def pack_source(student: Path, folder: Path) -> None:
    """Add to a bundle that is being put together what :func:`earlier_student` makes a student of it with."""
    carry_lineage(student, folder)
    write_rest(student, folder)


def earlier_student(recipe: Recipe) -> Path:
    """Folder of the student that ``train.start`` names: a run's, or one made of a bundle.

    Raises:
        RecipeError: If it names neither, or a bundle that is altered or holds too little.
    """
    start = recipe.train.start
    assert start is not None
    start = start.expanduser()
    if not (start / "model.xml").is_file():
        return start / "student"
    try:
        manifest = verify(start)
        key = fingerprint(manifest["seal"])
        folder = recipe.cache_dir / "unpacked" / key / "student"

        def build(target: Path) -> dict[str, Any]:
            say(f"unpacking the student of {start}")
            unpack_student(start, target)
            carry_lineage(start, target)
            where = {"corpus": manifest["corpus"]["fingerprint"], "machine": manifest["machine"], "gpu": None}
            return {"where": where, **manifest["training"]}

        once(folder, key, build)
    except (Error, OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"train.start: got {start}, expected a bundle that leaf run made, from which training can go on: {error}"
        ) from error
    return folder
