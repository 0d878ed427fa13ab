"""What the student is trained to do, each objective a function of unit vectors.

Shapes: B = batch, D = dim. ``student_BD`` and ``teacher_BD`` are unit vectors of the same texts in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leafembed.errors import NonFiniteError
from leafembed.recipe_learn import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

__all__ = ["DistillationLoss", "alignment", "distillation"]


def distillation(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Mean of ``1 - cos(student, teacher)``.

    Range 0 to 2; 0 is perfect, 1 means unrelated directions. For unit vectors it is half the squared distance, so it
    orders students as the L2 loss of LEAF does (arXiv 2509.12539). Alone it says nothing about how texts relate to
    each other; :func:`alignment` does.
    """
    return (1 - functional.cosine_similarity(student_BD, teacher_BD, dim=-1)).mean()


def alignment(student_BD: Tensor, teacher_BD: Tensor, *, temperature: float) -> Tensor:
    """KL divergence from the teacher's to the student's in-batch similarity rows, mean over rows, in nats.

    Row i is ``softmax_j(cos(x_i, x_j) / temperature)`` over the other texts j of the batch. Range 0 upwards; 0 when
    both models rank and space the batch alike, whatever rotation lies between them. After "similarity-preserving"
    distillation (Tung & Mori, arXiv 1907.09682), with the softmax of SEED (arXiv 2101.04731, eq. 5).

    Args:
        student_BD: Student vectors.
        teacher_BD: Teacher vectors.
        temperature: Above 0; small values look at the nearest texts only.
    """
    own = torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    student_BB = (student_BD @ student_BD.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    teacher_BB = (teacher_BD @ teacher_BD.T / temperature).masked_fill(own, -1e4).log_softmax(dim=-1)
    return functional.kl_div(student_BB, teacher_BB, reduction="batchmean", log_target=True)


class DistillationLoss(nn.Module):
    """The weighted sum that the trainer minimises, its parts returned by name so that each is logged.

    The label of a text is its row number; the teacher's vector is looked up when the batch is there, so that the
    data set holds no vectors.

    Args:
        model: The student.
        targets: Gives the teacher vectors ``(B, D)`` of row numbers ``(B,)``.
        config: Weights and temperature.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        targets: Callable[[NDArray[np.int64]], NDArray[np.float32]],
        config: TrainConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.targets = targets
        self.config = config

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted objectives of one batch; their sum is the loss.

        Raises:
            NonFiniteError: If an objective is NaN or infinite; names the rows of the batch.
        """
        (features,) = sentence_features
        output = self.model(features)["sentence_embedding"]
        # In fp32 whatever autocast says: similarities divided by a temperature need the digits.
        with torch.autocast(output.device.type, enabled=False):
            student_BD = functional.normalize(output.float(), dim=-1)
            teacher_BD = torch.from_numpy(self.targets(labels.cpu().numpy())).to(student_BD.device)
            parts: dict[str, Tensor] = {}
            if self.config.distillation:
                parts["distillation"] = self.config.distillation * distillation(student_BD, teacher_BD)
            if self.config.alignment:
                value = alignment(student_BD, teacher_BD, temperature=self.config.alignment_temperature)
                parts["alignment"] = self.config.alignment * value
        for name, value in parts.items():
            if not torch.isfinite(value):
                rows = labels.tolist()
                raise NonFiniteError(f"the {name} loss is {value.item()} on rows {rows[:8]} (batch of {len(rows)})")
        return parts
