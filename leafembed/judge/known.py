"""Data sets that well-known teachers were trained on, where published, and evaluation sets that share with them.

A student learns from its teacher's vectors, so what the teacher saw in training touches the student's scores too. The
facts are in ``known.toml``, each with its source. Teachers and evaluation sets are recognised by their names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["known_data"]


def known_data(teacher: str, tasks: Sequence[str]) -> dict[str, Any] | None:
    """Return what a teacher is known to have been trained on; ``None``: nothing is known here.

    Args:
        teacher: Its name: a hub id, the name of its folder, or ``package:NAME``.
        tasks: Ids of evaluation sets.

    Returns:
        ``sets`` and their ``source``, and ``shared``: for the tasks that are one of the sets or hold text of it,
        ``task``, ``set``, ``what`` they share and the ``source`` of that.
    """
    name = teacher.rpartition("/")[2].removeprefix("package:").lower()
    entry = next((one for one in _facts()["teacher"] if name in map(str.lower, one["names"])), None)
    if entry is None:
        return None
    shared = [
        {"task": task, **{key: fact[key] for key in ("set", "what", "source")}}
        for task in tasks
        for fact in _facts()["shared"]
        if fact["set"] in entry["sets"] and any(fnmatchcase(task.lower(), glob) for glob in fact["tasks"])
    ]
    return {"source": entry["source"], "sets": list(entry["sets"]), "shared": shared}


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(resources.files("leafembed.judge").joinpath("known.toml").read_text(encoding="utf-8"))
