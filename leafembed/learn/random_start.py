"""A student of the teacher's architecture without any of its weights: how the first attempt started, and why it failed.

It is here to be compared with (``docs/method.md``), and for long runs. Its tokenizer is the teacher's, so that every
token row starts as noise and learns only where the corpus holds its token.
"""

from __future__ import annotations

from typing import Any

from leafembed.learn.shapes import random_config
from leafembed.progress import say
from leafembed.recipe_learn import StudentConfig

__all__ = ["random_transformer"]


def random_transformer(teacher: Any, config: StudentConfig) -> Any:
    """A transformer of the teacher's class in the shape that the recipe asks for, drawn from torch's generator.

    Args:
        teacher: The teacher's transformer.
        config: The recipe's ``[student]``.
    """
    shape = random_config(teacher.config, config)
    shape._attn_implementation = teacher.config._attn_implementation
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    say(
        f"random student: {shape.num_hidden_layers} layers, hidden size {shape.hidden_size} "
        f"(teacher {teacher.config.hidden_size}), {shape.num_attention_heads} heads of {head_dim}, "
        f"intermediate size {shape.intermediate_size}"
    )
    return type(teacher)(shape).eval()
