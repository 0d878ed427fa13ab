"""Pieces of text that the card is put together from: table, list, number, TOML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["NOTHING", "bullets", "count", "fixed", "line", "ratio", "table", "to_toml", "with_interval"]

NOTHING = "n/a"
"""Stands for a value that the manifest does not hold."""


def line(value: object) -> str:
    """Return a value as one line that Markdown does not read as HTML."""
    return " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")


def fixed(value: float | None, digits: int) -> str:
    """Return a number with so many decimals; ``n/a`` for ``None``."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def count(value: int | None) -> str:
    """Return a whole number with a comma at each thousand; ``n/a`` for ``None``."""
    return NOTHING if value is None else f"{value:,d}"


def ratio(value: float | None, reference: float | None) -> str:
    """Return ``value / reference`` with three decimals; ``n/a`` where one is missing or the reference is 0."""
    return fixed(value / reference if value is not None and reference else None, 3)


def with_interval(value: float | None, interval: tuple[float, float] | None, *, digits: int = 4) -> str:
    """Return a score with its interval behind it: ``0.8655 [0.831, 0.893]``; the score alone where there is none."""
    if value is None or interval is None:
        return fixed(value, digits)
    low, high = interval
    return f"{value:.{digits}f} [{low:.{digits - 1}f}, {high:.{digits - 1}f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> str:
    """Return a Markdown table: the first ``words`` columns to the left, the others to the right, as numbers are."""
    body = [[_cell(value) for value in row] for row in rows]
    rule = [":--" if column < words else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [[_cell(name) for name in header], rule, *body])


def bullets(facts: Mapping[str, object]) -> str:
    """Return a Markdown list of ``name: value``; entries that are ``None`` or empty text are left out."""
    return "\n".join(f"- {line(name)}: {line(value)}" for name, value in facts.items() if value not in (None, ""))


def to_toml(data: Mapping[str, Any], prefix: str = "") -> str:
    """Return a recipe's plain data as TOML: scalars and lists first, then tables and arrays of tables."""
    plain = [f"{_key(k)} = {_toml(v)}" for k, v in data.items() if not _is_section(v, prefix)]
    parts = ["\n".join(plain)] if plain else []
    for key, value in data.items():
        if not _is_section(value, prefix):
            continue
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            parts.append(f"[{name}]\n{to_toml(value, f'{name}.')}".rstrip())
        else:
            parts += [f"[[{name}]]\n{to_toml(item, f'{name}.')}".rstrip() for item in value]
    return "\n\n".join(parts)


def _is_section(value: Any, prefix: str) -> bool:
    """A table of its own; below the second level a mapping is written inline, as recipes do."""
    if isinstance(value, Mapping):
        return not prefix
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)  # TOML writes text, numbers and booleans as JSON does


def _cell(value: object) -> str:
    return NOTHING if value is None or value == "" else line(value).replace("|", "\\|")
