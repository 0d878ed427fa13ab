"""What every embedding request goes through, whatever its family: limits, tokens, queue, vectors.

A long request is tokenised in a thread, slice by slice, so that the event loop answers others meanwhile and requests
take turns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from leafembed.errors import Error, first_line
from leafembed.serve.batching import BatchFailedError
from leafembed.serve.logs import SERVER_LOG
from leafembed.serve.memory import Tidier
from leafembed.serve.merged import Shared
from leafembed.serve.metrics import Metrics
from leafembed.serve.models import AGAIN_S, Loaded, Model, Models, Named
from leafembed.serve.prompts import choose_prompt
from leafembed.serve.refusals import Refusal
from leafembed.serve.settings import Settings
from leafembed.serve.specs import About
from leafembed.serve.tokens import about_tokens, in_slices, json_rows
from leafembed.ship.beginnings import slices
from leafembed.ship.texts import Ids
from leafembed.types import FloatArray

__all__ = ["Answer", "Asked", "Service"]

_log = logging.getLogger(SERVER_LOG)
_BUSY = "server busy, please try again.  maximum pending requests exceeded"  # Ollama's own words
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An embedding request, its shape checked.

    Attributes:
        name: What the model was called.
        texts: The texts.
        dim: Values of a vector; ``None``: as the model is served.
        prompt: Prompt by the bundle's own name.
        input_type: Role by a client's name.
        truncate: Whether a text that is too long is cut, and not refused.
        normalize: Whether a vector that is cut is scaled to unit length again.
        too_long: Message for a text that is too long.
    """

    name: str
    texts: Sequence[str]
    dim: int | None = None
    prompt: str | None = None
    input_type: str | None = None
    truncate: bool = True
    normalize: bool = True
    too_long: str = "the input length exceeds the context length"


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of it.

    Attributes:
        vectors: ``(n_texts, dim)`` float32.
        tokens: Tokens that were read.
        cut: Texts that were cut.
        load_s: Seconds of opening the model; 0 if it was open.
        tokenize_s: Seconds of tokenising.
        queue_s: Seconds until a batch took its first text.
        compute_s: Seconds from then to the last vector.
        total_s: Seconds of all.
    """

    vectors: FloatArray
    tokens: int
    cut: int
    load_s: float
    tokenize_s: float
    queue_s: float
    compute_s: float
    total_s: float


@dataclass(slots=True)
class Service:
    """Models, limits and counters of a server, and what is at work.

    Attributes:
        models: By name.
        settings: As the operator set them.
        metrics: Counters.
        draining: Whether the server is about to end.
        admitted: Tokens of requests at work; estimated by characters until they are counted.
        shared: Where the metrics of several processes meet; ``None``: this is the only one.
    """

    models: Models
    settings: Settings
    metrics: Metrics
    draining: bool = False
    admitted: int = 0
    shared: Shared | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "leaf-tokenizer"))
    _tidier: Tidier = field(default_factory=Tidier)

    def named(self, name: str) -> Named:
        """What a model's name stands for; see :meth:`leafembed.serve.models.Models.find`."""
        return self.models.find(name)

    async def opened(self, model: Model) -> tuple[Loaded, float]:
        """The opened bundle of a model, and the seconds that this call took to open it.

        Raises:
            Refusal: If it cannot be opened.
        """
        if model.loaded is not None:
            return model.loaded, 0.0
        try:
            loaded, fresh = await asyncio.get_running_loop().run_in_executor(None, model.load)
        except (Error, OSError) as error:
            _log.error("%s cannot be opened: %s", model.spec.name, first_line(error))
            raise Refusal("unavailable", "the model cannot be opened; the server's log says why",
                          retry_after=math.ceil(AGAIN_S)) from error  # fmt: skip
        return loaded, loaded.seconds if fresh else 0.0

    async def embed(self, asked: Asked) -> Answer:
        """Answer a request.

        Raises:
            Refusal: If it asks for what there is not, is over a limit, or the engine fails.
        """
        start = time.perf_counter()
        named = self.models.find(asked.name)
        model = named.model
        _chosen(named, asked, model.about)  # what it refuses opens no bundle
        self._check_size(model, asked.texts)
        reserved = self._admit(about_tokens(asked.texts, model.about.config.max_seq_length))
        try:
            _, load_s = await self.opened(model)
            loaded = model.take()
            try:
                prompt, dim = _chosen(named, asked, loaded.about)  # another bundle may lie there by now
                began, ids, tokens, cut = time.perf_counter(), list[Ids](), 0, 0
                async for more, was_cut in in_slices(loaded.encoder, asked.texts, prompt, self._in_turn):
                    ids, cut, tokens = ids + more, cut + sum(was_cut), tokens + sum(map(len, more))
                    reserved = self._admit(max(tokens, reserved), reserved)
                reserved = self._admit(tokens, reserved)
                if cut and not asked.truncate:
                    raise Refusal("invalid", asked.too_long, param="input")
                tokenize_s = time.perf_counter() - began
                vectors, queue_s = await self._vectors(loaded, ids)
                compute_s = time.perf_counter() - began - tokenize_s - queue_s
            finally:
                loaded.users -= 1
        finally:
            self.admitted -= reserved
            self._tidier.used(sum(map(len, asked.texts)))
        self.metrics.embedded(model.spec.name, len(ids), tokens, cut)
        self.metrics.phase("tokenize", tokenize_s)
        self.metrics.phase("queue", queue_s)
        self.metrics.phase("compute", compute_s)
        return Answer(
            vectors=_shortened(vectors, dim, normalize=asked.normalize),
            tokens=tokens,
            cut=cut,
            load_s=load_s,
            tokenize_s=tokenize_s,
            queue_s=queue_s,
            compute_s=compute_s,
            total_s=time.perf_counter() - start,
        )

    async def tokens_of(self, name: str, texts: Sequence[str], *, special: bool) -> list[bytes]:
        """The tokens of each whole text, as JSON: id, text, whether it is special, and its characters.

        Args:
            name: What the model was called.
            texts: The texts; what the model would cut off is counted too.
            special: Whether the model's special tokens are among them.

        Raises:
            Refusal: If there is no such model, or it is over a limit.
        """
        model = self.models.find(name).model
        self._check_size(model, texts)
        reserved = self._admit(about_tokens(texts, None))  # all of them are told, not what is read
        rows, tokens = list[bytes](), 0
        try:
            loaded, _ = await self.opened(model)
            for part in slices(texts, self.settings.limits.request_chars):
                most = self.settings.limits.request_tokens
                read = partial(json_rows, loaded.encoder.tokenizer, special=special, before=tokens, most=most)
                more, tokens = await self._in_turn(partial(read, texts[part]))
                rows += more
                reserved = self._admit(max(tokens, reserved), reserved)
        finally:
            self.admitted -= reserved
            self._tidier.used(sum(map(len, texts)))
        return rows

    def retry_after(self) -> int:
        """Seconds until what waits is done, as far as the last batches tell; 1 to 60."""
        rate = self.metrics.tokens_per_second
        return min(60, max(1, math.ceil(self.admitted / rate))) if rate else 1

    def busy(self) -> Refusal:
        """What a request is told for which there is no room now."""
        return Refusal("overloaded", _BUSY, retry_after=self.retry_after())

    async def probe(self) -> str:
        """Why the server is not ready, ``""`` if it is: cheap while the default model's batches succeed."""
        if self.draining:
            return "the server is ending"
        model = self.models.default.model
        if model.loaded is None:
            return model.failure or "the model is not open yet"
        batcher = model.loaded.batcher
        if not batcher.broken:
            return ""
        try:  # one small batch, since only a success can say that it works again
            ids, _ = model.loaded.encoder.tokenize(["ready"])
            vectors = await asyncio.wait_for(batcher.embed(ids), 5.0)
        except (BatchFailedError, TimeoutError):
            return "the engine fails"
        return "" if np.isfinite(vectors).all() else "the engine gives no numbers"

    def _check_size(self, model: Model, texts: Sequence[str]) -> None:
        limits = self.settings.limits
        if len(texts) > limits.items:
            raise Refusal("too_many", f"batch size {len(texts)} > maximum allowed batch size {limits.items}",
                          param="input")  # fmt: skip
        most = limits.chars_per_token * model.about.config.max_seq_length
        longest = max(map(len, texts), default=0)
        if longest > most:
            raise Refusal("too_large", f"a text has {longest} characters, at most {most} are read", param="input")
        if (chars := sum(map(len, texts))) > limits.request_chars:
            raise Refusal("too_large", f"the request has {chars} characters, at most {limits.request_chars} are taken "
                          "at once", param="input")  # fmt: skip

    def _admit(self, tokens: int, held: int = 0) -> int:
        """Count so many tokens of a request as at work, ``held`` of which are already, and return them."""
        limits = self.settings.limits
        if tokens > limits.request_tokens:
            raise Refusal("too_large", f"the request has {'at least' if held else 'about'} {tokens} tokens, at most "
                          f"{limits.request_tokens} are taken at once", param="input")  # fmt: skip
        if tokens > held and self.admitted + tokens - held > limits.queue_tokens:
            raise self.busy()
        self.admitted += tokens - held
        return tokens

    async def _in_turn(self, call: Callable[[], _T]) -> _T:
        """What a call in a thread gives; calls are begun in the order in which they came."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def _vectors(self, loaded: Loaded, ids: Sequence[Ids]) -> tuple[FloatArray, float]:
        """The vectors, and the seconds that their texts waited for a batch."""
        waited: list[float] = []
        try:
            vectors = await loaded.batcher.embed(ids, waited=waited.append)
        except BatchFailedError as error:
            raise Refusal("failed", "the engine failed on this request") from error
        if not np.isfinite(vectors).all():
            self.metrics.non_finite.inc()
            raise Refusal("failed", "embedding contains NaN or Inf values")
        return vectors, waited[0]


def _chosen(named: Named, asked: Asked, about: About) -> tuple[str | None, int]:
    """The prompt and the dimensions of an answer by the bundle that ``about`` describes."""
    model, prompt = named.model, choose_prompt(about.prompts, named.prompt, asked.prompt, asked.input_type)
    if asked.dim is None:
        return prompt, model.spec.dim or about.config.dim
    if problem := about.wrong_dim(asked.dim, model.spec, allow_failed=model.allow_failed):
        raise Refusal("invalid", f"dimensions: {problem}", param="dimensions")
    return prompt, asked.dim


def _shortened(vectors: FloatArray, dim: int, *, normalize: bool) -> FloatArray:
    """The first ``dim`` values of each vector, of unit length again if that is wanted; a zero vector stays one."""
    if dim >= vectors.shape[1]:
        return vectors
    part = vectors[:, :dim]
    if normalize:
        part = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-12))
    return np.ascontiguousarray(part)
