"""What a student reads instead of its teacher's prompts.

A teacher's prompt is 8 to 10 tokens before every text. A student may learn the prompted vector from the bare text; from
the text after the same prompt; or from the text after a single token that stands for the prompt, one of those that its
tokenizer reserves and no text holds. It then serves several roles and pays a token at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leafembed.errors import ModelError, RecipeError
from leafembed.recipe_learn import StudentConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["RESERVED", "begin_role_tokens", "reserved_tokens", "student_prompts"]

RESERVED = re.compile(r"(?i)(unused|reserved).*\d")
"""Names of tokens that a tokenizer keeps free."""


def student_prompts(
    config: StudentConfig, teacher: Mapping[str, str], *, bare: str | None = None, reserved: list[str] | None = None
) -> dict[str, str]:
    """What the student puts before a text, by the names of the teacher's prompts.

    Args:
        config: The recipe's ``[student]``.
        teacher: The teacher's prompts by name.
        bare: Name of the prompt whose texts the student reads bare; ``None``: those without a prompt.
        reserved: Tokens that may stand for a prompt, in the order of use; needed for ``prompts = "tokens"``.

    Raises:
        RecipeError: If there are fewer reserved tokens than different prompts.
    """
    if config.prompts == "teacher":
        return dict(teacher)
    if config.prompts == "none":
        return dict.fromkeys(teacher, "")
    plain = teacher.get(bare or "", "")
    different = [text for text in dict.fromkeys(teacher.values()) if text != plain]
    free = reserved or []
    if len(free) < len(different):
        raise RecipeError(
            f"student.prompts = 'tokens': got a tokenizer with {len(free)} reserved tokens, expected one for each of "
            f"{len(different)} prompts; set it to 'none' or 'teacher'"
        )
    stands_for = dict(zip(different, free, strict=False)) | {plain: ""}
    return {name: stands_for[text] for name, text in teacher.items()}


def reserved_tokens(tokenizer: Any) -> list[str]:
    """Names of the tokens that a transformers tokenizer reserves and splits off whole, lowest id first."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    return [str(token.content) for _, token in added if RESERVED.search(str(token.content))]


def begin_role_tokens(student: SentenceTransformer, teacher: Mapping[str, str]) -> None:
    """Give each token that stands for a prompt the mean of the prompt's own rows of the table to start from.

    Raises:
        ModelError: If the student's tokenizer cuts such a token into pieces.
    """
    import torch

    tokenizer = student.tokenizer
    weight = student[0].auto_model.get_input_embeddings().weight
    for name, token in student.prompts.items():
        prompt = teacher.get(name, "")
        if not token or token == prompt:
            continue
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ModelError(f"got {len(ids)} tokens for {token!r}, expected one that stands for the prompt {name!r}")
        rows = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            weight[ids[0]] = weight[rows].mean(0)
