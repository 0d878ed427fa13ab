"""Every error a user can meet, under one base.

    Error                    what the command line turns into one line and exit status 1
    ├── RecipeError          unknown key, illegal value, impossible combination; names the key
    ├── DataError            unreadable or empty text, evaluation sets that overlap
    │   └── NoRowsError      an evaluation set without enough rows in the languages asked for
    ├── ModelError           a teacher, student or encoder folder that cannot be used
    ├── CacheError           a damaged store of teacher vectors
    ├── CheckpointError      a checkpoint cannot be written, on a full disk for example; says what is still good
    ├── NonFiniteError       NaN or infinity in a loss, vector or score; says which and where
    ├── UsageError           options of a command that do not go together or name what is not there; exit status 2
    ├── BundleError          missing file, wrong hash, unknown format version
    ├── MissingExtraError    an optional dependency is absent (also an ImportError)
    ├── StoppedError         training stopped itself; carries the alarms and the diagnosis; exit status 3
    └── GateFailedError      the gate refused the model; carries the verdict; exit status 3

A wrong argument to a pure function is a plain ``ValueError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leafembed.learn.alarms import Alarm
    from leafembed.reports import GateResult

__all__ = [
    "BundleError",
    "CacheError",
    "CheckpointError",
    "DataError",
    "Error",
    "GateFailedError",
    "MissingExtraError",
    "ModelError",
    "NoRowsError",
    "NonFiniteError",
    "RecipeError",
    "StoppedError",
    "UsageError",
    "first_line",
    "require",
    "require_at_least",
]


class Error(Exception):
    """Base of every error this package raises on purpose."""


class RecipeError(Error):
    """The recipe holds an unknown key or a value that cannot work."""


class DataError(Error):
    """Training or evaluation text cannot be used as it is."""


class NoRowsError(DataError):
    """An evaluation set is whole, but has no language, of those asked for, with enough rows to score."""


class ModelError(Error):
    """A model folder is incomplete, damaged, or of a kind we cannot handle."""


class CacheError(Error):
    """The store of teacher vectors is damaged."""


class CheckpointError(Error):
    """A checkpoint of a training run cannot be written."""


class NonFiniteError(Error):
    """A loss, vector or score is NaN or infinite.

    Attributes:
        texts: What it came from, where that is known: of bad vectors their texts, of a bad score all that it rests on.
        vectors: The bad vectors ``(len(texts), dim)``; ``None`` where none is.
    """

    def __init__(self, message: str, *, texts: Sequence[str] = (), vectors: Any = None) -> None:
        super().__init__(message)
        self.texts, self.vectors = tuple(texts), vectors


class BundleError(Error):
    """A bundle folder is incomplete, altered, or of an unknown format version."""


class UsageError(Error):
    """The options of a command do not go together, or name what the model does not have."""


class MissingExtraError(Error, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str | None = None) -> None:
        install = f"'leafembed[{extra}]'" if extra else package
        super().__init__(f"this needs {package}, which is not installed: pip install {install}")


class GateFailedError(Error):
    """The gate refused the model.

    Attributes:
        result: The verdict with every check, passed or not.
    """

    def __init__(self, result: GateResult, *, stage: str) -> None:
        failed = "; ".join(str(check) for check in result.failed)
        super().__init__(f"the gate refused the {stage}: {failed}")
        self.result = result


class StoppedError(Error):
    """Training stopped itself, since it could not succeed; the message is the diagnosis.

    Attributes:
        alarms: Every alarm that rang, in order.
        training: What training reports of itself, up to the stop: ``steps``, ``history`` and so on.
    """

    def __init__(self, diagnosis: str, *, alarms: Sequence[Alarm], training: Mapping[str, Any]) -> None:
        super().__init__(diagnosis)
        self.alarms = tuple(alarms)
        self.training = training


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(condition: bool, key: str, got: Any, expected: str) -> None:
    """Raise :class:`RecipeError` naming the key, what it is and what was expected, unless ``condition`` holds."""
    if not condition:
        raise RecipeError(f"{key}: got {got!r}, expected {expected}")


def require_at_least(section: str, config: object, **limits: float) -> None:
    """Raise :class:`RecipeError` for the first named key of a config section below its limit; ``None`` is no number."""
    for name, limit in limits.items():
        value = getattr(config, name)
        require(value is None or value >= limit, f"{section}.{name}", value, f"at least {limit:g}")
