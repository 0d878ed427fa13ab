"""What no task looks at in an encoder: does a vector depend on the batch, and does it depend on the end of the text?

Scores cannot tell either. A model that reads padding as text scores well as long as each batch holds texts of one
length, and one that reads eight tokens scores well on texts that are not longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from leafembed.errors import DataError
from leafembed.evidence import Behaviour
from leafembed.types import Encoder, FloatArray, check_vectors

__all__ = ["TEXTS", "Batching", "observe"]

TEXTS = 32
"""Most texts of each of the two measurements."""


class Batching(Encoder, Protocol):
    """An encoder that can be told to compute texts side by side."""

    def encode_together(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return what ``encode`` does, from one forward pass over all texts, however many tokens that takes."""
        ...


def observe(encoder: Batching, teacher: Encoder, texts: Sequence[str], *, prompt_name: str | None = None) -> Behaviour:
    """Return how an encoder behaves on texts, and how its teacher reacts to their ends.

    Batches: texts of all lengths are encoded alone, each in one forward pass with the longest one, and all at once.
    Ends: the last third of a text is replaced by that of another; of a text longer than the models read, a part that
    surely fits is used (as many characters as the shorter of them reads tokens).

    Args:
        encoder: What to look at.
        teacher: What its reaction to the end of a text is held against.
        texts: Texts that neither was trained on in this run.
        prompt_name: Prompt that both read them with, where they have it.

    Raises:
        DataError: If there are fewer than two different texts, or no two with different ends.
        NonFiniteError: If a vector holds NaN or infinity.
    """
    ranked = sorted(dict.fromkeys(texts), key=len)
    if len(ranked) < 2:
        raise DataError(f"behaviour of {encoder.ref.name}: got {len(ranked)} different texts, expected at least 2")
    limits = [_characters(one, prompt_name) for one in (encoder, teacher)]
    whole, changed = _with_other_ends(ranked[-TEXTS:], min(limits))
    tails = [
        _distance(_encode(one, whole, prompt_name), _encode(one, changed, prompt_name)) for one in (encoder, teacher)
    ]
    chosen = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, TEXTS).astype(int))]
    return Behaviour(len(chosen), _batch_cosine(encoder, chosen, prompt_name), *tails)


def _batch_cosine(encoder: Batching, texts: Sequence[str], prompt_name: str | None) -> float:
    alone = np.concatenate([_encode(encoder, [text], prompt_name) for text in texts])
    together = _encode(encoder, texts, prompt_name)
    # Encoders sort by length, so that all at once pads little. Beside the longest, a short text is padded most, if both
    # are in one forward pass: by themselves encoders compute two texts apart that would fill it with padding.
    padded = np.stack([_pair(encoder, text, texts[-1], prompt_name)[0] for text in texts[:-1]])
    cosines = [np.sum(alone * together, axis=1), np.sum(alone[:-1] * padded, axis=1)]
    return float(np.concatenate(cosines).min())


def _with_other_ends(texts: Sequence[str], characters: int) -> tuple[list[str], list[str]]:
    """Texts, and the same texts each with the end of the next one."""
    whole = [text[:characters] for text in texts]
    heads, ends = zip(*((text[: len(text) * 2 // 3], text[len(text) * 2 // 3 :]) for text in whole), strict=True)
    changed = [head + other for head, other in zip(heads, [*ends[1:], ends[0]], strict=True)]
    pairs = [(text, other) for text, other in zip(whole, changed, strict=True) if text != other]
    if not pairs:
        raise DataError(f"ends of texts: all {len(texts)} end alike; expected different held-out texts")
    return [text for text, _ in pairs], [other for _, other in pairs]


def _distance(vectors: FloatArray, others: FloatArray) -> float:
    return max(0.0, float(np.mean(1 - np.sum(vectors * others, axis=1))))  # rounding must not make it less than none


def _characters(encoder: Encoder, prompt_name: str | None) -> int:
    """Characters of a text of which every one is surely read: hardly any token is shorter than one."""
    limit, prompt = encoder.ref.max_seq_length, encoder.ref.prompts.get(prompt_name or "", "")
    return 1 << 30 if limit is None else max(3, limit - len(prompt))


def _pair(encoder: Batching, text: str, other: str, prompt_name: str | None) -> FloatArray:
    vectors = encoder.encode_together([text, other], prompt_name=_known(encoder, prompt_name))
    return check_vectors(vectors, n=2, what=f"{encoder.ref.name} observed")


def _known(encoder: Encoder, prompt_name: str | None) -> str | None:
    return prompt_name if prompt_name in encoder.ref.prompts else None


def _encode(encoder: Encoder, texts: Sequence[str], prompt_name: str | None) -> FloatArray:
    vectors = encoder.encode(texts, prompt_name=_known(encoder, prompt_name))
    return check_vectors(vectors, n=len(texts), what=f"{encoder.ref.name} observed")
