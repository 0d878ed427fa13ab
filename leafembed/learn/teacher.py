"""Runs a sentence-transformers model as an :class:`~leafembed.types.Encoder`, and keeps what a teacher computed.

The teacher is asked for each (text, prompt) once in the life of its cache: for training targets and for its own
evaluation alike. Batches are sorted by length and bounded by padded tokens, longest first, so that memory peaks at
once and the time left is never underestimated.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leafembed.learn.cache import VectorStore
from leafembed.learn.cached import CachedEncoder
from leafembed.learn.models import (
    describe,
    fingerprint_folder,
    has_bf16,
    load_sentence_transformer,
    pick_device,
    resolve,
)
from leafembed.learn.remote import RemoteEncoder, connect
from leafembed.learn.shards import KEY, padded
from leafembed.progress import progress
from leafembed.recipe import is_url
from leafembed.recipe_learn import TeacherConfig
from leafembed.types import FloatArray, ModelRef, Row, check_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

__all__ = ["Arithmetic", "CachedTeacher", "TorchEncoder", "by_prompt", "load_teacher"]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How models run in torch in one recipe: teacher and student alike, so that both are judged alike.

    Attributes:
        device: ``cuda`` or ``cpu``.
        precision: As :class:`TorchEncoder` takes it.
        batch_tokens: Padded tokens in one forward pass.
    """

    device: str
    precision: Literal["bf16", "fp32"]
    batch_tokens: int


_CHUNK_ROWS = 131_072  # texts in memory at once; within a chunk they are sorted by length


