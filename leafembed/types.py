"""The nouns that pass between stages, and the one protocol.

All are frozen and check themselves when built; nobody re-checks them later. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import NonFiniteError

__all__ = [
    "Check",
    "Corpus",
    "Encoder",
    "EvalReport",
    "FloatArray",
    "GateResult",
    "ModelRef",
    "Row",
    "Speed",
    "TaskResult",
    "check_vectors",
]

FloatArray = NDArray[np.float32]


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

        A ``prompt_name`` that the model does not know means no prompt.
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
    """

    text: str
    lang: str
    prompt_name: str | None = None
    pair: int | None = None
    negative: int | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and validation text, cleaned, deduplicated and balanced.

    Attributes:
        train: Rows to learn from.
        validation: Rows never trained on.
        counts: How many rows were read, kept and dropped, by reason and by source.
        fingerprint: Hash of every row in order.
        sources: One record per source: path, licence, where it came from.
    """

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    counts: Mapping[str, int]
    fingerprint: str
    sources: tuple[Mapping[str, str], ...] = ()

    @property
    def languages(self) -> dict[str, int]:
        """Training rows by language, most frequent first."""
        counts: dict[str, int] = {}
        for row in self.train:
            counts[row.lang] = counts.get(row.lang, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One evaluation task in one language.

    Attributes:
        task: Task id, e.g. ``sts/sts17_en.test``.
        type: ``STS``, ``BitextMining``, ``Retrieval`` or ``Classification``.
        lang: Language tag, or ``deu-eng`` for a pair of languages.
        metric: Name of the main score, e.g. ``cosine_spearman``.
        main_score: The score that counts, usually in 0..1 and never NaN.
        scores: Every score computed.
        n: Scored items (pairs, queries, texts).
        data: Hash of the data it was computed on.
        seconds: Wall time, encoding included.
    """

    task: str
    type: str
    lang: str
    metric: str
    main_score: float
    scores: Mapping[str, float]
    n: int
    data: str
    seconds: float

    def __post_init__(self) -> None:
        for name, value in {"main_score": self.main_score, **self.scores}.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} of task {self.task} ({self.lang}) is {value}: a score must be a number")
        if self.n < 1:
            raise ValueError(f"task {self.task} ({self.lang}) scored {self.n} items: an empty evaluation is an error")


@dataclass(frozen=True, slots=True)
class EvalReport:
    """All scores of one encoder."""

    model: ModelRef
    results: tuple[TaskResult, ...]

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError(f"no task was scored for {self.model.name!r}: an empty evaluation is an error")

    def by_type(self) -> dict[str, float]:
        """Mean main score of each task type: languages within a task first, then tasks."""
        types: dict[str, dict[str, list[float]]] = {}
        for result in self.results:
            types.setdefault(result.type, {}).setdefault(result.task, []).append(result.main_score)
        return {kind: _mean(_mean(scores) for scores in tasks.values()) for kind, tasks in types.items()}

    @property
    def mean(self) -> float:
        """Mean over task types."""
        return _mean(self.by_type().values())

    def score(self, task: str, lang: str) -> float | None:
        """Main score of one task in one language; ``None`` when it was not scored."""
        for result in self.results:
            if (result.task, result.lang) == (task, lang):
                return result.main_score
        return None

    def retention(self, reference: EvalReport) -> dict[str, float]:
        """This model's score over the reference's, by task type; 1.0 means equal.

        Raises:
            ValueError: If the two reports do not cover the same tasks and data.
        """
        mine, theirs = _keys(self), _keys(reference)
        if mine != theirs:
            raise ValueError(f"reports differ in what they scored: {sorted(mine ^ theirs)[:4]}")
        base = reference.by_type()
        return {kind: value / base[kind] for kind, value in self.by_type().items()}

    def mean_retention(self, reference: EvalReport) -> float:
        """Mean of :meth:`retention` over task types."""
        return _mean(self.retention(reference).values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"model": asdict(self.model), "results": [asdict(result) for result in self.results]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvalReport:
        """The inverse of :meth:`to_dict`."""
        return cls(ModelRef(**data["model"]), tuple(TaskResult(**result) for result in data["results"]))


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate.

    Attributes:
        name: What is compared, e.g. ``retention of STS``.
        value: What was measured.
        limit: What it is held against.
        at_least: ``True``: value must be at least limit; ``False``: at most.
    """

    name: str
    value: float
    limit: float
    at_least: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.limit)):
            raise NonFiniteError(f"gate check {self.name!r} compares {self.value} with {self.limit}")

    @property
    def passed(self) -> bool:
        """Whether the condition holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        word = "at least" if self.at_least else "at most"
        return f"{self.name} is {self.value:.4f}, must be {word} {self.limit:.4f}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """The verdict: every check, and whether all hold."""

    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("a gate without checks passes nothing: expected at least one")

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the outcome of each check spelled out."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {"passed": self.passed, "checks": checks}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateResult:
        """Rebuild from plain data. The stored outcome is ignored: it is recomputed from the values."""
        names = {f.name for f in fields(Check)}
        return cls(tuple(Check(**{k: v for k, v in check.items() if k in names}) for check in data["checks"]))


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


def check_vectors(vectors: NDArray[Any], *, n: int, what: str) -> FloatArray:
    """Return ``vectors`` as float32 if they are ``(n, dim)``, finite and of unit length to 1e-3.

    Raises:
        ValueError: If the shape is wrong.
        NonFiniteError: If a value is NaN or infinite, or a vector has no unit length; names the first bad row.
    """
    if vectors.ndim != 2 or len(vectors) != n:
        raise ValueError(f"{what}: got shape {vectors.shape}, expected ({n}, dim)")
    result: FloatArray = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(result, axis=1)
    bad = ~np.isfinite(norms)
    if bad.any():
        raise NonFiniteError(f"{what}: row {int(bad.argmax())} of {n} holds NaN or infinity ({int(bad.sum())} rows do)")
    off = np.abs(norms - 1) > 1e-3
    if off.any():
        row = int(off.argmax())
        raise NonFiniteError(
            f"{what}: row {row} of {n} has length {norms[row]:.4f}, expected 1 ({int(off.sum())} rows)"
        )
    return result


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _keys(report: EvalReport) -> set[tuple[str, str, str]]:
    return {(result.task, result.lang, result.data) for result in report.results}
