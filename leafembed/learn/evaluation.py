"""What a student is measured by while it learns: dev scores, and the objectives on text it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from leafembed.errors import NonFiniteError, RecipeError
from leafembed.learn.batches import plan_pass
from leafembed.learn.feed import Collator, Texts
from leafembed.learn.history import metric_key
from leafembed.learn.links import Links
from leafembed.learn.losses import alignment
from leafembed.learn.nonfinite import keep_evidence, refuse_batch
from leafembed.learn.objectives import Objectives
from leafembed.recipe_learn import NEAR, TrainConfig
from leafembed.types import FloatArray

__all__ = ["NEAR_TEMPERATURE", "NEAR_TEXTS", "Evaluation", "Score", "near_alignment"]

NEAR_TEMPERATURE = 0.05
"""Sharp enough to look at nearest neighbours: at .5 the alignment of a collapsing student fell (``docs/log.md``)."""

NEAR_TEXTS = 64
"""Texts that are held against each other at a time: the loss grows with their number."""

Score = Callable[[SentenceTransformer], Mapping[str, float]]
"""Dev scores of a student by name; ``mean`` among them."""


class Evaluation(BaseEvaluator):
    """Scores a student on dev tasks and computes its validation losses; the trainer calls it.

    Args:
        score: The dev scores.
        objectives: Computes every objective that validation text allows.
        texts: The corpus.
        links: Pairs and hard negatives of the validation rows, counted from the first of these.
        lengths: Tokens of each row, validation rows last.
        limit: Tokens that validation texts are cut to: the longest phase's, so that losses compare over the run.
        work_dir: Folder of the checkpoints, for what is not finite.
    """

    def __init__(
        self,
        score: Score,
        objectives: Objectives,
        texts: Texts,
        *,
        links: Links,
        lengths: Any,
        limit: int,
        work_dir: Path,
    ) -> None:
        super().__init__()
        self.score = score
        self.objectives = objectives
        self.config: TrainConfig = objectives.config
        self.texts = texts
        self.work_dir = work_dir
        first = len(texts.corpus.train)
        planned = plan_pass(lengths[first:], limit, self.config, links)
        self.batches = [[(first + i, limit) for i in batch] for batch in planned]
        self.collate = Collator(objectives.model, ends=objectives.tokens is not None)

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Metrics ``dev_...`` and ``validation_...``; the trainer puts ``eval_`` before their names.

        Raises:
            NonFiniteError: If one, or a vector behind it, is NaN or infinite; names the step, keeps what it is of.
            RecipeError: If the recipe watches a metric that is not among them.
        """
        training = model.training
        model.eval()
        losses = self.losses(steps)  # first: a text that gives NaN is named and kept, whatever dev tasks make of it
        try:
            metrics = {f"dev_{name}": float(value) for name, value in self.score(model).items()}
        except NonFiniteError as error:
            kept = self._kept(error, steps)
            raise NonFiniteError(f"dev evaluation at step {steps}: {error}{kept}; lower train.learning_rate") from error
        metrics |= {f"validation_{name}": value for name, value in losses.items()}
        model.train(training)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value} at step {steps}; lower train.learning_rate")
        self._check_names(metrics)
        return metrics

    def losses(self, step: int) -> dict[str, float]:
        """Unweighted objectives, means over the validation rows, ``loss``, their weighted sum, and ``NEAR``.

        Contrastive and triplet losses are means over the batches that have pairs or triplets; ``NEAR`` is of the
        rows in order, whatever batches they are read in.

        Raises:
            NonFiniteError: If one is NaN or infinite in a batch, which is kept.
        """
        device = self.objectives.model.device
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        vectors: dict[int, FloatArray] = {}
        for batch in self.batches:
            inputs = self.collate([self.texts[visit] for visit in batch])
            features = {
                name.removeprefix("sentence_"): value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in inputs.items()
            }
            with torch.no_grad():
                student_BD, parts = self.objectives.measure([features], features.pop("label"))
            vectors |= zip([row for row, _ in batch], student_BD.cpu().numpy(), strict=True)
            for name, value in parts.items():
                if not math.isfinite(value.item()):
                    self._refuse(f"the validation {name} loss is {value.item()}", batch, features, step)
                totals[name] = totals.get(name, 0.0) + value.item() * len(batch)
                counts[name] = counts.get(name, 0) + len(batch)
        means = {name: total / counts[name] for name, total in totals.items()}
        loss = float(np.sum([self.objectives.weights[n] * v for n, v in means.items()]))
        rows = np.array(sorted(vectors))
        student = np.stack([vectors[row] for row in rows.tolist()])
        return {"loss": loss, **means, NEAR: near_alignment(student, self.objectives.targets(rows))}

    def _kept(self, error: NonFiniteError, step: int) -> str:
        """Keep the dev texts that an error carries, with their vectors; they are no rows of the corpus."""
        if not error.texts:
            return ""
        facts = {"step": step, "what": str(error), "rows": [], "texts": list(error.texts)}
        arrays = {} if error.vectors is None else {"student": error.vectors}
        return ", " + keep_evidence(self.work_dir, facts, arrays)

    def _refuse(self, what: str, batch: list[tuple[int, int]], features: Mapping[str, Any], step: int) -> None:
        rows = np.array([row for row, _ in batch])
        arrays = {"input_ids_0": features["input_ids"].cpu().numpy(), "teacher": self.objectives.targets(rows)}
        texts = [self.texts.text(int(row)) for row in rows]
        refuse_batch(what, rows, step=step, work_dir=self.work_dir, texts=texts, held_out=True, arrays=arrays)

    def _check_names(self, metrics: Mapping[str, float]) -> None:
        config = self.config
        watched: list[tuple[str, str]] = [("train.best_metric", config.best_metric)]
        if config.stop_patience is not None:
            watched.append(("train.stop_metric", config.stop_metric))
        watched += [("train.targets", name) for name in config.targets]
        for key, name in watched:
            if metric_key(name).removeprefix("eval_") not in metrics:
                raise RecipeError(f"{key}: got {name!r}, expected dev or one of {_names(metrics)}")


def near_alignment(student: FloatArray, teacher: FloatArray) -> float:
    """Mean alignment of every ``NEAR_TEXTS`` texts in order, at ``NEAR_TEMPERATURE``: ``alignment`` in ``losses.py``.

    Neither a recipe's batches nor its dims or temperature change it. What is left after the last full ``NEAR_TEXTS``
    takes no part, unless there are no more texts than that.

    Args:
        student: The student's vectors ``(n, D)``, unit length.
        teacher: The teacher's of the same texts.
    """
    whole = max(len(student) // NEAR_TEXTS, 1)
    values = []
    for start in range(0, whole * NEAR_TEXTS, NEAR_TEXTS):
        parts = [torch.from_numpy(side[start : start + NEAR_TEXTS]) for side in (student, teacher)]
        values.append(alignment(*parts, temperature=NEAR_TEMPERATURE).item())
    return float(np.mean(values))


def _names(metrics: Mapping[str, float]) -> str:
    return ", ".join(sorted(name.removeprefix("dev_") for name in metrics if name != "dev_mean"))
