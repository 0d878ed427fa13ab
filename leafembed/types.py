"""The nouns that pass between stages, and the one protocol.

All are frozen and check themselves when built; nobody re-checks them later. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError
from leafembed.evidence import Contamination

__all__ = [
    "TABLE_GROUP",
    "TABLE_LARGEST",
    "Corpus",
    "Encoder",
    "Factors",
    "FloatArray",
    "ModelRef",
    "Row",
    "Speed",
    "check_vectors",
]

FloatArray = NDArray[np.float32]

TABLE_GROUP = 64
"""Values of a row that share a scale in a token table of 4 bits."""

TABLE_LARGEST = 7
"""Values of such a table are whole numbers from -7 to 7, times their scale."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a model is, without the model.

    Attributes:
        name: What people call it: a hub id, a folder name, or ``floor: random``.
        dim: Length of one embedding.
        fingerprint: Hash of the files it was loaded from; empty for a model without files.
        revision: Hub commit, where it came from a hub.
        licence: SPDX id or the name of its terms, as its own files state it; ``None`` when they state none.
        max_seq_length: Tokens it reads; the rest of a text is cut. ``None``: no limit.
        prompts: Text put before an input, by prompt name.
    """

    name: str
    dim: int
    fingerprint: str = ""
    revision: str | None = None
    licence: str | None = None
    max_seq_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim of {self.name!r}: got {self.dim}, expected a positive number")


class Encoder(Protocol):
    """Anything that turns texts into embeddings: a teacher, a student, a floor, a bundle."""

    @property
    def ref(self) -> ModelRef:
        """What this encoder is."""
        ...

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return embeddings of shape ``(n_texts, dim)``, float32, unit length, in the order of the texts.

        ``prompt_name`` is one of ``ref.prompts``, or ``None`` for no prompt.
        """
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One training text and the role the teacher embeds it in.

    Attributes:
        text: Cleaned text, never empty.
        lang: Normalised language tag (``de``, ``zh``, ``und`` when unknown).
        prompt_name: The teacher's prompt for this text; ``None``: no prompt.
        pair: Index of the row this one is a positive of (same meaning or answer); ``None``: stands alone.
        negative: Index of a row that is a hard negative of this one; ``None``: has none.
        target: Index of the row whose teacher vector this one learns, of a translation for example; ``None``: its own.
    """

    text: str
    lang: str
    prompt_name: str | None = None
    pair: int | None = None
    negative: int | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and validation text, cleaned, deduplicated and balanced.

    Attributes:
        train: Rows to learn from; as a rule ``learn.rows.Rows``, which lie on disk. Pointers count within it.
        validation: Rows never trained on, with pointers of their own.
        counts: How many rows were read, kept and dropped, by reason and by source.
        fingerprint: Hash of every row in order.
        sources: One record per source: path, licence, where it came from, SHA-256 of each of its files.
        contamination: For each evaluation set, what of it the sources held; none of it is in the rows.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    counts: Mapping[str, int]
    fingerprint: str
    sources: tuple[Mapping[str, str], ...] = ()
    contamination: tuple[Contamination, ...] = ()

    @property
    def languages(self) -> dict[str, int]:
        """Training rows by language, most frequent first."""
        counts = Counter(row.lang for row in self.train)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one encoder ran, beside others in the same run.

    Attributes:
        name: The encoder and its engine.
        texts_per_second: Median over the repeats.
        spread: Slowest and fastest repeat, texts per second.
        tokens_per_text: Mean input length, special tokens included; 0 when the encoder has no tokens.
        batch_size: Texts per forward pass.
        threads: CPU threads used.
        size_mb: Bytes on disk of what must be shipped to run it, in MB (10^6); 0 when nothing is.
    """

    name: str
    texts_per_second: float
    spread: tuple[float, float]
    tokens_per_text: float
    batch_size: int
    threads: int
    size_mb: float


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A token table as a product of two matrices.

    Attributes:
        rows: What a token looks up, ``(vocabulary, rank)`` float32.
        matrix: What turns it into a row of the table, ``(rank, hidden)`` float32.
    """

    rows: FloatArray
    matrix: FloatArray

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.matrix.ndim != 2 or self.rows.shape[1] != self.matrix.shape[0]:
            raise ValueError(
                f"factors of a token table: got shapes {self.rows.shape} and {self.matrix.shape}, "
                "expected (vocabulary, rank) and (rank, hidden)"
            )


def check_vectors(vectors: NDArray[Any], *, n: int, what: str, texts: Sequence[str] | None = None) -> FloatArray:
    """Return ``vectors`` as float32 if they are ``(n, dim)``, finite and of unit length to 1e-3.

    Args:
        vectors: What a model gave.
        n: How many were asked for.
        what: Whose they are, as an error begins.
        texts: What each was made from ``(n,)``; an error then carries those of the bad rows, and the rows.

    Raises:
        ValueError: If the shape is wrong.
        NonFiniteError: If a value is NaN or infinite, or a vector has no unit length; names the first bad row.
    """
    if vectors.ndim != 2 or len(vectors) != n:
        raise ValueError(f"{what}: got shape {vectors.shape}, expected ({n}, dim)")
    result: FloatArray = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(result, axis=1)
    bad = ~np.isfinite(norms)
    rows = np.flatnonzero(bad).tolist()
    wrong = f"holds NaN or infinity ({len(rows)} rows do)"
    if not rows and (rows := np.flatnonzero(np.abs(norms - 1) > 1e-3).tolist()):
        wrong = f"has length {norms[rows[0]]:.4f}, expected 1 ({len(rows)} rows)"
    if rows:
        given = [] if texts is None else [texts[row] for row in rows]
        raise NonFiniteError(f"{what}: row {rows[0]} of {n} {wrong}", texts=given, vectors=result[rows])
    return result
