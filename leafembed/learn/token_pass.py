"""The teacher pass that keeps every token: fills a :class:`TokenStore`, and the teacher's own store on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import NonFiniteError, RecipeError
from leafembed.learn.shards import KEY
from leafembed.learn.teacher import CachedTeacher, TorchEncoder, by_prompt
from leafembed.learn.token_store import TokenStore
from leafembed.learn.tokens import TokenHead, token_ends
from leafembed.progress import progress
from leafembed.types import FloatArray, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Forward", "embed_tokens", "in_torch"]

_Part = tuple[int, FloatArray, "NDArray[np.float16]", "NDArray[np.int64]"]
"""Place of a text, its own vector, its tokens' vectors and their ends."""

Forward = Callable[[Mapping[str, Any]], tuple[FloatArray, FloatArray]]
"""From what a tokenizer gave to vectors of texts ``(B, dim)`` and of their tokens ``(B, tokens, dim)``."""

_CHUNK_ROWS = 32_768  # texts in memory at once; within a chunk they are sorted by length
_SHARD_TOKENS = 131_072  # a shard holds no more, but for its last batch: 200 MB of 768 dimensions


def embed_tokens(
    teacher: CachedTeacher, folder: Path, *parts: Sequence[Row], forward: Forward | None = None
) -> tuple[TokenStore, NDArray[np.int64]]:
    """Compute the token vectors that are not stored yet, with progress; the texts' own vectors are stored with them.

    Args:
        teacher: In torch; its ``targets`` get the vectors of the texts.
        folder: Of the store.
        parts: Training rows, validation rows. A row that learns the vector of another text has no tokens of its own.
        forward: What computes a batch in another engine; ``None``: the teacher itself, in torch.

    Returns:
        The store, and the place of each row in it ``(n_rows,)``; -1 for a row without tokens.

    Raises:
        RecipeError: If the teacher's vector is no mean over all its tokens, or it is at a URL.
        NonFiniteError: If a vector is not finite; names its text.
    """
    torch = teacher.torch
    if torch is None:
        raise RecipeError("train.token_distillation: got a teacher at a URL, expected its weights; set it to 0")
    store, compute = TokenStore(folder, teacher.ref.dim), forward or in_torch(torch)
    starts = np.cumsum([0, *map(len, parts)])
    keys, own = np.empty(starts[-1], dtype=KEY), np.empty(starts[-1], dtype=bool)
    for start, rows in zip(starts.tolist(), parts, strict=False):
        for i, row in enumerate(rows, start):
            keys[i], own[i] = teacher.key(row), row.target is None
    needed = np.flatnonzero(own)
    needed = np.sort(needed[np.unique(keys[needed], return_index=True)[1]])
    todo = needed[store.find(keys[needed].tolist()) < 0]
    if len(todo):
        with progress("token vectors of the teacher", len(needed), "texts", done=len(needed) - len(todo)) as advance:
            for chunk in np.split(todo, range(_CHUNK_ROWS, len(todo), _CHUNK_ROWS)):
                for name, group in by_prompt(parts, chunk).items():
                    names = [teacher.key(row) for row in group]
                    _keep(teacher, store, names, _batches(torch, compute, [row.text for row in group], name), advance)
    return store, np.where(own, store.find(keys.tolist()), -1)


def _keep(
    teacher: CachedTeacher, store: TokenStore, keys: list[bytes], batches: Iterator[list[_Part]], advance: Any
) -> None:
    """Store what the batches give, a shard at a time."""
    done: list[_Part] = []

    def write() -> None:
        chosen, vectors = [keys[place] for place, *_ in done], teacher.targets.store
        missing = np.flatnonzero(vectors.find(chosen) < 0).tolist()
        if missing:
            vectors.append([chosen[i] for i in missing], np.stack([done[i][1] for i in missing]))
        store.append(chosen, [part[2] for part in done], [part[3] for part in done])
        done.clear()

    for batch in batches:
        done += batch
        advance(len(batch))
        if len(done) >= teacher.shard_rows or sum(len(part[3]) for part in done) >= _SHARD_TOKENS:
            write()
    if done:
        write()


def _batches(
    encoder: TorchEncoder, forward: Forward, texts: Sequence[str], prompt_name: str | None
) -> Iterator[list[_Part]]:
    """Yield batches of texts with their vectors, longest texts first."""
    prompt = encoder.ref.prompts.get(prompt_name or "", "")
    for index in encoder.planned(texts, prompt):
        given = [prompt + texts[i] for i in index]
        features = encoder.model.preprocess(given)
        ends = token_ends(encoder.model, features["input_ids"], given, [len(prompt)] * len(given))
        vectors, tokens = forward(features)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        yield [
            (i, vectors[at], _halved(tokens[at, ends[at] > 0], texts[i]), ends[at, ends[at] > 0])
            for at, i in enumerate(index)
        ]


def _halved(tokens_TD: FloatArray, text: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # what overflows is refused below
        values = tokens_TD.astype(np.float16)
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"token vectors of {text[:60]!r}: got NaN, infinity or a magnitude above 65,504, expected finite ones"
        )
    return values


def in_torch(encoder: TorchEncoder) -> Forward:
    """The teacher itself as what computes a batch, within its :meth:`~leafembed.learn.teacher.TorchEncoder.planned`.

    Raises:
        RecipeError: If its vector is no mean over all its tokens.
    """
    model, head = encoder.model, TokenHead(encoder.model)

    def forward(features: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
        inputs = {name: value.to(model.device) for name, value in features.items() if hasattr(value, "to")}
        output = model(inputs)
        tokens = head(output["token_embeddings"])
        return output["sentence_embedding"].float().cpu().numpy(), tokens.float().cpu().numpy()

    return forward
