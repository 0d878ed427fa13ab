from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import shlex
import typing
from pathlib import Path

import pytest

from leafembed.cli import COMMANDS
from leafembed.options import build_parser
from leafembed.recipe import Recipe
from leafembed.recipe_io import load_recipe, reference_page
from leafembed.ship.bundle import read_manifest
from leafembed.ship.card import render_card
from leafembed.ship.verdict import read_verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "data" / "SOURCES.md"])
REMEDY = "run: python tools/write_docs.py"


def _words(text):
    return text.split()


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def _shell_lines():
    for block in _blocks("sh"):
        yield from (line for line in block.splitlines() if line.strip() and not line.startswith("#"))


def test_the_recipe_page_is_what_the_recipe_says():
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == reference_page(), REMEDY


def test_the_recipe_page_has_every_key_of_every_section():
    page = reference_page()
    for name, kind in typing.get_type_hints(Recipe).items():
        if dataclasses.is_dataclass(kind):
            rows = page.partition(f"## `[{name}]`")[2].partition("\n## ")[0]
            assert [item.name for item in dataclasses.fields(kind) if f"| `{item.name}` |" not in rows] == []


def _tool():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_results_in_the_readme_are_those_of_the_manifest():
    assert _tool().with_results(README) == README, REMEDY


def test_the_table_of_changes_is_what_was_measured():
    page = (ROOT / "docs" / "why-v1-failed.md").read_text(encoding="utf-8")
    assert _tool().with_changes(page) == page, REMEDY


def test_the_command_page_is_what_help_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    tool = _tool()
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    # Python versions wrap usage lines at different places.
    assert _words(page) == _words(tool.commands_page()), REMEDY
    assert all(f"## `leaf {name}`" in page for name in COMMANDS)


def test_the_readme_lists_every_command_and_every_module():
    table = re.findall(r"^\| `leaf (\w+)", README, flags=re.MULTILINE)
    assert table == list(COMMANDS)
    (tree,) = re.findall(r"^```\nleafembed/\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    shown, folder = set(), ""
    for line in tree.splitlines():
        name, described = line.split(maxsplit=1)
        assert described
        folder = name if name.endswith("/") else folder if line.startswith("    ") else ""
        shown.add(folder if name == folder else folder + name)
    found = {path.relative_to(ROOT / "leafembed").as_posix() for path in (ROOT / "leafembed").rglob("*.py")}
    modules = {name for name in found if not name.endswith(("__init__.py", "__main__.py"))}
    assert shown - {"learn/", "judge/", "ship/", "serve/"} == modules


@pytest.mark.parametrize("line", list(_shell_lines()))
def test_the_shell_lines_of_the_readme_name_what_exists(line):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = shlex.split(line.rpartition("|")[2], comments=True)
    if words[0] == "make":
        names = [word.partition("=") for word in words[1:]]
        for name, equals, _ in names:
            assert re.search(rf"^(export )?{name} \?=" if equals else rf"^{name}:", makefile, flags=re.MULTILINE), name
        return
    if words[0] == "curl":  # to a server that a line above started; tests/test_serve_ollama.py asks the same
        assert json.loads(words[2])["model"] == "leaf"
        return
    assert words[0] == ".venv/bin/leaf"
    args = build_parser().parse_args(words[1:])
    values = [one for value in vars(args).values() for one in (value if isinstance(value, list) else [value])]
    for value in values:
        if isinstance(value, Path) and value.parts[:1] != ("runs",) and value.name not in ("-", "vectors.npy"):
            assert (ROOT / value).exists(), value


def test_the_recipe_of_the_readme_is_legal(tmp_path):
    (block,) = _blocks("toml")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    (tmp_path / "recipe.toml").write_text(block, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.name == "my-student"
    assert recipe.data.sources[0].path == "*.txt"


def test_the_python_of_the_readme_compiles():
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_recipe_that_is_shipped_loads():
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    assert ROOT / "recipes" / "quick.toml" in recipes
    for path in recipes:
        load_recipe(path)


PUBLISHED = sorted(
    path.parent for folder in ("docs/results", "models") for path in (ROOT / folder).rglob("manifest.json")
)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_a_published_manifest_is_whole_and_its_card_is_what_it_says(folder):
    manifest = read_manifest(folder, refused=True)
    verdict, _ = read_verdict(manifest, str(folder))
    card = (folder / "README.md").read_bytes()
    if "files" in manifest:
        assert verdict.passed
        assert hashlib.sha256(card).hexdigest() == manifest["files"]["README.md"]["sha256"]
    else:  # refused before INT8, and published for what it shows
        assert not verdict.passed
        assert card.decode() == render_card(manifest)
        assert b"**The gate refused this model." in card or b"**Training stopped itself." in card
