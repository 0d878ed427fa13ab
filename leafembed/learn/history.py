"""What a run's log says: one entry a step, the best evaluation, and how long there was no better one.

The trainer keeps the log in every checkpoint, so whatever is derived from it survives a resume by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leafembed.recipe_learn import OBJECTIVES

__all__ = ["best_evaluation", "evaluated_steps", "evaluations_without_gain", "history", "less_is_better", "metric_key"]

_OF_TRAINING = ("loss", *OBJECTIVES, "learning_rate", "grad_norm")
_DEV, _VALIDATION = "eval_dev_", "eval_validation_"

_Log = Sequence[Mapping[str, Any]]


def metric_key(name: str) -> str:
    """Key in an evaluation's metrics of what a recipe calls ``dev``, a dev task type, or ``validation_...``."""
    if name == "dev":
        return f"{_DEV}mean"
    return f"eval_{name}" if name.startswith("validation_") else f"{_DEV}{name}"


def less_is_better(name: str) -> bool:
    """Whether a metric is a loss."""
    return name.startswith("validation_")


def best_evaluation(log: _Log, name: str) -> Mapping[str, Any] | None:
    """The evaluation after step 0 with the best value of a metric, the first of equals; ``None``: there is none."""
    key, sign = metric_key(name), -1 if less_is_better(name) else 1
    found = [entry for entry in log if key in entry and entry["step"] > 0]
    return max(found, key=lambda entry: sign * entry[key], default=None)


def evaluated_steps(log: _Log) -> list[int]:
    """Steps that were evaluated, in order. A run that was told to terminate left a checkpoint without an evaluation."""
    return sorted({int(entry["step"]) for entry in log if f"{_DEV}mean" in entry})


def evaluations_without_gain(log: _Log, name: str) -> int:
    """Evaluations since the best value of a metric, the one before the first step included."""
    key, sign = metric_key(name), -1 if less_is_better(name) else 1
    values = [sign * entry[key] for entry in log if key in entry]
    return len(values) - 1 - values.index(max(values)) if values else 0


def history(log: _Log) -> list[dict[str, Any]]:
    """The trainer's log as one entry a step.

    Each holds ``step`` and what there is of: ``loss`` (weighted sum), the unweighted objectives, ``learning_rate``,
    ``grad_norm``; ``validation``, a dict of unweighted objectives and their weighted sum ``loss``; ``dev`` and
    ``dev_tasks``; ``alarms``, a list of sentences.
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in log:
        item = steps.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        item |= {name: float(entry[name]) for name in _OF_TRAINING if name in entry}
        scores = _below(entry, _DEV)
        if scores:
            item["dev"] = scores.pop("mean")
            item["dev_tasks"] = scores
            item["validation"] = _below(entry, _VALIDATION)
        if "alarm" in entry:
            item.setdefault("alarms", []).append(str(entry["alarm"]))
    return [item for _, item in sorted(steps.items()) if len(item) > 1]


def _below(entry: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in entry.items() if name.startswith(prefix)}
