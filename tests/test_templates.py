from __future__ import annotations

import sys

import pytest
from jinja2 import UndefinedError

from leafembed.errors import MissingExtraError
from leafembed.ship.templates import fill_html, fill_markdown


def test_a_name_without_a_value_is_an_error():
    for fill in (fill_markdown, fill_html):
        with pytest.raises(UndefinedError):
            fill("report.html.jinja", {})


def test_without_jinja2_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leafembed\[train\]'"):
        fill_markdown("card.md.jinja", {})
