"""Pieces of cards and recipes."""

import tomllib

from leafembed.ship.markdown import bullets, fixed, table, to_toml


def test_markdown_pieces():
    assert table(["a", "b"], [[1, None]]) == "| a | b |\n| :-- | --: |\n| 1 | n/a |"
    assert bullets({"a": 1, "b": None, "c": ""}) == "- a: 1"
    assert (fixed(1234.5, 2), fixed(None, 2)) == ("1,234.50", "n/a")


def test_toml_survives_awkward_values():
    data = {
        "s": 'quote " backslash \\ newline \n grün 🙂',
        "empty": {},
        "table": {"x": [], "y": [1.5, 1e-5], "in": {"a b": 1, "c": {"d": True}}, "none": []},
        "list": {"of": [{"a": 1, "m": {"k": "v"}}, {"a": 2}]},
    }
    assert tomllib.loads(to_toml(data)) == data
