"""The model folder: which files it has, and what its ``encoder.json`` says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from leafembed.errors import ModelError

__all__ = [
    "OPTIONAL_FILES",
    "PROMPTS",
    "REQUIRED_FILES",
    "EncoderConfig",
    "output_names",
    "read_prompts",
    "require_files",
]

REQUIRED_FILES = ("model.xml", "model.bin", "tokenizer.json", "encoder.json")
"""What a model folder must hold to run."""

PROMPTS = "config_sentence_transformers.json"
"""The file that prompts stand in."""

OPTIONAL_FILES = ("tokenizer_config.json", "config.json", PROMPTS)
"""What a model folder may hold besides: prompts, and what other loaders need."""

_OPTIONAL_KEYS = {"exits", "precision"}
"""Keys that folders of older versions lack."""


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """``encoder.json``: what the model's graph and tokenizer do not say themselves.

    Attributes:
        name: What people call the model.
        dim: Length of one embedding.
        max_seq_length: Tokens it reads, special tokens included; the rest of a text is cut.
        pad_token_id: Fills a short text up to its batch's longest; it is masked out.
        padding_side: Where the filling goes.
        add_special_tokens: Whether the tokenizer's post-processor adds its tokens.
        group_size: Activations that share one scale at run time; 0 leaves them in floating point.
        licence: As its teacher's files state it; ``None`` when they state none.
        fingerprint: Hash of the student it was made from.
        exits: Numbers of layers after which it gives an embedding too, ascending; empty: only after all of them.
        precision: Of what is not INT8; with bf16 vectors depend on whether a CPU has it.
    """

    name: str
    dim: int
    max_seq_length: int
    pad_token_id: int
    padding_side: Literal["right", "left"]
    add_special_tokens: bool
    group_size: int
    licence: str | None
    fingerprint: str
    exits: tuple[int, ...] = ()
    precision: Literal["f32", "bf16"] = "f32"

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("max_seq_length", 1), ("pad_token_id", 0), ("group_size", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ModelError(f"encoder.json: {name} is {value!r}, expected a whole number of at least {least}")
        if self.precision not in ("f32", "bf16"):
            raise ModelError(f"encoder.json: precision is {self.precision!r}, expected 'f32' or 'bf16'")
        if self.padding_side not in ("right", "left"):
            raise ModelError(f"encoder.json: padding_side is {self.padding_side!r}, expected 'right' or 'left'")

    @classmethod
    def read(cls, folder: Path) -> EncoderConfig:
        """Read ``encoder.json`` of a model folder.

        Raises:
            ModelError: If it cannot be read, or its keys are not exactly the attributes above.
        """
        data = _read_json(folder / "encoder.json")
        expected = {f.name for f in fields(cls)}
        if set(data) | _OPTIONAL_KEYS != expected:
            wrong = sorted((set(data) | _OPTIONAL_KEYS) ^ expected)
            raise ModelError(f"{folder / 'encoder.json'}: missing or unknown keys {wrong}; quantize the student again")
        exits = data.get("exits", [])
        if not isinstance(exits, list) or any(not isinstance(exit, int) or exit < 1 for exit in exits):
            raise ModelError(f"{folder / 'encoder.json'}: exits is {exits!r}, expected numbers of layers")
        return cls(**{**data, "exits": tuple(exits)})


def require_files(folder: Path) -> None:
    """Raise a :class:`ModelError` that names what a folder lacks to be a model folder."""
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: not a model folder, it lacks {', '.join(missing)}")


def output_names(exits: Sequence[int]) -> list[str]:
    """Names of a graph's outputs: that of the whole model first, then one for each exit."""
    return ["embedding", *(f"exit_{exit}" for exit in exits)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: got a JSON {type(data).__name__}, expected an object")
    return data


def read_prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of a model folder by name; empty when it has none.

    Raises:
        ModelError: If the file that holds them is damaged.
    """
    path = folder / PROMPTS
    return dict(_read_json(path).get("prompts") or {}) if path.is_file() else {}
