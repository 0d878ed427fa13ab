"""A student that is what its bundle will hold: a token table in 4 bits, matrices in 8.

The table has a scale for every 64 values of a row.

While it learns, each row that a batch reads is rounded on its way out, and the gradient passes as if it were not
(straight-through, Bengio et al. 2013, arXiv 1308.3432, as in quantisation-aware training, arXiv 1712.05877). At the end
the table itself is rounded, so that the bundle's 4-bit table is the student's own, value for value.

A matrix has a scale for each output row, as INT8 export gives it one. It is rounded once, when training has ended, so
that export does not round it again; how near the student stays to what was trained is measured then.

Shapes: V = vocabulary, H = hidden size, G = groups of a row, ``H / 64``; O, I = outputs and inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from leafembed.errors import ModelError, RecipeError
from leafembed.types import TABLE_GROUP as GROUP
from leafembed.types import TABLE_LARGEST as LARGEST

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = [
    "NO_BITS",
    "Bits",
    "bake_matrices",
    "bake_rounding",
    "bits_of",
    "round_matrix",
    "round_reads",
    "round_rows",
    "scales_of",
]


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits that a student is rounded to; ``None``: it is not.

    Attributes:
        table: Of its token table, from the first step on.
        matrices: Of its matrices, when training has ended.
    """

    table: int | None = None
    matrices: int | None = None


NO_BITS = Bits()
"""Nothing is rounded."""


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


def round_matrix(weight: Tensor) -> Tensor:
    """A matrix ``(O, I)`` as 8 bits hold it, in fp32. Rounding twice changes nothing, but for rows below .01.

    The value of a row that is farthest from 0 becomes -128 times the row's scale, which may be negative, as nncf's
    INT8_SYM has it; scales are exact in fp16, in which they are stored.
    """
    lowest, highest = weight.float().aminmax(dim=1, keepdim=True)
    scales = (torch.where(lowest.abs() >= highest, lowest.abs(), -highest) / 128).half().float()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (weight.float() / scales).round().clamp(-128, 127) * scales


def bake_matrices(model: SentenceTransformer, bits: int | None, texts: Sequence[str]) -> dict[str, Any] | None:
    """Round the matrix of every Linear of a model, in place; ``bits`` of ``None`` does nothing.

    Args:
        model: The student, on the CPU, not in training.
        bits: 8 or ``None``.
        texts: Texts as it reads them, at least one.

    Returns:
        ``cosine_mean`` and ``cosine_min`` between its vectors of the ``texts`` before and after; ``None`` for no bits.
    """
    if bits is None:
        return None
    options = {"batch_size": 32, "normalize_embeddings": True, "show_progress_bar": False}
    before = model.encode(list(texts), **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(round_matrix(module.weight))
    cosines = np.sum(before * model.encode(list(texts), **options), axis=1)
    return {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min()), "texts": len(texts)}


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
