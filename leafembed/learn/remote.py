"""A teacher behind a URL whose ``/embeddings`` answers as OpenAI's does: a hosted model, or a server of one's own.

Only vectors come from there: no weights, tokenizer or prompts. So prompts are put before the text here, and what a
server cuts off is not seen. A server has no files to hash either: it is known by its URL, the name of its model and
what it makes of three fixed texts.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import numpy as np

from leafembed.errors import CacheError, ModelError, RecipeError
from leafembed.learn.endpoint import PATIENCE, Patience, Server, place_of
from leafembed.progress import say
from leafembed.recipe_learn import TeacherConfig
from leafembed.stages import fingerprint
from leafembed.types import FloatArray, ModelRef, check_vectors

__all__ = ["IN_FLIGHT", "PROBES", "REQUEST_TEXTS", "SAME_COSINE", "RemoteEncoder", "connect"]

REQUEST_TEXTS = 32
"""Texts in one request; some servers refuse more."""

IN_FLIGHT = 4
"""Requests that wait for their answer at the same time."""

PROBES = ("The quick brown fox jumps over the lazy dog.", "Wie spät ist es in Tokio?", "def add(a, b): return a + b")
"""Texts whose vectors tell one model from another."""

SAME_COSINE = 0.999
"""Least cosine between two vectors of a probe that counts as the same model: servers round differently from one batch
to the next, and vectors this near may lie in one store."""


class RemoteEncoder:
    """A model at a URL.

    Args:
        server: Where it is.
        ref: What it is, as far as one can tell from outside; its prompts are put before the texts here.
    """

    def __init__(self, server: Server, ref: ModelRef) -> None:
        self.server = server
        self.ref = ref

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length, in the order of the texts."""
        result = np.empty((len(texts), self.ref.dim), dtype=np.float32)
        for index, vectors in self.batches(texts, prompt_name=prompt_name):
            result[index] = vectors
        return check_vectors(result, n=len(texts), what=f"vectors of {self.ref.name}")

    def batches(
        self, texts: Sequence[str], *, prompt_name: str | None = None
    ) -> Iterator[tuple[list[int], FloatArray]]:
        """Yield (indices into ``texts``, their vectors) in the order of the texts, a few requests ahead."""
        prompt = self.ref.prompts.get(prompt_name or "", "")
        waiting: deque[tuple[list[int], Future[FloatArray]]] = deque()
        stopped = Event()
        with self.server.client() as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                for start in range(0, len(texts), REQUEST_TEXTS):
                    if len(waiting) == IN_FLIGHT:
                        yield self._answer(*waiting.popleft())
                    index = list(range(start, min(start + REQUEST_TEXTS, len(texts))))
                    request = [prompt + texts[i] for i in index]
                    waiting.append((index, pool.submit(self.server.ask, client, request, stopped)))
                while waiting:
                    yield self._answer(*waiting.popleft())
            finally:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)  # leaving the pool waits for those under way

    def _answer(self, index: list[int], future: Future[FloatArray]) -> tuple[list[int], FloatArray]:
        vectors = future.result()
        if vectors.shape[1] != self.ref.dim:
            raise ModelError(
                f"{self.server.url}: got vectors of {vectors.shape[1]} values, expected {self.ref.dim} as at first; "
                "the server changed its model: run again"
            )
        return index, vectors


def connect(config: TeacherConfig, *, cache_dir: Path | None = None, patience: Patience = PATIENCE) -> RemoteEncoder:
    """Ask the server at ``config.model`` for the vectors of :data:`PROBES` and return its encoder.

    Args:
        config: The recipe's ``[teacher]``, with a URL.
        cache_dir: Where the first probe of each model is kept and found again; ``None``: it is not kept.
        patience: How long the server is waited for.

    Raises:
        RecipeError: If the key cannot be read.
        ModelError: If the server does not give vectors.
        CacheError: If a kept probe is damaged.
    """
    key = _read_key(config.api_key_file) if config.api_key_file else None
    url = config.model.rstrip("/")
    if key and url.startswith("http://") and not _is_loopback(urlsplit(url).hostname or ""):
        say(f"warning: the key in {config.api_key_file} goes to {url} unencrypted; use https")
    server = Server(place_of(url), config.served_model, key, patience)
    with server.client() as client:
        probe = server.ask(client, PROBES, Event())
    if cache_dir is not None:
        probe = _first_seen(probe, cache_dir / "probes", fingerprint(url, config.served_model))
    ref = ModelRef(
        name=config.name or config.served_model,
        dim=probe.shape[1],
        fingerprint=fingerprint(url, config.served_model, _rounded(probe)),
        licence=config.licence,
        max_seq_length=config.max_seq_length,
        prompts=dict(config.prompts),
    )
    return RemoteEncoder(server, ref)


def _first_seen(probe: FloatArray, folder: Path, server: str) -> FloatArray:
    """The probe that was kept when this model first answered; ``probe`` itself, kept now, if it did not before.

    Without this a server that rounds a little differently today would be another teacher, and all its vectors be asked
    for again.
    """
    for path in sorted(folder.glob(f"{server}-*.npy")):
        try:
            before: FloatArray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{path}: damaged probe of a server ({error}); delete it and run again") from error
        if before.shape == probe.shape and float(np.sum(before * probe, axis=1).min()) >= SAME_COSINE:
            return before
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{server}-{fingerprint(_rounded(probe))}.npy"
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        np.save(file, probe)
    partial.replace(path)
    return probe


def _rounded(probe: FloatArray) -> list[list[float]]:
    """Values to three digits; adding 0 makes -0 the same as 0."""
    values: list[list[float]] = (probe.astype(np.float64).round(3) + 0.0).tolist()
    return values


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"api_key_file: got {path}, which cannot be read ({type(error).__name__}); expected a file that holds the "
            "key and nothing else"
        ) from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RecipeError(f"api_key_file: got {path}, expected a file that holds the key and nothing else")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
