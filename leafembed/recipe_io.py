"""Reads recipes: TOML files, ``--set`` overrides, plain data from a manifest; and documents their keys."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from leafembed.errors import RecipeError, require
from leafembed.recipe import EvalConfig, GateConfig, Recipe, is_url, require_served
from leafembed.recipe_learn import TeacherConfig
from leafembed.recipe_text import Source

__all__ = ["field_docs", "load_gate", "load_model_file", "load_recipe", "min_rows_of", "recipe_from_dict",
           "reference_page", "softer_rules"]  # fmt: skip


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.sub=value`` overrides.

    Raises:
        RecipeError: If the file cannot be read, a key is unknown, or a value is not legal.
    """
    data = _read(path, "a recipe")
    _rebase_paths(data, path.resolve().parent)
    given = {_apply_override(data, override) for override in overrides}
    _merge_mixture(data, moved="data.root" in given)
    recipe: Recipe = _build(Recipe, data, prefix="")
    return recipe if recipe.name else dataclasses.replace(recipe, name=path.stem)


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data, as :meth:`Recipe.to_dict` gives it."""
    recipe: Recipe = _build(Recipe, data, prefix="")
    return recipe


def load_gate(stored: Mapping[str, Any], path: Path | None = None, overrides: Iterable[str] = ()) -> GateConfig:
    """The rules of a gate: those stored with a bundle, or the ``[gate]`` of a file that need not hold more, overridden.

    Raises:
        RecipeError: If the file cannot be read or has no such table, or a key or value is not legal.
    """
    rules = stored if path is None else _read(path, "a recipe, or one with [gate] alone").get("gate")
    if not isinstance(rules, dict):
        raise RecipeError(f"{path or 'gate'}: got no table [gate], expected one")
    data: dict[str, Any] = {"gate": copy.deepcopy(rules)}
    for override in overrides:
        require(override.startswith("gate."), "--set", override, "a key of the gate, e.g. gate.min_mean_retention=0.95")
        _apply_override(data, override)
    config: GateConfig = _build(GateConfig, data["gate"], prefix="gate.")
    return config


def min_rows_of(stored: Mapping[str, Any]) -> int:
    """The ``eval.min_rows`` of a stored recipe; the default where it has none.

    Raises:
        RecipeError: If it is not legal.
    """
    given = stored.get("eval", {})
    config: EvalConfig = _build(EvalConfig, {key: given[key] for key in ("min_rows",) if key in given}, prefix="eval.")
    return config.min_rows


def softer_rules(stored: Mapping[str, Any]) -> list[str]:
    """The rules of a stored recipe that ask for less than the defaults, as :meth:`GateConfig.softer` words them.

    More rows asked of a task take small tasks out of the gate, so ``eval.min_rows`` is one of them.

    Raises:
        RecipeError: If a rule is not legal.
    """
    found, mine, usual = load_gate(stored.get("gate", {})).softer(), min_rows_of(stored), EvalConfig().min_rows
    return [*found, f"eval.min_rows = {mine}, by default {usual}"] if mine > usual else found


def load_model_file(path: Path) -> TeacherConfig:
    """Read a file that names a model to judge by the keys of a recipe's ``[teacher]``; paths are relative to it.

    Raises:
        RecipeError: If the file cannot be read, a key is unknown, or a value is not legal.
    """
    data = _read(path, "a model")
    section = {"teacher": data}
    _rebase_paths(section, path.resolve().parent)
    config: TeacherConfig = _build(TeacherConfig, section["teacher"], prefix="")
    require(bool(config.model), f"{path}: model", "", "a folder, a hub id, package:NAME or a URL")
    if is_url(config.model):
        require_served(config, section=f"{path}: ")
    return config


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Mixture:
    """What the file of ``data.mixture`` may hold; ``root`` is relative to that file, sources are relative to it."""

    sources: tuple[Source, ...] = ()
    root: Path = Path()
    languages: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lengths: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _merge_mixture(data: dict[str, Any], *, moved: bool) -> None:
    """Put what the mixture file holds into ``data``, as if the recipe said it; what the recipe says itself wins.

    Its sources are relative to its own root, or to ``data.root`` where that was ``moved`` from outside both files.
    """
    section = data.get("data")
    if not isinstance(section, dict) or "mixture" not in section:
        return
    path = Path(_text(section.pop("mixture"), "data.mixture")).expanduser()
    raw = _read(path, "a mixture of sources")
    try:
        mixture: _Mixture = _build(_Mixture, raw, prefix="")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    require(bool(mixture.sources), str(path), "no [[sources]]", "at least one such table")
    root = (path.resolve().parent / mixture.root).resolve()
    base = Path(str(section.setdefault("root", str(root)))).expanduser().resolve()
    for source in raw["sources"]:
        place = source.get("path", "")
        if place and not moved and base != root and not place.startswith(("/", "~")):
            source["path"] = os.path.relpath(root / place, base)  # not absolute: a card must name no one's machine
    section["sources"] = [*section.get("sources", ()), *raw["sources"]]
    for key, weights in (("language_weights", mixture.languages), ("length_weights", mixture.lengths)):
        section[key] = {**weights, **section.get(key, {})}


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; expected {what}, a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TOML file: {error}") from error


_PATHS = (
    *(("cache_dir",), ("data", "root"), ("data", "mixture"), ("teacher", "api_key_file"), ("student", "vocab_text")),
    *(("train", "start"), ("eval", "data")),
)
_MODELS = (("teacher", "model"), ("student", "model"))


def _rebase_paths(data: dict[str, Any], base: Path) -> None:
    for keys in (*_PATHS, *_MODELS):
        section: Any = data
        for key in keys[:-1]:
            section = section.get(key, {})
        value = section.get(keys[-1]) if isinstance(section, dict) else None
        is_path = keys in _PATHS or (isinstance(value, str) and value.startswith("."))
        if isinstance(value, str) and is_path and not value.startswith("~"):
            section[keys[-1]] = str((base / value).resolve())


def _apply_override(data: dict[str, Any], override: str) -> str:
    """Set one value and return its key."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r}: expected KEY=VALUE, e.g. --set train.learning_rate=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path, as people type it
    *parents, last = key.strip().split(".", 2) if key.startswith("gate.min_") else key.strip().split(".")
    section = data
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override!r}: {parent} is not a section")
    section[last.strip('"')] = value
    return key.strip()


