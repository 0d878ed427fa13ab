"""Compares the tokens of a batch with the teacher's, over the stretches of text that both cut out.

Both models' vectors are taken in units of their own texts: the teacher's of all the rows, the student's as it was
before the first step, so that a student whose head was not fitted is compared too, and a resumed run has the same unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leafembed.errors import NonFiniteError
from leafembed.learn.losses import token_distillation
from leafembed.learn.stretches import mean_by, stretches
from leafembed.learn.token_store import TokenTargets
from leafembed.learn.tokens import TokenHead

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNIT_TEXTS", "TokenObjective"]

UNIT_TEXTS = 256
"""Texts on which a student's unit is measured."""


class TokenObjective:
    """What :func:`~leafembed.learn.losses.token_distillation` needs besides a batch.

    Args:
        model: The untrained student.
        targets: Teacher vectors of tokens by row number.
        texts: Some training texts with the student's prompts, for its unit.

    Attributes:
        unit: Length of the mean of a text's tokens as the untrained student's head gives them, mean over the texts.

    Raises:
        RecipeError: If the student's vector is no mean over its tokens.
        NonFiniteError: If the student gives vectors without a length.
    """

    def __init__(self, model: Any, targets: TokenTargets, texts: Sequence[str]) -> None:
        self.head = TokenHead(model)
        self.targets = targets
        self.unit = _unit(model, self.head, texts)

    def __call__(self, states_BTH: Tensor, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor | None:
        """The objective of a batch; ``None``: there is nothing to compare.

        Args:
            states_BTH: The student's hidden states.
            ends: Where its tokens end ``(B, T)`` (:func:`~leafembed.learn.tokens.token_ends`).
            rows: Row numbers ``(B,)``.
        """
        targets = self.targets(rows)
        found = stretches(ends, targets)
        if not found.n:
            return None
        places = torch.from_numpy(found.places).to(states_BTH.device)
        own_PD = self.head(states_BTH.flatten(0, 1)[places].float()) / self.unit
        within = found.teacher >= 0
        theirs_TD = torch.from_numpy(targets.vectors[within]).to(states_BTH.device)
        return token_distillation(
            mean_by(own_PD, found.student, found.n),
            mean_by(theirs_TD, found.teacher[within], found.n),
            variance=self.targets.variance,
        )


def _unit(model: Any, head: TokenHead, texts: Sequence[str]) -> float:
    training = model.training
    model.eval()
    lengths: list[float] = []
    with torch.no_grad():
        for text in texts:
            features = model.preprocess([text])
            features = {name: value.to(model.device) for name, value in features.items() if hasattr(value, "to")}
            hidden = model(features)["token_embeddings"][0].float()
            lengths.append(head(hidden.mean(dim=0)).norm().item())
    model.train(training)
    unit = float(np.mean(lengths))
    if not np.isfinite(unit) or unit == 0:
        raise NonFiniteError(f"train.token_distillation: got text vectors of length {unit} from the untrained student")
    return unit
