"""What in the recipe's ``[train]`` the text has no rows for: found out before a teacher works for hours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leafembed.errors import require
from leafembed.learn.rows import Rows
from leafembed.recipe_learn import NEAR, OBJECTIVES, TrainConfig
from leafembed.types import Corpus, Row

__all__ = ["require_teachable"]


def require_teachable(config: TrainConfig, corpus: Corpus, *, exits: Sequence[int] = (), mined: bool = False) -> None:
    """Check that text and student have what the objectives learn from, and what the losses that are watched measure.

    Args:
        config: The recipe's ``[train]``.
        corpus: Training and validation text.
        exits: Numbers of layers after which a vector is trained too.
        mined: Whether pairs without a hard negative will get one, which is known after the teacher's work alone.

    Raises:
        RecipeError: If an objective has a weight and no row could ever teach it, or if a validation loss that chooses
            the checkpoint, ends training or has a target cannot be measured.
    """
    pairs, triplets = _count(corpus.train, mined)
    require(config.contrastive == 0 or pairs > 0, "train.contrastive", config.contrastive,
            "0, or text with positives: no training row has one")  # fmt: skip
    require(config.triplet == 0 or triplets > 0, "train.triplet", config.triplet,
            "0, or text with positives and hard negatives, their own or mined: no training row has both")  # fmt: skip
    pairs, triplets = _count(corpus.validation, mined)
    lacks = {
        "exit_alignment": "" if exits else "student.exits is empty",
        "token_distillation": "" if config.token_distillation else "its weight is 0, so no token's vector is kept",
        "contrastive": "" if pairs else "no validation row has a positive",
        "triplet": "" if triplets else "no validation row has both a positive and a hard negative",
    }
    measured = [f"validation_{name}" for name in ("loss", NEAR, *OBJECTIVES) if not lacks.get(name)]
    watched = [("best_metric", config.best_metric), *(("targets", name) for name in config.targets)]
    if config.stop_patience is not None:
        watched.append(("stop_metric", config.stop_metric))
    for key, name in watched:
        why = lacks.get(name.removeprefix("validation_")) if name.startswith("validation_") else None
        also = "" if key == "targets" else "dev, a type of eval.dev or "
        require(not why, f"train.{key}", name, f"{also}one of {', '.join(measured)}, since {why}")


def _count(rows: Sequence[Row], mined: bool) -> tuple[int, int]:
    """Pairs, and those of them whose anchor has a hard negative, or may be given one."""
    columns = Rows.of(rows)
    anchors = columns.column("pair")
    anchors = anchors[anchors >= 0]
    return len(anchors), len(anchors) if mined else int(np.count_nonzero(columns.column("negative")[anchors] >= 0))