def _build(kind: Any, data: Mapping[str, Any], *, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = [key for key in data if key not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1, cutoff=0.5)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys are {', '.join(hints)}"
        raise RecipeError(f"unknown key {prefix}{unknown[0]} in the recipe: {hint}")
    return kind(**{key: _convert(hints[key], value, f"{prefix}{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"{key}: got {value!r}, expected a table [{key}]")
        return _build(hint, value, prefix=f"{key}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _convert(args[0], value, key)  # every union here is "X | None", and TOML has no None
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{key}: got {value!r}, expected a list")
        return tuple(_convert(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        require(value in args, key, value, f"one of {', '.join(map(str, args))}")
        return value
    if origin is not None:  # Mapping[str, float] or Mapping[str, str]
        if not isinstance(value, dict):
            raise RecipeError(f"{key}: got {value!r}, expected a table of {'texts' if args[1] is str else 'numbers'}")
        return {name: _convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    return _SCALARS[hint](value, key)


def _number(value: Any, key: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    require(good, key, value, "a finite number")
    return float(value)


def _integer(value: Any, key: str) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    require(good, key, value, "a whole number, 0 or more")
    return int(value)


def _boolean(value: Any, key: str) -> bool:
    require(isinstance(value, bool), key, value, "true or false")
    return bool(value)


def _text(value: Any, key: str) -> str:
    require(isinstance(value, str), key, value, "text in quotes")
    return str(value)


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {
    float: _number,
    int: _integer,
    bool: _boolean,
    str: _text,
    Path: lambda value, key: Path(_text(value, key)).expanduser(),
}


def field_docs(kind: type) -> dict[str, str]:
    """The line under each field of a config section, by field name."""
    body = typing.cast("ast.ClassDef", ast.parse(inspect.getsource(kind)).body[0]).body
    docs: dict[str, str] = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            docs[node.target.id] = " ".join(text.split())
    return docs


def reference_page() -> str:
    """The Markdown page that documents every key, its type, default and meaning."""
    intro = "Every key, its default and meaning; generated from `leafembed/recipe*.py`."
    lines = ["# Recipe reference", "", intro, ""]
    hints = typing.get_type_hints(Recipe)
    sections: dict[str, type] = {"": Recipe}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            sections[name] = hint
            # The keys of a table are listed once, where the first such table is.
            new = {key: kind for key, kind in _tables(hint).items() if kind not in sections.values()}
            sections |= {f"{name}.{key}": kind for key, kind in new.items()}
    for name, kind in sections.items():
        heading = f"[[{name}]]" if "." in name else f"[{name}]"
        lines += [f"## `{heading}`" if name else "## Top level", "", "| key | default | meaning |", "|---|---|---|"]
        documented = field_docs(kind)
        for item in dataclasses.fields(kind):
            if name or item.name not in sections:  # at the top level those are what follows
                lines.append(f"| `{item.name}` | {_default(item)} | {documented[item.name]} |")
        lines.append("")
    return "\n".join(lines)


def _tables(section: type) -> dict[str, type]:
    """The keys of a section that hold lists of tables, and what a table is."""
    arguments = {name: typing.get_args(hint) for name, hint in typing.get_type_hints(section).items()}
    firsts = {name: found[0] for name, found in arguments.items() if found}
    return {name: kind for name, kind in firsts.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default is not dataclasses.MISSING else {}
    if isinstance(value, tuple):
        return "empty"
    return f"`{value}`" if value not in ("", {}) else "empty"
