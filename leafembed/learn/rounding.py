"""A token table that is trained as it will be stored: in 4 bits, with a scale for every 64 values of a row.

While it learns, each row that a batch reads is rounded on its way out, and the gradient passes as if it were not
(straight-through, Bengio et al. 2013, arXiv 1308.3432, as in quantisation-aware training, arXiv 1712.05877). At the end
the table itself is rounded, so that the bundle's 4-bit table is the student's own, value for value.

Shapes: V = vocabulary, H = hidden size, G = groups of a row, ``H / 64``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leafembed.errors import ModelError, RecipeError
from leafembed.types import TABLE_GROUP as GROUP
from leafembed.types import TABLE_LARGEST as LARGEST

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["bake_rounding", "bits_of", "round_reads", "round_rows", "scales_of"]


def scales_of(rows: Tensor) -> Tensor:
    """Scale of each group ``(..., G, 1)`` fp32, exact in fp16: the largest magnitude over 7.

    Groups of zeros have the scale 1, so that nothing is divided by 0.
    """
    largest = _grouped(rows.detach()).abs().amax(-1, keepdim=True)
    scales = (largest / LARGEST).half().float()
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def round_rows(rows: Tensor) -> Tensor:
    """Rows ``(..., H)`` as 4 bits hold them, in fp32. Rounding twice changes nothing."""
    scales = scales_of(rows)
    values = (_grouped(rows) / scales).round().clamp(-LARGEST, LARGEST)
    return (values * scales).flatten(-2)


def _grouped(rows: Tensor) -> Tensor:
    return rows.float().view(*rows.shape[:-1], -1, GROUP)


def round_reads(model: SentenceTransformer, bits: int | None) -> Any:
    """From now on let everything that reads the token table read it rounded; ``bits`` of ``None`` does nothing.

    Returns:
        torch's handle, whose ``remove`` ends it; ``None`` for no bits.

    Raises:
        RecipeError: If the width of the table is no multiple of 64.
        ModelError: If the model has no token table of its own.
    """
    if bits is None:
        return None
    table = _table(model)
    width = table.weight.shape[1]
    if width % GROUP:
        raise RecipeError(f"student.table_bits: got a table {width} wide, expected a multiple of {GROUP}")

    # An architecture may scale what it reads (Gemma: by the root of its width); a factor does not change the rounding.
    def rounded(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output + (round_rows(output.detach()) - output.detach()).to(output.dtype)

    return table.register_forward_hook(rounded)


def bake_rounding(model: SentenceTransformer, bits: int | None) -> None:
    """Round the token table itself, a piece at a time; ``bits`` of ``None`` does nothing."""
    if bits is None:
        return
    weight = _table(model).weight
    with torch.no_grad():
        for start in range(0, len(weight), 16_384):
            weight[start : start + 16_384] = round_rows(weight[start : start + 16_384])


def bits_of(model: SentenceTransformer) -> int | None:
    """4 where 4 bits hold the token table of a model as it is; ``None`` where they do not, or it has none."""
    body = getattr(model[0], "auto_model", None)
    weight = body.get_input_embeddings().weight.detach() if body is not None else torch.ones(1, 1)
    if weight.shape[1] % GROUP:
        return None
    parts = (weight[start : start + 16_384] for start in range(0, len(weight), 16_384))
    return 4 if all(torch.equal(round_rows(part), part) for part in parts) else None


def _table(model: SentenceTransformer) -> Any:
    body = getattr(model[0], "auto_model", None)
    if body is None:
        raise ModelError(f"got a student that starts with {type(model[0]).__name__}, expected a Transformer: its token "
                         "table is not stored in 4 bits")  # fmt: skip
    return body.get_input_embeddings()