class TorchEncoder:
    """A sentence-transformers model in torch.

    Args:
        model: The model; it is moved nowhere and not changed.
        ref: What it is.
        precision: ``bf16`` runs the matrix products in bf16 under autocast; norms and pooling stay in fp32.
        batch_tokens: Padded tokens in one forward pass.
    """

    def __init__(
        self, model: SentenceTransformer, ref: ModelRef, *, precision: Literal["bf16", "fp32"], batch_tokens: int = 2048
    ) -> None:
        self.model = model
        self.ref = ref
        self.precision = precision
        self.batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length, in the order of the texts."""
        result = np.empty((len(texts), self.ref.dim), dtype=np.float32)
        for index, vectors in self.batches(texts, prompt_name=prompt_name):
            result[index] = vectors
        return check_vectors(result, n=len(texts), what=f"vectors of {self.ref.name}")

    def encode_together(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return what :meth:`encode` does, from one forward pass over all texts, however many tokens that takes."""
        unbounded = copy.copy(self)
        unbounded.batch_tokens = sys.maxsize
        return unbounded.encode(texts, prompt_name=prompt_name)

    def batches(
        self, texts: Sequence[str], *, prompt_name: str | None = None
    ) -> Iterator[tuple[list[int], FloatArray]]:
        """Yield (indices into ``texts``, their vectors), longest texts first."""
        prompt = self.ref.prompts.get(prompt_name or "", "")
        for index in self.planned(texts, prompt):
            yield index, self._forward([texts[i] for i in index], prompt)

    def planned(self, texts: Sequence[str], prompt: str) -> Iterator[list[int]]:
        """Yield the indices of one batch after the other, longest texts first; until the next, the model is set up."""
        import torch

        from leafembed.learn.fused import COMPILE_FROM, fused

        device = self.model.device.type
        autocast = torch.autocast(device, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()
        lengths = self._token_counts(texts, prompt)
        # In bf16 fused layers are as near to fp32 as stock ones: mean cosine 0.99996 and 0.99997 for EmbeddingGemma on
        # 96 sentences. fp32 itself stays as it is, since it is what all else is compared with.
        much = self.precision == "bf16" and int(lengths.sum()) >= COMPILE_FROM
        mode: Literal["auto", "off"] = "auto" if much else "off"
        with torch.inference_mode(), autocast, fused(self.model, mode, tokens=int(lengths.sum())):
            yield from self._plan(lengths)

    def _forward(self, texts: list[str], prompt: str) -> FloatArray:
        vectors: Any = self.model.encode(
            texts,
            prompt=prompt,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=False,
        )
        array: FloatArray = vectors.float().cpu().numpy()
        empty = ~array.any(axis=1)
        if empty.any() and hasattr(self.model[0], "embedding"):  # of a table: a text without any token
            array[empty] = self.model[0].embedding.weight[0].detach().cpu().numpy()  # as `ship/encoder.py` reads it
        # Normalised here: under autocast a model's own Normalize is only as exact as bf16.
        norms = np.linalg.norm(array, axis=1, keepdims=True)
        unit: FloatArray = array / np.maximum(norms, np.float32(1e-12))
        return unit

    def _plan(self, lengths: NDArray[np.int64]) -> Iterator[list[int]]:
        batch: list[int] = []
        width = 1
        for i in np.argsort(-lengths, kind="stable").tolist():
            if batch and (len(batch) + 1) * width > self.batch_tokens:
                yield batch
                batch = []
            if not batch:
                width = max(1, int(lengths[i]))
            batch.append(i)
        if batch:
            yield batch

    def _token_counts(self, texts: Sequence[str], prompt: str) -> Any:
        tokenizer = getattr(self.model, "tokenizer", None)
        limit = self.ref.max_seq_length or 1 << 20
        if tokenizer is None:
            return np.array([len(text) for text in texts])
        fast = getattr(tokenizer, "_tokenizer", tokenizer)
        fast.no_padding()  # left on by the model's own last call, it would make all texts of a chunk equally long
        counts: list[int] = []
        for start in range(0, len(texts), 4096):
            part = [prompt + text for text in texts[start : start + 4096]]
            encoded = fast.encode_batch_fast(part)
            counts += [min(limit, len(item)) for item in encoded]
        return np.array(counts)


class CachedTeacher(CachedEncoder):
    """A teacher that computes no vector twice, and what its students need of it.

    Args:
        encoder: The teacher itself.
        store: Where its vectors are kept.
        arithmetic: How its students run, and it too where it runs in torch.
        shard_rows: Vectors in one shard of the store.

    Attributes:
        targets: What computes the vectors that rows learn: the teacher itself, unless another engine took its place.
        copies: Whether that engine's store takes over what the teacher itself computed before.
    """

    def __init__(
        self, encoder: TorchEncoder | RemoteEncoder, store: VectorStore, *, arithmetic: Arithmetic, shard_rows: int
    ) -> None:
        super().__init__(encoder, store, shard_rows=shard_rows)
        self.encoder = encoder
        self.arithmetic = arithmetic
        self.targets: CachedEncoder = self
        self.copies = False

    @property
    def torch(self) -> TorchEncoder | None:
        """The teacher's weights; ``None``: it is at a URL, and there are only its vectors."""
        return self.encoder if isinstance(self.encoder, TorchEncoder) else None

    def embed_rows(self, *parts: Sequence[Row]) -> NDArray[np.int64]:
        """Compute what the rows need and is not stored yet, with progress; return positions ``(n_rows,)``.

        The position of a row is that of the vector it learns, in the store of ``targets``: its target's, and then it
        needs none of its own. Texts pass through memory in chunks, sorted by length within. Interrupted, it repeats at
        most the shard it was working on. With ``copies``, what the teacher itself computed before is taken over.

        Args:
            parts: Training rows, validation rows; targets count within each, positions run over all.
        """
        starts = np.cumsum([0, *map(len, parts)])
        keys = np.empty(starts[-1], dtype=KEY)
        learned = np.arange(starts[-1])
        for start, rows in zip(starts.tolist(), parts, strict=False):
            for i, row in enumerate(rows, start):
                keys[i] = self.key(row)
                learned[i] = i if row.target is None else start + row.target
        needed = np.unique(learned)
        needed = needed[np.unique(keys[needed], return_index=True)[1]]
        store = self.targets.store
        if self.copies:
            self._copy(keys[needed[store.find(keys[needed]) < 0]])
        todo = np.sort(needed[store.find(keys[needed]) < 0])
        if len(todo):
            with progress("teacher vectors", len(needed), "texts", done=len(needed) - len(todo)) as advance:
                for chunk in np.split(todo, range(_CHUNK_ROWS, len(todo), _CHUNK_ROWS)):
                    for name, rows in by_prompt(parts, chunk).items():
                        self.targets.compute([row.text for row in rows], [*map(self.key, rows)], name, advance)
        return store.positions(keys[learned])

    def _copy(self, keys: NDArray[np.bytes_]) -> None:
        """Give the store of ``targets`` what of these is in this one."""
        places = self.store.find(keys)
        for start in range(0, len(keys), self.shard_rows):
            there = places[start : start + self.shard_rows] >= 0
            if there.any():
                chosen = [padded(key) for key in keys[start : start + self.shard_rows][there].tolist()]
                found = self.store.take(places[start : start + self.shard_rows][there])
                self.targets.store.append(chosen, found)

    def key(self, row: Row) -> bytes:
        """Where the store finds the vector of a row's own text."""
        return VectorStore.key(row.text, self.ref.prompts.get(row.prompt_name or "", ""))


def by_prompt(parts: Sequence[Sequence[Row]], numbers: NDArray[np.int64]) -> dict[str | None, list[Row]]:
    """Rows of the given numbers, which run over all parts, by the prompt that they are embedded with."""
    starts = np.cumsum([0, *map(len, parts)])
    which = np.searchsorted(starts, numbers, side="right") - 1
    groups: dict[str | None, list[Row]] = {}
    for part, i in zip(which.tolist(), (numbers - starts[which]).tolist(), strict=True):
        row = parts[part][i]
        groups.setdefault(row.prompt_name, []).append(row)
    return groups


def load_teacher(config: TeacherConfig, cache_dir: Path) -> tuple[CachedTeacher, Path | None]:
    """Load the recipe's teacher, or reach its server, behind its cache; also return its folder, if it has one.

    Raises:
        ModelError: If it cannot be found or loaded, or its server gives no vectors.
        CacheError: If its cache is damaged.
    """
    device = pick_device()
    precision: Literal["bf16", "fp32"] = "bf16" if has_bf16(config.precision, device) else "fp32"
    arithmetic = Arithmetic(device, precision, config.batch_tokens)
    encoder: TorchEncoder | RemoteEncoder
    if is_url(config.model):
        folder = None
        encoder = connect(config, cache_dir=cache_dir)
        name = f"{encoder.ref.fingerprint}-served"
    else:
        folder = resolve(config.model, config.revision)
        encoder = _in_torch(config, folder, arithmetic)
        name = f"{fingerprint_folder(folder)}-{precision}-{encoder.ref.max_seq_length or 'unlimited'}"
    store = VectorStore(cache_dir / "vectors" / name, encoder.ref.dim)
    return CachedTeacher(encoder, store, arithmetic=arithmetic, shard_rows=config.shard_rows), folder


def _in_torch(config: TeacherConfig, folder: Path, arithmetic: Arithmetic) -> TorchEncoder:
    model = load_sentence_transformer(folder, device=arithmetic.device)
    if config.max_seq_length is not None:
        model.max_seq_length = config.max_seq_length
    ref = describe(
        model, folder, name=config.name or _display_name(config.model), licence=config.licence, revision=config.revision
    )
    return TorchEncoder(model, ref, precision=arithmetic.precision, batch_tokens=arithmetic.batch_tokens)


def _display_name(model: str) -> str:
    return model if model.count("/") == 1 and not model.startswith((".", "~", "/")) else Path(model).name
