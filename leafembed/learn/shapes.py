"""The shape of a student as a transformer config, worked out from the teacher's: layers kept, width, heads, vocabulary.

What is built and what ``leaf plan`` prices come from the same functions, so that they cannot differ.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

from leafembed.errors import RecipeError, require
from leafembed.learn.width import layout_of
from leafembed.recipe_learn import StudentConfig

__all__ = [
    "LAYER_NAME",
    "cut_vocabulary",
    "kept_config",
    "legal_width",
    "random_config",
    "require_dims",
    "require_exits",
    "require_shape",
    "student_config",
]

LAYER_NAME = re.compile(r"(?:^|(?<=\.))(layers?)\.(\d+)\.")
"""Finds the number of a layer in the name of a weight."""

_UNIT = 8
"""Widths are multiples of this, so that rows fill the CPU's vectors."""


def student_config(config: Any, student: StudentConfig) -> Any:
    """The transformer config that a ``layers`` or ``random`` student of this teacher gets.

    Raises:
        RecipeError: If the teacher has no such layers.
    """
    if student.init == "random":
        result = random_config(config, student)
    else:
        result = kept_config(config, student.layers)
        result.hidden_size = legal_width(int(config.hidden_size), student.width)
    cut_vocabulary(result, student.vocab_size)
    return result


def require_shape(student: StudentConfig, teacher: Any | None, dim: int) -> None:
    """Refuse a shape that a loaded teacher cannot give, before it works for hours.

    Args:
        student: The recipe's ``[student]``.
        teacher: The teacher as a sentence-transformers model; ``None``: it is at a URL.
        dim: Dimensions of its vectors, which are the student's too.

    Raises:
        RecipeError: If there are no such layers, exits or dimensions.
        ModelError: If the width of the teacher's family or pooling cannot be cut.
    """
    require_dims(student.dims, dim)
    body = getattr(teacher[0], "auto_model", None) if teacher is not None else None
    if body is None or student.init not in ("layers", "random"):
        return
    config = student_config(body.config, student)
    require_exits(student.exits, int(config.num_hidden_layers))
    if student.init == "layers" and config.hidden_size != body.config.hidden_size:
        layout_of(teacher)


def require_exits(exits: Sequence[int], layers: int) -> None:
    """Raise :class:`RecipeError` unless all exits lie before the last of a student's layers."""
    require(not exits or max(exits) < layers, "student.exits", list(exits), f"fewer than the student's {layers} layers")


def require_dims(dims: Sequence[int], dim: int) -> None:
    """Raise :class:`RecipeError` unless all dims are fewer than a student's dimensions."""
    require(not dims or max(dims) < dim, "student.dims", list(dims), f"fewer than the student's {dim} dimensions")


def cut_vocabulary(config: Any, size: int | None) -> None:
    """Make the table of a config as small as pruning will; ``None`` leaves it."""
    if size is not None and size < config.vocab_size:
        config.vocab_size = size
        if config.pad_token_id is not None:  # pruning gives it a new number within the smaller table
            config.pad_token_id = min(int(config.pad_token_id), size - 1)


def kept_config(config: Any, layers: Sequence[int]) -> Any:
    """A copy of a transformer config with only the given layers; every per-layer list is cut with them.

    Raises:
        RecipeError: If a layer does not exist.
    """
    total = int(config.num_hidden_layers)
    if not layers or max(layers) >= total or min(layers) < 0:
        raise RecipeError(f"student.layers: got {list(layers)}, the teacher has layers 0 to {total - 1}")
    result = copy.deepcopy(config)
    result.num_hidden_layers = len(layers)
    for key, value in config.to_dict().items():
        if isinstance(value, (list, tuple)) and len(value) == total and key not in {"architectures"}:
            setattr(result, key, [value[i] for i in layers])
    return result


def legal_width(hidden_size: int, width: float, unit: int = _UNIT) -> int:
    """``width x hidden_size`` rounded to a multiple of ``unit``, at least one; ``hidden_size`` itself at width 1."""
    if width == 1:
        return hidden_size
    return min(hidden_size, max(unit, round(width * hidden_size / unit) * unit))


def random_config(config: Any, student: StudentConfig) -> Any:
    """The teacher's config at the number of layers, heads and the width of a ``random`` student.

    The types of the layers are the teacher's from the first on, and the last one has the type of its last: in Gemma,
    five sliding layers and a full one. Where the size of a head is a key of its own (Gemma, Qwen), heads x size
    scales with the width; elsewhere the hidden size becomes a multiple of the heads. Either way the size of a head is
    even, as rotary embedding needs. Grouped keys keep their number as far as it divides the heads.
    """
    total = int(config.num_hidden_layers)
    layers = student.num_layers or total
    result = kept_config(config, [*(i % total for i in range(layers - 1)), total - 1])
    heads = student.num_heads or int(config.num_attention_heads)
    before = int(config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None)
    result.num_attention_heads = heads
    if head_dim:
        result.hidden_size = legal_width(int(config.hidden_size), student.width)
        result.head_dim = max(2, 2 * round(before * int(head_dim) * student.width / heads / 2))
    elif student.width < 1 or heads != before:
        unit = 2 * heads
        result.hidden_size = max(unit, round(student.width * int(config.hidden_size) / unit) * unit)
    result.intermediate_size = legal_width(int(config.intermediate_size), student.width)
    groups = int(getattr(config, "num_key_value_heads", None) or before)
    if hasattr(config, "num_key_value_heads"):
        result.num_key_value_heads = heads if groups == before else math.gcd(heads, groups)
    if getattr(config, "query_pre_attn_scalar", None) == head_dim and head_dim:
        result.query_pre_attn_scalar = result.head_dim  # Gemma divides attention scores by its root
    return result
