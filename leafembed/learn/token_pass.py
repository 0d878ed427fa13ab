"""The teacher pass that keeps every token: fills a :class:`TokenStore`, and the teacher's own store on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import RecipeError
from leafembed.learn.teacher import CachedTeacher, TorchEncoder
from leafembed.learn.token_store import TokenStore
from leafembed.learn.tokens import TokenHead, token_ends
from leafembed.progress import progress
from leafembed.types import FloatArray, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Forward", "embed_tokens"]

_Part = tuple[int, FloatArray, FloatArray, "NDArray[np.int64]"]
"""Place of a text, its own vector, its tokens' vectors and their ends."""

Forward = Callable[[Mapping[str, Any]], tuple[FloatArray, FloatArray]]
"""From what a tokenizer gave to vectors of texts ``(B, dim)`` and of their tokens ``(B, tokens, dim)``."""

_CHUNK_SHARDS = 64
"""Shards that are sorted by length together."""


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
        RecipeError: If the teacher's vector is no mean over tokens, or it is at a URL.
    """
    torch = teacher.torch
    if torch is None:
        raise RecipeError("train.token_distillation: got a teacher at a URL, expected its weights; set it to 0")
    store, compute = TokenStore(folder, teacher.ref.dim), forward or _in_torch(torch)
    rows = [row for part in parts for row in part]
    keys = [teacher.key(row) for row in rows]
    own = np.array([row.target is None for row in rows], dtype=bool)
    new = {keys[i]: i for i in np.flatnonzero(own & (store.find(keys) < 0)).tolist()}
    total = len({key for key, wanted in zip(keys, own.tolist(), strict=True) if wanted})
    groups: dict[str | None, list[int]] = {}
    for i in new.values():
        groups.setdefault(rows[i].prompt_name, []).append(i)
    if new:
        with progress("token vectors of the teacher", total, "texts", done=total - len(new)) as advance:
            for name, places in groups.items():
                size = _CHUNK_SHARDS * teacher.shard_rows
                for chunk in (places[at : at + size] for at in range(0, len(places), size)):
                    batches = _batches(torch, compute, [rows[i].text for i in chunk], name)
                    _keep(teacher, store, [keys[i] for i in chunk], batches, advance)
    return store, np.where(own, store.find(keys), -1)


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
        if len(done) >= teacher.shard_rows:
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
        ends = token_ends(encoder.model, features["input_ids"], given, [prompt] * len(given))
        vectors, tokens = forward(features)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
        text, place = np.nonzero(ends)
        cuts = np.searchsorted(text, np.arange(1, len(index)))
        found = np.split(tokens[text, place], cuts), np.split(ends[text, place], cuts)
        yield list(zip(index, vectors, *found, strict=True))


def _in_torch(encoder: TorchEncoder) -> Forward:
    model, head = encoder.model, TokenHead(encoder.model)

    def forward(features: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
        inputs = {name: value.to(model.device) for name, value in features.items() if hasattr(value, "to")}
        output = model(inputs)
        tokens = head(output["token_embeddings"])
        return output["sentence_embedding"].float().cpu().numpy(), tokens.float().cpu().numpy()

    return forward
