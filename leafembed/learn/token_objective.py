"""Compares the tokens of a batch with the teacher's, over the stretches of text that both cut out.

Both models' vectors are taken in units of their own texts, whose mean over the text's own tokens then has length 1: the
teacher's over all the rows, the student's as it was before the first step, so that a student whose head was not fitted
is compared too, and a resumed run has the same unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leafembed.errors import NonFiniteError, RecipeError
from leafembed.learn.feed import Item
from leafembed.learn.losses import token_distillation
from leafembed.learn.stretches import Stretches, mean_by, stretches
from leafembed.learn.token_store import TokenTargets, TokenVectors
from leafembed.learn.tokens import TokenHead, token_ends

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNIT_TEXTS", "TokenObjective"]

UNIT_TEXTS = 256
"""Texts on which a student's unit and the teacher's variance are measured."""


class TokenObjective:
    """What :func:`~leafembed.learn.losses.token_distillation` needs besides a batch.

    Args:
        model: The untrained student.
        targets: Teacher vectors of tokens by row number.
        items: Some training rows as the student reads them.

    Attributes:
        unit: Length of the mean of a text's tokens as the untrained student's head gives them, mean over the items.
        variance: Mean squared distance of the teacher's vector of a stretch to the mean of all, over the items.

    Raises:
        RecipeError: If the student's vector is no mean over its tokens, or no stretch of the items can be compared.
        NonFiniteError: If the student gives vectors without a length.
    """

    def __init__(self, model: Any, targets: TokenTargets, items: Sequence[Item]) -> None:
        self.head = TokenHead(model)
        self.targets = targets
        lengths: list[float] = []
        n, total_D, squares = 0, torch.zeros(targets.store.dim, dtype=torch.float64), 0.0
        training = model.training
        model.eval()
        with torch.no_grad():
            for number, _, text, prompt in items:
                states_TH, ends = _read(model, text, prompt)
                if (ends > 0).any():
                    lengths.append(self.head(states_TH[torch.from_numpy(ends > 0)].mean(dim=0)).norm().item())
                theirs_SD = self._theirs(*self._found(ends[np.newaxis], np.array([number]))).double()
                n, total_D = n + len(theirs_SD), total_D + theirs_SD.sum(dim=0)
                squares += theirs_SD.square().sum().item()
        model.train(training)
        self.unit = float(np.mean(lengths)) if lengths else 0.0
        if not np.isfinite(self.unit) or self.unit == 0:
            raise NonFiniteError(f"train.token_distillation: the untrained student's texts have length {self.unit}")
        self.variance = squares / n - (total_D / n).square().sum().item() if n > 1 else 0.0
        if self.variance < 1e-9:
            raise RecipeError("train.token_distillation: got no two stretches of text that both models cut out and "
                              "that differ; set it to 0")  # fmt: skip

    def __call__(self, states_BTH: Tensor, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor | None:
        """The objective of a batch; ``None``: there is nothing to compare.

        Args:
            states_BTH: The student's hidden states.
            ends: Where its tokens end ``(B, T)`` (:func:`~leafembed.learn.tokens.token_ends`).
            rows: Row numbers ``(B,)``.
        """
        found, targets = self._found(ends, rows)
        if not found.n:
            return None
        places = torch.from_numpy(found.places).to(states_BTH.device)
        own_PD = self.head(states_BTH.flatten(0, 1)[places].float()) / self.unit
        theirs_SD = self._theirs(found, targets).to(states_BTH.device)
        return token_distillation(mean_by(own_PD, found.student, found.n), theirs_SD, variance=self.variance)

    def _found(self, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[Stretches, TokenVectors]:
        targets = self.targets(rows)
        return stretches(ends, targets), targets

    @staticmethod
    def _theirs(found: Stretches, targets: TokenVectors) -> Tensor:
        """The teacher's vector of each stretch ``(S, dim)``."""
        within = found.teacher >= 0
        return mean_by(torch.from_numpy(targets.vectors[within]), found.teacher[within], found.n)


def _read(model: Any, text: str, prompt: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Hidden states ``(T, hidden)`` of a text with its prompt, and where its tokens end ``(T,)``."""
    features = model.preprocess([text])
    ends = token_ends(model, features["input_ids"], [text], [prompt])[0]
    features = {name: value.to(model.device) for name, value in features.items() if hasattr(value, "to")}
    return model(features)["token_embeddings"][0].float(), ends
