"""Runs a stage once: its folder counts when a marker, written last, names the inputs that it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leafembed.progress import say

__all__ = ["MARKER", "file_sha256", "fingerprint", "once"]

MARKER = "stage.json"


def fingerprint(*inputs: Any) -> str:
    """Hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once(folder: Path, inputs: str, build: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any]:
    """Make sure ``folder`` holds what ``build`` makes of ``inputs``, and return the facts that it reported.

    ``build`` writes into a new folder beside it, which takes the place only when complete; an interrupted build
    leaves what was there.

    Args:
        folder: Where the result lies.
        inputs: Fingerprint of everything the result depends on.
        build: Fills the folder that it is given and may return facts for JSON.
    """
    stored = _read(folder / MARKER)
    if stored.get("inputs") == inputs and isinstance(stored.get("facts"), dict):
        say(f"{folder.name}: done before, kept")
        facts: dict[str, Any] = stored["facts"]
        return facts
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    facts = build(partial) or {}
    partial.mkdir(exist_ok=True)
    (partial / MARKER).write_text(json.dumps({"inputs": inputs, "facts": facts}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return facts


def _read(marker: Path) -> dict[str, Any]:
    """The marker's content; nothing where it is missing or damaged, so that the stage is built again."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
