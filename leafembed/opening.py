"""Opens whatever a command names as a model, behind a store of its vectors, and knows it again.

| name | model |
|---|---|
| folder | a bundle, a model folder, or what sentence-transformers, model2vec or ONNX made |
| `FILE.onnx` | one graph of an ONNX folder |
| `org/name@COMMIT`, `package:NAME` | sentence-transformers or model2vec, from a hub or a Python package |
| `NAME@https://HOST/v1` | a server with OpenAI's `/embeddings` |
| `NAME@http://HOST:11434/api/embed` | Ollama |
| `FILE.toml` | any of these by the keys of a recipe's `[teacher]`: for prompts, or a key |
| `floor:random`, `floor:bag-of-words` | what any model must beat |
| any of these and `@exit=3`, `@dim=128` or both | an early exit of it, its leading dimensions |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from leafembed.errors import GateFailedError, ModelError
from leafembed.judge.evaluate import Candidate
from leafembed.judge.floors import BagOfWords, RandomEncoder
from leafembed.judge.views import View, require_view
from leafembed.learn.cache import VectorStore
from leafembed.learn.cached import CachedEncoder, InBatches
from leafembed.learn.models import resolve
from leafembed.recipe import is_url, require_served
from leafembed.recipe_io import load_model_file
from leafembed.recipe_learn import TeacherConfig
from leafembed.reports import BAG_OF_WORDS, RANDOM
from leafembed.ship.bundle import open_bundle, read_manifest
from leafembed.ship.card import MANIFEST
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.folder import OPTIONAL_FILES, REQUIRED_FILES, EncoderConfig
from leafembed.ship.machine import versions
from leafembed.ship.model2vec_folder import Model2VecEncoder, is_model2vec
from leafembed.ship.onnx_folder import OnnxEncoder, find_graph
from leafembed.ship.verdict import read_verdict
from leafembed.stages import file_sha256, fingerprint
from leafembed.types import FloatArray, ModelRef

__all__ = ["FLOOR_SPECS", "Located", "Opened", "locate", "open_model"]

FLOOR_SPECS = {f"floor:{RANDOM}": RANDOM, f"floor:{BAG_OF_WORDS.replace(' ', '-')}": BAG_OF_WORDS}
"""Names of the floors that need no model."""

_RANDOM_DIM = 384
_REVISION = re.compile(r"(?P<model>[^@/]+/[^@/]+)@(?P<revision>[0-9a-f]{40})")
_SERVED = re.compile(r"(?P<name>.+)@(?P<url>https?://.+)")
_PART = re.compile(r"@(?P<what>exit|dim)=(?P<number>[^@/]*)$")


class _Folder(Protocol):
    """An encoder that a folder or file was opened as; its prompts may be given from outside."""

    ref: ModelRef

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray: ...


def _of_files(folder: Path, _: _Folder) -> str:
    present = [name for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if (folder / name).is_file()]
    return fingerprint([(name, file_sha256(folder / name)) for name in present])


def _of_ref(_: Path, encoder: _Folder) -> str:
    return encoder.ref.fingerprint


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of folder or file.

    Attributes:
        is_such: Whether a path is of this kind.
        open: From a path, a name, and whether a refused bundle may be opened; ``None``: as a run opens its teacher.
        identify: Hash of the files that the vectors depend on.
        engine: Package that computes the vectors.
    """

    is_such: Callable[[Path], bool]
    open: Callable[[Path, str, bool], _Folder] | None = None
    identify: Callable[[Path, _Folder], str] = _of_ref
    engine: str = ""


def _is_torch(path: Path) -> bool:
    return (path / "modules.json").is_file() and any(path.rglob("*.safetensors"))


_BUNDLE, _TORCH = "bundle", "sentence-transformers folder"
_KINDS = {
    _BUNDLE: _Kind(
        lambda path: (path / MANIFEST).is_file(),
        lambda path, _, allow_failed: open_bundle(path, allow_failed=allow_failed),
        _of_files,
        "openvino",
    ),
    "INT8 model folder": _Kind(
        lambda path: (path / "model.xml").is_file(), lambda path, *_: BundleEncoder(path), _of_files, "openvino"
    ),
    "model2vec folder": _Kind(
        is_model2vec, lambda path, name, _: Model2VecEncoder(path, name=name), engine="model2vec"
    ),
    _TORCH: _Kind(_is_torch),  # before ONNX: of a folder that holds both, torch runs the original
    "ONNX folder or file": _Kind(
        lambda path: find_graph(path) is not None,
        lambda path, name, _: OnnxEncoder(path, name=name),
        engine="onnxruntime",
    ),
}
"""What a path may be; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Located:
    """A model that was found and is not open yet.

    Attributes:
        spec: What it was named by.
        config: The same as the keys of a recipe's ``[teacher]``.
        path: Its folder or file; ``None``: it is at a URL, or a floor.
        part: ``exit``, the layer after which its vector is taken, and ``dim``, the leading dimensions to keep; what is
            not in it is whole.
    """

    spec: str
    config: TeacherConfig = field(default_factory=TeacherConfig)
    path: Path | None = None
    part: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that can be judged.

    Attributes:
        spec: What it was named by.
        encoder: The model, or a part of it; what has files or a server computes no vector twice.
        key: Hash of everything that its vectors depend on.
    """

    spec: str
    encoder: Candidate
    key: str


