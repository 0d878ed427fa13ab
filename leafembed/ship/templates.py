"""Fills the templates that lie beside the modules of this floor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from leafembed.errors import MissingExtraError
from leafembed.ship.markdown import count, fixed, line

__all__ = ["fill_html", "fill_markdown"]


def fill_markdown(template: str, values: Mapping[str, Any]) -> str:
    """Return Markdown without repeated blank lines; values are not escaped, which ``line`` and ``table`` do.

    Args:
        template: Name of a file in this folder.
        values: What its names stand for; each that it uses has to be there.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    return re.sub(r"\n{3,}", "\n\n", _fill(template, values, escape=False)).strip() + "\n"


def fill_html(template: str, values: Mapping[str, Any]) -> str:
    """Return HTML in which every value is escaped; otherwise as :func:`fill_markdown`."""
    return _fill(template, values, escape=True)


def _fill(template: str, values: Mapping[str, Any], *, escape: bool) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "train") from error
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=escape)
    environment.filters.update(count=count, fixed=fixed, line=line)
    source = resources.files("leafembed.ship").joinpath(template).read_text(encoding="utf-8")
    text: str = environment.from_string(source).render(values)
    return text
