"""Where training starts: at the first student, or at what an earlier run made of one (``train.start``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leafembed.errors import require
from leafembed.lineage import Lineage, read_lineage, read_training
from leafembed.steps import Line, student_folder
from leafembed.unpacking import earlier_student

__all__ = ["Start", "starting_student"]

_SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "layer_types")
_CONFIG = "config.json"
_FREE_OF_TEACHER = {"model", "name", "revision", "engine", "precision", "batch_tokens", "shard_rows", "api_key_file"}
"""Settings of the teacher that may change between parts: names and places, of which the fingerprint says more, and
arithmetic."""

_FREE_OF_STUDENT = {"exits", "dims", "model", "vocab_text"}
"""Settings of the student that may change: what is trained besides, and places."""

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
    if recipe.train.start is None:
        return Start(first)
    folder = earlier_student(recipe)
    facts, before = read_training(folder), read_lineage(folder)
    require(_shape(folder) == _shape(first), "train.start", _shape(folder),
            f"a student of the recipe's shape, {_shape(first)}")  # fmt: skip
    _require_same(line, before)
    prompts = line.learned.student_prompts(recipe.student, recipe.teacher.prompt_name)
    own = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))["prompts"]
    require(own == prompts, "train.start", own, f"a student whose prompts are {prompts}")
    now = {name: facts[name] for name in _EARLIER if name in facts}
    return Start(folder, (*facts.get("earlier", ()), now))


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return {name: config.get(name) for name in _SHAPE}


def _require_same(line: Line, before: Lineage) -> None:
    """What the card says of the whole training must hold for its first part too."""
    recipe, learned = line.recipe, line.learned
    teacher = learned.teacher.ref.fingerprint
    require(before.teacher == teacher, "teacher of train.start", before.teacher, f"{teacher}, as the recipe's")
    for section, free in (("teacher", _FREE_OF_TEACHER), ("student", _FREE_OF_STUDENT)):
        then, now = (one.to_dict()[section] for one in (before.recipe, recipe))
        for key in sorted({*then, *now} - free):
            require(then.get(key) == now.get(key), f"{section}.{key} of train.start", then.get(key),
                    f"{now.get(key)!r}, as the recipe's")  # fmt: skip
    unlisted = _unlisted(before.sources, learned.corpus.sources)
    require(not unlisted, "data.sources", "nothing of " + ", ".join(unlisted), "every source of train.start, by the "
            "same licence and origin")  # fmt: skip
    loose = sorted(task for task, content in learned.kept_out.items() if before.kept_out.get(task) != content)
    require(not loose, "eval", loose, "only tasks, with the same content, that train.start kept out of its text, as "
            f"its eval.dev, eval.test or eval.decontaminate: {sorted(before.kept_out)}")  # fmt: skip


def _unlisted(before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the sources before that are not among those now."""
    return sorted(name for name, *_ in (Counter(map(_origin, before)) - Counter(map(_origin, now))).elements())


def _origin(source: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a source is known by, wherever its file lies."""
    return Path(source["path"]).name, source.get("licence"), source.get("origin")
