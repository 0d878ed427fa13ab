"""Prepares a trained student for INT8 without changing what it computes: channels of unequal size are evened out.

Where a norm or another linear part stands before matrices, a channel can be divided there and multiplied back in the
columns of the matrices. Activations with large channels are rounded coarsely, since they share a scale; so each channel
gives half of its size to the weights. SmoothQuant (arXiv 2211.10438, eq. 4, alpha 0.5), folded into what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer

from leafembed.errors import RecipeError
from leafembed.learn.tokens import TokenHead

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["SMOOTH_TEXTS", "smooth"]

SMOOTH_TEXTS = 64
"""Texts on which the size of channels is measured."""

_LEAST = 1e-8

_Pair = tuple[Callable[[Tensor], None], list[nn.Linear]]
"""What divides channels by scales, and the matrices whose columns take them."""


def smooth(model: SentenceTransformer, texts: Sequence[str]) -> bool:
    """Even out the channels of a student, in place; return whether its layers are of a kind that is known.

    Args:
        model: The student, on the CPU, not in training.
        texts: Texts as it reads them; the first :data:`SMOOTH_TEXTS` are used.
    """
    pairs = list(_pairs(model))
    if not pairs:
        return False
    largest: dict[int, Tensor] = {}

    def watch(key: int) -> Callable[[Any, Any], None]:
        def hook(_: Any, inputs: Any) -> None:
            given = inputs[0].detach().abs().flatten(0, -2).amax(0)
            largest[key] = torch.maximum(largest[key], given) if key in largest else given

        return hook

    hooks = [matrices[0].register_forward_pre_hook(watch(i)) for i, (_, matrices) in enumerate(pairs)]
    try:
        model.encode(list(texts[:SMOOTH_TEXTS]), batch_size=16, show_progress_bar=False)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for i, (divide, matrices) in enumerate(pairs):
            columns = torch.stack([matrix.weight.abs().amax(0) for matrix in matrices]).amax(0)
            scales = (largest[i].clamp(min=_LEAST) / columns.clamp(min=_LEAST)).sqrt()
            divide(scales)
            for matrix in matrices:
                matrix.weight.mul_(scales)
    return True


def _pairs(model: SentenceTransformer) -> Iterator[_Pair]:
    body: Any = getattr(model[0], "auto_model", None)
    layers = list(getattr(body, "layers", ()))
    if not layers or not all(isinstance(layer, Gemma3DecoderLayer) for layer in layers):
        return
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield _norm(layer.input_layernorm), [attention.q_proj, attention.k_proj, attention.v_proj]
        yield _norm(layer.pre_feedforward_layernorm), [mlp.gate_proj, mlp.up_proj]
        yield _rows(mlp.up_proj), [mlp.down_proj]
    try:
        dense = TokenHead(model).dense
    except RecipeError:  # something other than a mean stands between the last norm and the head
        return
    if dense:
        yield _norm(body.norm), [dense[0].linear]


def _norm(norm: Any) -> Callable[[Tensor], None]:
    """Gemma's norms multiply by one more than their weight."""

    def divide(scales: Tensor) -> None:
        norm.weight.copy_((1 + norm.weight) / scales - 1)

    return divide


def _rows(matrix: nn.Linear) -> Callable[[Tensor], None]:
    def divide(scales: Tensor) -> None:
        matrix.weight.div_(scales.unsqueeze(1))

    return divide
