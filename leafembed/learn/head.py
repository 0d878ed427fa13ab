"""Fits a student's Dense to the teacher's vectors before training: the one part of a start that has a closed form.

Layers kept from a teacher hand its head something that it has not seen, and their vectors come out unrelated to the
teacher's: mean cosine 0.03 for six layers of EmbeddingGemma, 0.70 on held-out texts after the fit. Training then has no
rotation to undo before it can learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.learn.models import has_bf16
from leafembed.progress import progress
from leafembed.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["FIT_CHARACTERS", "FIT_TEXTS", "fit_head", "is_linear", "least_squares", "pooled_vectors"]

FIT_TEXTS = 8_000
"""Most texts that a kept head is fitted on; with 4,000 the cosine above was 0.68, with 2,000 0.62."""

FIT_CHARACTERS = 800_000
"""Most characters of them together: long texts cost minutes, and say no more about the matrix than short ones."""

_AT_ONCE = 256


def fit_head(student: SentenceTransformer, texts: Sequence[str], vectors: FloatArray) -> tuple[float, float] | None:
    """Give the student's Dense the matrix that maps its pooled vectors best to ``vectors``, if that is a gain.

    Fitted on nine tenths of the texts; the matrix is kept if the mean cosine on the last tenth is higher than before.
    Only a single Dense without activation can be fitted so, followed by nothing but normalisation. Its bias becomes 0.

    Args:
        student: Changed in place.
        texts: As the student reads them, prompts included; of these the first :data:`FIT_TEXTS` are used, fewer if
            they have more than :data:`FIT_CHARACTERS`.
        vectors: The teacher's vectors of them, ``(n_texts, dim)``, unit length.

    Returns:
        Mean cosine to the teacher on the last tenth before and after, -1 to 1; ``None`` where nothing can be fitted.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize

    lengths = np.cumsum([len(text) for text in texts[:FIT_TEXTS]])
    used = int(np.searchsorted(lengths, FIT_CHARACTERS, side="right"))
    texts, vectors = list(texts[:used]), vectors[:used]
    modules = [module for module in student if not isinstance(module, Normalize)]
    head, first = modules[-1], len(texts) * 9 // 10
    if not isinstance(head, Dense) or isinstance(modules[-2], Dense) or not is_linear(head) or not first:
        return None
    pooled = SentenceTransformer(modules=modules[:-1], device="cpu").eval()
    inputs = pooled_vectors(pooled, texts)
    matrix = least_squares(np.asarray(inputs[:first], dtype=np.float64), vectors[:first])
    bias = 0.0 if head.linear.bias is None else head.linear.bias.detach().numpy()
    outputs = (inputs[first:] @ head.linear.weight.detach().numpy().T + bias, inputs[first:] @ matrix)
    before, after = (_mean_cosine(output, vectors[first:]) for output in outputs)
    if after > before:
        head.linear.weight.data = torch.from_numpy(matrix.T.astype(np.float32)).contiguous()
        if head.linear.bias is not None:
            head.linear.bias.data.zero_()
    return before, max(before, after)


def pooled_vectors(model: SentenceTransformer, texts: Sequence[str]) -> FloatArray:
    """Return what a head is fitted on, ``(n_texts, hidden)``, with a bar: thousands of long texts take minutes.

    Computed under bf16 autocast where the CPU multiplies it natively, as the teacher's own pass is.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    found: list[Any] = [None] * len(texts)
    fast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16("auto", "cpu"))
    with progress("fitting the head", len(texts), "texts") as advance, fast:
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            chunk = [texts[place] for place in places]
            vectors = model.encode(chunk, batch_size=32, show_progress_bar=False, convert_to_numpy=True)
            for place, vector in zip(places, vectors, strict=True):
                found[place] = vector
            advance(len(places))
    return np.stack(found).astype(np.float32)


def _mean_cosine(outputs: Any, vectors: FloatArray) -> float:
    norms = np.maximum(np.linalg.norm(outputs, axis=1), 1e-12)
    return float(np.mean(np.sum(outputs * vectors, axis=1) / norms))


def is_linear(*modules: Any) -> bool:
    """Whether Dense modules apply nothing but their matrix and bias."""
    import torch

    return all(isinstance(m.activation_function, torch.nn.Identity) and not m.use_residual for m in modules)


def least_squares(inputs: Any, targets: FloatArray) -> Any:
    """Matrix M that minimises ``|inputs M - targets|²``, with a little ridge so that few texts do not overfit."""
    gram = inputs.T @ inputs
    ridge = 1e-3 * np.trace(gram) / len(gram) + 1e-12
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), inputs.T @ targets.astype(np.float64))
