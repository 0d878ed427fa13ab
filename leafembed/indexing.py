"""What ``leaf overlap`` does: may an index that one model built be searched with another's queries?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leafembed.errors import DataError, ModelError
from leafembed.judge.floors import BagOfWords
from leafembed.judge.overlap import index_overlap
from leafembed.opening import locate, open_model
from leafembed.types import Encoder, FloatArray

__all__ = ["compare_index"]


def compare_index(
    teacher: str,
    student: str,
    documents: Sequence[str],
    queries: Sequence[str],
    *,
    k: int = 10,
    prompts: tuple[str | None, str | None] = (None, None),
    cache_dir: Path,
    allow_failed: bool = False,
) -> dict[str, Any]:
    """Return the agreement of two models on texts of the user's own; see :func:`leafembed.judge.overlap.index_overlap`.

    Args:
        teacher: Model whose vectors the index holds, named as ``opening.py`` lists.
        student: Model that is to encode the queries.
        documents: At least one.
        queries: At least one.
        k: Results of a query to compare.
        prompts: Of documents and of queries; ``None``: ``document`` and ``query`` where a model has them.
        cache_dir: Where vectors are kept.
        allow_failed: Open a bundle that the gate refused.

    Raises:
        DataError: If there is no document or query.
        ModelError: If a model has no such prompt, no vectors of its own, or the dimensions differ.
    """
    if not documents or not queries:
        raise DataError(f"got {len(documents)} documents and {len(queries)} queries, expected at least one of each")
    index, other = (_opened(spec, cache_dir, allow_failed) for spec in (teacher, student))
    vectors = _encode(index, documents, prompts[0], "document")
    asked = [_encode(model, queries, prompts[1], "query") for model in (index, other)]
    try:
        return index_overlap(vectors, asked[0], asked[1], k=k)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _opened(spec: str, cache_dir: Path, allow_failed: bool) -> Encoder:
    encoder = open_model(
        locate(spec, allow_failed=allow_failed), cache_dir=cache_dir, allow_failed=allow_failed
    ).encoder
    if isinstance(encoder, BagOfWords):
        raise ModelError(f"{spec}: got a bag of words, expected a model with vectors of its own")
    return encoder


def _encode(model: Encoder, texts: Sequence[str], given: str | None, usual: str) -> FloatArray:
    prompts = model.ref.prompts
    if given is not None and given not in prompts and prompts:
        raise ModelError(f"{model.ref.name}: got the prompt {given!r}, expected one of {', '.join(prompts)}")
    name = given if given in prompts else usual if given is None and usual in prompts else None
    return model.encode(texts, prompt_name=name)
