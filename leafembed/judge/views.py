"""A model at fewer dimensions, or at an early exit: what a user gets who takes less of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leafembed.errors import ModelError
from leafembed.types import Encoder, FloatArray, ModelRef, check_vectors

__all__ = ["View", "require_view"]


class View:
    """An encoder of which only a part is used; itself an encoder.

    Attributes:
        ref: What it is; its name says which part, as ``quick (exit 3, dim 128)``.
        encoder: The whole.
        whole: What it is.
        part: The part in mteb's words: ``embed_dim`` and ``exit``, those that are not the whole; with what a bundle
            itself was opened as.
    """

    def __init__(self, encoder: Encoder, *, dim: int | None = None, exit: int | None = None) -> None:
        """Take a part of an encoder.

        Args:
            encoder: The whole. Early exits are those that its attribute ``exits`` names, numbers of layers; its
                ``encode`` then takes one of them as ``exit``.
            dim: Leading dimensions to keep, scaled to unit length again; ``None``: all.
            exit: Layer after which the vector is taken; ``None``: after the last.

        Raises:
            ModelError: If it has no such exit or not as many dimensions.
        """
        exits = tuple(getattr(encoder, "exits", ()))
        require_view(encoder.ref.name, encoder.ref.dim, exits, dim=dim, exit=exit)
        taken = {"exit": exit, "dim": dim if dim != encoder.ref.dim else None}
        words = [f"{name} {value}" for name, value in taken.items() if value is not None]
        name = encoder.ref.name + (f" ({', '.join(words)})" if words else "")
        self.encoder = encoder
        self.whole = encoder.ref
        own = {"embed_dim" if key == "dim" else key: value for key, value in taken.items() if value is not None}
        self.part: dict[str, Any] = {**getattr(encoder, "part", {}), **own}
        self.ref: ModelRef = replace(encoder.ref, name=name, dim=dim or encoder.ref.dim)
        # Only an encoder that names exits knows the argument.
        self._options: dict[str, Any] = {} if exit is None else {"exit": exit}

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length, in the order of the texts.

        Raises:
            NonFiniteError: If the dimensions that are kept are all 0, and so have no direction.
        """
        vectors = self.encoder.encode(texts, prompt_name=prompt_name, **self._options)[:, : self.ref.dim]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        # What has no length keeps none, and is refused for it.
        unit = vectors / np.where(lengths > 0, lengths, 1)
        return check_vectors(unit, n=len(texts), what=self.ref.name)


def require_view(
    name: str, whole: int, exits: Sequence[int], *, dim: int | None = None, exit: int | None = None
) -> None:
    """Check that a model of ``whole`` dimensions and these early exits has a part.

    Raises:
        ModelError: If it has not; calls the model by its name.
    """
    if exit is not None and exit not in exits:
        known = f"one of {list(exits)}" if exits else "none: it has no early exits"
        raise ModelError(f"exit of {name}: got {exit}, expected {known}")
    if dim is not None and not 1 <= dim <= whole:
        raise ModelError(f"dim of {name}: got {dim}, expected 1 to {whole}")
