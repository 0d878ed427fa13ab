"""Trackers that get every number besides the run's own log: Weights & Biases and TensorBoard.

The trainer's own integrations talk to them. Weights & Biases works without a network too: ``wandb offline`` before the
run (or ``WANDB_MODE=offline``), ``wandb sync`` after it. TensorBoard's files lie in ``runs/`` below the checkpoints.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from leafembed.errors import MissingExtraError

__all__ = ["require_trackers"]


def require_trackers(names: Sequence[str]) -> list[str]:
    """The names as the trainer wants them, once each is installed.

    Raises:
        MissingExtraError: If one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "track")
    return list(names)
