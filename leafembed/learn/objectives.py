"""Applies the objectives to one batch: one forward pass serves them all.

The batch is one list of rows. Pairs and triplets are found in it by row number, early exits by hooks on the layers, and
every objective over texts is averaged over the full vector and the leading ``student.dims`` of it (Matryoshka, arXiv
2205.13147, eq. 1 with equal weights); tokens are compared in full. Shapes as in ``losses.py``; E = early exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leafembed.learn.exits import Exits
from leafembed.learn.links import Links, pairs_in, triplets_in
from leafembed.learn.losses import alignment, contrastive, cut, distillation, exit_alignment, triplet
from leafembed.learn.shapes import require_dims
from leafembed.learn.token_objective import TokenObjective
from leafembed.recipe_learn import OBJECTIVES, TrainConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

__all__ = ["Objectives", "Targets"]

Targets = Callable[["NDArray[np.int64]"], "NDArray[np.float32]"]
"""Teacher vectors ``(n, D)`` of row numbers ``(n,)``; validation rows follow the training rows."""


class Objectives(nn.Module):
    """What the trainer minimises, and each part of it.

    The label of a text is its row number; the teacher's vector is looked up when the batch is there, so that the data
    set holds no vectors.

    Args:
        model: The student.
        targets: Teacher vectors by row number.
        config: Weights, temperatures and margin.
        links: Pairs and hard negatives; ``None``: there are none.
        exits: Layers after which a vector is trained too.
        dims: Leading dimensions that are trained to stand alone.
        every: Whether objectives of weight 0 are computed too, where they need nothing that is not there.
        tokens: Compares tokens; ``None``: only whole texts are compared.

    Raises:
        RecipeError: If there are no such dims.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        targets: Targets,
        config: TrainConfig,
        *,
        links: Links | None = None,
        exits: Sequence[int] = (),
        dims: Sequence[int] = (),
        every: bool = False,
        tokens: TokenObjective | None = None,
    ) -> None:
        super().__init__()
        require_dims(dims, int(model.get_embedding_dimension() or 0))
        self.model = model
        self.targets = targets
        self.config = config
        self.links = links
        self.exits = Exits(model, exits) if exits else None
        self.dims = tuple(dims)
        self.tokens = tokens
        self.weights = {name: float(getattr(config, name)) for name in OBJECTIVES}
        self.names = {name for name, weight in self.weights.items() if weight or every}
        self.processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum and the unweighted objectives of one batch by name."""
        student_BD, parts = self.measure(sentence_features, labels)
        # A sum that starts so has a gradient though a batch may have nothing to learn from.
        total = student_BD.sum() * 0
        for name, value in parts.items():
            total = total + self.weights[name] * value
        return total, parts

    def measure(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's vectors ``(B, D)`` float32, unit length, and the unweighted objectives by name.

        An objective is left out where the batch has nothing for it: contrastive without a pair, for example.
        """
        (given,) = sentence_features
        features = dict(given)
        ends = features.pop("token_ends", None)
        rows = labels.cpu().numpy()
        student_BD, exits_EBD, states = self._vectors(features)
        # In fp32 whatever autocast says: similarities divided by a temperature need the digits.
        with torch.autocast(student_BD.device.type, enabled=False):
            vectors = [functional.normalize(vector.float(), dim=-1) for vector in (student_BD, *exits_EBD)]
            teacher_BD = torch.from_numpy(self.targets(rows)).to(student_BD.device)
            parts = self._averaged(vectors[0], vectors[1:], teacher_BD, rows.tolist())
            if self.tokens is not None and states is not None and ends is not None:
                value = self.tokens(states, ends.cpu().numpy(), rows)
                parts |= {} if value is None else {"token_distillation": value}
        return vectors[0], parts

    def _vectors(self, features: dict[str, Any]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The student's vector of each text, its vectors at exits, and the states of its tokens."""
        if self.exits is None or "exit_alignment" not in self.names:
            output = self.model(features)
            return output["sentence_embedding"], [], output.get("token_embeddings")
        with self.exits.watching() as caught:
            output = self.model(features)
        return output["sentence_embedding"], self.exits.vectors(caught, output), output.get("token_embeddings")

    def _averaged(
        self, student_BD: Tensor, exits_EBD: list[Tensor], teacher_BD: Tensor, rows: list[int]
    ) -> dict[str, Tensor]:
        places = self._places(rows)
        found = [self._parts(student_BD, exits_EBD, teacher_BD, places)]
        for dim in self.dims:
            shorter = [cut(vector, dim) for vector in exits_EBD]
            found.append(self._parts(cut(student_BD, dim), shorter, cut(teacher_BD, dim), places))
        return {name: torch.stack([parts[name] for parts in found]).mean() for name in found[0]}

    def _parts(
        self, student_BD: Tensor, exits_EBD: list[Tensor], teacher_BD: Tensor, places: dict[str, tuple[list[int], ...]]
    ) -> dict[str, Tensor]:
        config, kind = self.config, self.config.distillation_kind
        parts: dict[str, Tensor] = {}
        if "distillation" in self.names:
            parts["distillation"] = distillation(student_BD, teacher_BD, kind=kind)
        if "alignment" in self.names:
            parts["alignment"] = alignment(student_BD, teacher_BD, temperature=config.alignment_temperature)
        if exits_EBD:
            parts["exit_alignment"] = exit_alignment(exits_EBD, teacher_BD, kind=kind)
        if "contrastive" in places:
            sides = [student_BD[place] for place in places["contrastive"]]
            parts["contrastive"] = contrastive(
                sides[0], sides[1], temperature=config.contrastive_temperature, gather=self.processes > 1
            )
        if "triplet" in places:
            anchors, positives, negatives = (student_BD[place] for place in places["triplet"])
            parts["triplet"] = triplet(anchors, positives, negatives, margin=config.triplet_margin)
        return parts

    def _places(self, rows: list[int]) -> dict[str, tuple[list[int], ...]]:
        """Where the batch has pairs and triplets; an objective without any is left out."""
        if self.links is None:
            return {}
        found: dict[str, tuple[list[int], ...]] = {}
        if "contrastive" in self.names:
            anchors, positives = pairs_in(rows, self.links)
            n = self._least(len(anchors))
            found["contrastive"] = anchors[:n], positives[:n]
        if "triplet" in self.names:
            found["triplet"] = triplets_in(rows, self.links)
        return {name: places for name, places in found.items() if places[0]}

    def _least(self, n: int) -> int:
        """The least ``n`` of all processes: gathering needs as many pairs from each."""
        if self.processes == 1:
            return n
        least = torch.tensor(n, device=self.model.device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        return int(least)
