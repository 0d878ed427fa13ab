"""A model's tokens: their vectors in the space of its output, and where in the text they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.head import is_linear

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["TokenHead", "token_ends"]


class TokenHead:
    """What stands after a model's mean pooling, applied to single tokens.

    Args:
        model: A sentence-transformers model: a transformer, a mean over all tokens, Dense layers that are linear.
        key: Of the recipe, for the message.

    Raises:
        RecipeError: If the model is not of that kind, so that its vector is no mean over tokens, prompt included.
    """

    def __init__(self, model: Any, key: str = "train.token_distillation") -> None:
        from sentence_transformers.base.modules import Dense, Normalize
        from sentence_transformers.sentence_transformer.modules import Pooling

        first, *rest = [module for module in model if not isinstance(module, Normalize)]
        means = bool(rest) and isinstance(rest[0], Pooling) and rest[0].pooling_mode == "mean"
        dense = rest[1:]
        if not (hasattr(first, "auto_model") and means and all(isinstance(m, Dense) for m in dense)):
            names = [type(module).__name__ for module in model]
            raise RecipeError(f"{key}: got a model of {names}, expected a transformer, a mean over tokens, and Dense")
        if not is_linear(*dense):
            raise RecipeError(f"{key}: got a Dense with an activation, expected linear ones: a mean must pass through")
        if not rest[0].include_prompt:
            raise RecipeError(f"{key}: got a model that leaves its prompt out of the mean, expected all tokens in it")
        self.dense = dense

    def __call__(self, hidden_TH: Tensor) -> Tensor:
        """Vectors ``(T, dim)`` of hidden states ``(T, hidden)``."""
        for module in self.dense:
            hidden_TH = module.linear(hidden_TH)
        return hidden_TH


def token_ends(model: Any, ids: Any, texts: Sequence[str], prompts: Sequence[int]) -> NDArray[np.int64]:
    """Where each token ends in its text: characters ``(B, tokens)`` from 1; 0 for prompt, special tokens and padding.

    The tokenizer cuts and pads as in the model's last call, so that this belongs right after it.

    Args:
        model: A sentence-transformers model with a fast tokenizer.
        ids: What that call made of the texts ``(B, tokens)``.
        texts: What the model was given, prompts included.
        prompts: How many characters of each text are its prompt.

    Raises:
        ModelError: If the tokenizer by itself makes other tokens of a text than the model did.
    """
    fast = getattr(model.tokenizer, "_tokenizer", model.tokenizer)
    encoded = fast.encode_batch(list(texts))
    if [item.ids for item in encoded] != ids.tolist():
        raise ModelError(
            f"got other tokens of {texts[0]!r} or a text beside it than the model reads, expected the same: it changes "
            "texts before its tokenizer sees them; set train.token_distillation to 0"
        )
    ends = np.array([[end for _, end in item.offsets] for item in encoded], dtype=np.int64)
    special = np.array([item.special_tokens_mask for item in encoded], dtype=bool)
    lengths = np.array(prompts, dtype=np.int64)[:, np.newaxis]
    return np.where(special, 0, np.maximum(ends - lengths, 0))
