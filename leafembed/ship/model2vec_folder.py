"""Runs a model2vec folder, a token table that the library model2vec made, so that it can be judged beside others.

sentence-transformers opens such folders too, but keeps unknown tokens and cuts nothing, which model2vec does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leafembed.errors import MissingExtraError, ModelError, first_line
from leafembed.judge.floors import RandomEncoder
from leafembed.ship.texts import check_texts
from leafembed.stages import file_sha256, fingerprint
from leafembed.types import FloatArray, ModelRef, check_vectors

__all__ = ["Model2VecEncoder", "is_model2vec"]

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def is_model2vec(folder: Path) -> bool:
    """Whether a folder says that model2vec made it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "model2vec"


class Model2VecEncoder:
    """A model2vec folder; implements :class:`leafembed.types.Encoder`. Its files know no prompts.

    A text of which the model knows no token has no vector. It gets a random one, its own in every run, which earns what
    chance does.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``; nothing in it is unpickled.
        name: What people call it.

    Raises:
        ModelError: If a file is missing or damaged.
        MissingExtraError: If model2vec is not installed.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise MissingExtraError("model2vec", "compare") from error
        missing = [file for file in _FILES if not (folder / file).is_file()]
        if missing:
            raise ModelError(f"{folder}: not a model2vec folder, it lacks {', '.join(missing)}")
        try:
            self._model = StaticModel.from_pretrained(folder)
        except Exception as error:  # safetensors and tokenizers raise plain ones for damaged files
            raise ModelError(f"{folder}: model2vec cannot open it: {first_line(error)}") from error
        self.ref = ModelRef(
            name=name,
            dim=self._model.dim,
            fingerprint=fingerprint([(file, file_sha256(folder / file)) for file in _FILES]),
            max_seq_length=self._model.max_length,
        )
        self._unknown = RandomEncoder(self.ref.dim)

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length, in the order of the texts."""
        check_texts(texts)
        prompt = self.ref.prompts.get(prompt_name or "", "")
        vectors = np.zeros((len(texts), self.ref.dim), dtype=np.float32)
        if texts:
            read = [prompt + text for text in texts]
            vectors[:] = self._model.encode(read, normalize=False, use_multiprocessing=False)
        blank = np.flatnonzero(~vectors.any(axis=1)).tolist()
        if blank:
            vectors[blank] = self._unknown.encode([texts[i] for i in blank])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return check_vectors(vectors, n=len(texts), what=f"vectors of {self.ref.name}")
