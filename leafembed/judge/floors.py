"""What a student must beat to have learned anything: here, random vectors.

The other floors, an untrained student and a static token table, are real models that the learning side builds. This
one needs no model and shows what each metric gives to pure chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from leafembed.types import FloatArray, ModelRef

__all__ = ["RandomEncoder"]


class RandomEncoder:
    """A random unit vector for each text: the same text gives the same vector, in every process."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.ref = ModelRef("floor: random", dim)
        self._salt = f"{seed}\0".encode()

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return ``(n_texts, dim)`` float32, unit length; the prompt has no influence."""
        dim = self.ref.dim
        raw = b"".join(hashlib.shake_256(self._salt + text.encode()).digest(2 * dim) for text in texts)
        # Uniform in a cube rather than on the sphere: no metric here can tell. Halves keep a vector from being zero.
        vectors = np.frombuffer(raw, dtype="<i2").reshape(len(texts), dim).astype(np.float32) + 0.5
        unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