def locate(spec: str, *, allow_failed: bool = False) -> Located:
    """Find a model by what it is named by, as this module lists it, without opening it.

    Raises:
        ModelError: If it cannot be found, or is of no kind that is known here.
        RecipeError: If a file that names it is not legal.
        GateFailedError: If it is a bundle that the gate refused, unless ``allow_failed`` is set.
    """
    name, part = _split(spec)
    if name in FLOOR_SPECS:
        if part and FLOOR_SPECS[name] == BAG_OF_WORDS:
            raise ModelError(f"{spec}: got a part to score, expected the whole: its dimensions are words of each set")
        return Located(spec, TeacherConfig(model=name), part=part)
    config = _config(name)
    if is_url(config.model):
        return Located(spec, config, part=part)
    path = Path(config.model).expanduser()
    if not (path.suffix == ".onnx" and path.is_file()):
        path = resolve(config.model, config.revision)
    kind = _kind_of(path)
    if kind is None:
        raise ModelError(
            f"{path}: got no model that is known, expected one of: {', '.join(_KINDS)}; weights of torch in safetensors"
        )
    if kind != _TORCH and config.max_seq_length is not None:
        article = "an" if kind[0] in "IO" else "a"
        limit = config.max_seq_length
        raise ModelError(f"{path}: got max_seq_length = {limit}, expected none: {article} {kind} has its own")
    if part and (path / "encoder.json").is_file():  # known before anything is scored
        known = EncoderConfig.read(path)
        require_view(known.name, known.dim, known.exits, **part)
    if kind == _BUNDLE and not allow_failed:
        verdict, stage = read_verdict(read_manifest(path), str(path))
        if not verdict.passed:
            raise GateFailedError(verdict, stage=stage)
    return Located(spec, config, path, part)


def open_model(found: Located, *, cache_dir: Path, allow_failed: bool = False) -> Opened:
    """Open a model, or a part of it.

    Args:
        found: Where it is, and which part; vectors of an early exit are not kept.
        cache_dir: Where vectors are kept, as those of a run's teacher.
        allow_failed: Open a bundle that the gate refused.

    Raises:
        ModelError: If it is damaged, has no such part, or a server gives no vectors.
        BundleError: If a bundle is altered or was refused.
    """
    config, path = found.config, found.path
    if config.model in FLOOR_SPECS:
        floor = RandomEncoder(_RANDOM_DIM) if FLOOR_SPECS[config.model] == RANDOM else BagOfWords()
        return _part(found, floor, fingerprint(floor.ref.name, floor.ref.dim))
    name = _kind_of(path) if path is not None else None
    kind = _KINDS.get(name or "")
    if path is None or kind is None or kind.open is None:
        encoder = _as_teacher(config, cache_dir)
        return _part(found, encoder, _key_of(encoder))
    model = kind.open(path, config.model.rstrip("/").rpartition("/")[2], allow_failed)
    if config.name:
        model.ref = dataclasses.replace(model.ref, name=config.name)
    if config.prompts:
        model.ref = dataclasses.replace(model.ref, prompts=dict(config.prompts))
    place = f"{kind.identify(path, model)}-{fingerprint(versions([kind.engine, 'tokenizers']))}"
    store = VectorStore(cache_dir / "vectors" / place, model.ref.dim)
    encoder = CachedEncoder(InBatches(model), store, shard_rows=config.shard_rows)
    # The store is of whole models: an exit gives other vectors for the same texts.
    return _part(found, model if "exit" in found.part else encoder, _key_of(encoder))


def _key_of(encoder: CachedEncoder) -> str:
    return fingerprint(encoder.store.folder.name, dict(encoder.ref.prompts))


def _part(found: Located, whole: Candidate, key: str) -> Opened:
    if not found.part or isinstance(whole, BagOfWords):  # which has no parts
        return Opened(found.spec, whole, key)
    view = View(whole, **found.part)
    return Opened(found.spec, view, fingerprint(key, view.part) if view.part else key)


def _split(spec: str) -> tuple[str, dict[str, int]]:
    """The name of a model, and the part of it that is meant."""
    name = spec
    part: dict[str, int] = {}
    while found := _PART.search(name):
        what, number = found["what"], found["number"]
        if not number.isdecimal() or not int(number):
            raise ModelError(f"{spec}: got @{what}={number}, expected a whole number of at least 1")
        if what in part:
            raise ModelError(f"{spec}: got @{what}={number} and @{what}={part[what]}, expected one of them")
        part[what] = int(number)
        name = name[: found.start()]
    return name, part


def _config(spec: str) -> TeacherConfig:
    """What a model is named by, as the keys of a recipe's ``[teacher]``."""
    if spec.endswith(".toml"):
        return load_model_file(Path(spec).expanduser())
    if served := _SERVED.fullmatch(spec):
        config = TeacherConfig(model=served["url"], served_model=served["name"])
        require_served(config, section=f"{served['name']}: ")
        return config
    if is_url(spec):
        raise ModelError("got a URL alone, expected NAME@URL, with the name that the model has there")
    if pinned := _REVISION.fullmatch(spec):
        return TeacherConfig(model=pinned["model"], revision=pinned["revision"])
    return TeacherConfig(model=spec)


def _kind_of(path: Path) -> str | None:
    return next((name for name, kind in _KINDS.items() if kind.is_such(path)), None)


def _as_teacher(config: TeacherConfig, cache_dir: Path) -> CachedEncoder:
    """The same encoder and store as those of a run whose teacher it is."""
    from leafembed.learn.teacher import load_teacher

    teacher, folder = load_teacher(config, cache_dir)
    if folder is not None and config.prompts:
        teacher.encoder.ref = dataclasses.replace(teacher.ref, prompts=dict(config.prompts))
    return teacher
