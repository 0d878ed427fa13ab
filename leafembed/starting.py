"""Where training starts: at the first student, or at what an earlier run made of one (``train.start``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafembed.errors import Error, RecipeError, require
from leafembed.recipe import Recipe
from leafembed.recipe_io import load_recipe
from leafembed.stages import MARKER
from leafembed.steps import RESOLVED, Line, student_folder

__all__ = ["Start", "read_training", "starting_student"]

_SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "layer_types")
_CONFIG = "config.json"
_EARLIER = ("steps", "texts", "tokens", "seconds", "where")


@dataclass(frozen=True, slots=True)
class Start:
    """A student that training starts from.

    Attributes:
        folder: The sentence-transformers folder.
        earlier: What is on record of each training that made it, first one first; empty for an untrained student.
    """

    folder: Path
    earlier: tuple[Mapping[str, Any], ...] = field(default=())


def starting_student(line: Line) -> Start:
    """Return the student that training starts from, once it is certain that the run can account for it.

    Raises:
        RecipeError: If ``train.start`` is no finished run, or differs in shape, teacher or prompts, or read text that
            the recipe does not list, or did not keep out what this recipe judges by.
    """
    first, recipe = student_folder(line, trained=False), line.recipe
    run = recipe.train.start
    if run is None:
        return Start(first)
    run = run.expanduser()
    folder = run / "student"
    try:
        facts, before = read_training(folder), load_recipe(run / RESOLVED)
    except Error as error:
        raise RecipeError(
            f"train.start: got {run}, expected the folder of a run that trained a student: {error}"
        ) from error
    _require_same(recipe, before, _shape(first), _shape(folder))
    prompts = line.learned.student_prompts(recipe.student, recipe.teacher.prompt_name)
    own = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    require(own == prompts, "train.start", own, f"a student whose prompts are {prompts}")
    now = {name: facts[name] for name in _EARLIER if name in facts}
    return Start(folder, (*facts.get("earlier", ()), now))


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


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return {name: config.get(name) for name in _SHAPE}


def _require_same(recipe: Recipe, before: Recipe, first: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """What the card says of the whole training must hold for its first part too."""
    require(earlier == first, "train.start", earlier, f"a student of the recipe's shape, {dict(first)}")
    for key in ("model", "revision", "licence", "prompt_name"):
        got, expected = getattr(before.teacher, key), getattr(recipe.teacher, key)
        require(got == expected, f"teacher.{key} of train.start", got, f"{expected!r}, as the recipe's")
    bits = before.student.table_bits
    require(
        bits == recipe.student.table_bits, "student.table_bits of train.start", bits, repr(recipe.student.table_bits)
    )
    unlisted = _origins(before) - _origins(recipe)
    require(not unlisted, "data.sources", "nothing of " + ", ".join(sorted(unlisted)), "every source of train.start")
    judged = {*recipe.eval.dev, *recipe.eval.test, *recipe.eval.decontaminate}
    kept_out = {*before.eval.dev, *before.eval.test, *before.eval.decontaminate}
    loose = judged - kept_out
    require(not loose, "eval", sorted(loose), "only tasks, named alike, that train.start kept out of its text, as its "
            f"eval.dev, eval.test or eval.decontaminate: {sorted(kept_out)}")  # fmt: skip


def _origins(recipe: Recipe) -> set[str]:
    return {source.path or source.hub or source.named for source in recipe.data.sources}
