"""Where training starts: at the first student, or at what an earlier run made of one (``train.start``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafembed.errors import require
from leafembed.lineage import AFRESH, read_lineage, read_training
from leafembed.record import portable
from leafembed.steps import Line, student_folder
from leafembed.unpacking import earlier_student

__all__ = ["Start", "starting_student"]

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
    """Return the student that training starts from.

    ``prepare.py`` held what it learned from against the recipe before the teacher did its work. Shape and prompts are
    what the teacher's files make of the recipe, so they come here.

    Raises:
        RecipeError: If ``train.start`` is no finished run, or its student differs in shape or prompts.
    """
    first, recipe = student_folder(line, trained=False), line.recipe
    if recipe.train.start is None:
        return Start(first)
    folder = earlier_student(recipe)
    facts, before = read_training(folder), read_lineage(folder)
    require(_shape(folder) == _shape(first), "train.start", _shape(folder),
            f"a student of the recipe's shape, {_shape(first)}; {AFRESH}")  # fmt: skip
    prompts = line.learned.student_prompts(recipe.student, recipe.teacher.prompt_name)
    own = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    require(own == prompts, "train.start", own, f"a student whose prompts are {prompts}; {AFRESH}")
    now = {name: facts[name] for name in _EARLIER if name in facts} | {"recipe": portable(before.recipe)}
    return Start(folder, (*facts.get("earlier", ()), now))


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return {name: config.get(name) for name in _SHAPE}
