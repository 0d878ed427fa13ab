"""The models that a server knows: bundles under names, opened when first asked for, replaced while they serve.

A name from a request is looked up in a dictionary and never becomes a path. ``leaf``, ``LEAF`` and ``leaf:latest`` are
one name; ``leaf-query`` and ``leaf-document`` are the same model with the prompt of that name, for clients that cannot
send one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leafembed.errors import Error, ModelError, first_line
from leafembed.serve.batching import Batched, Batcher
from leafembed.serve.refusals import Refusal
from leafembed.serve.specs import NAME, About, ModelSpec
from leafembed.ship.bundle import open_bundle

if TYPE_CHECKING:
    from leafembed.ship.encoder import BundleEncoder

__all__ = ["AGAIN_S", "Loaded", "Model", "Models", "Named"]

_ASKED = re.compile(r"(?:\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(?::\w[\w.-]{0,79})?", re.ASCII)
AGAIN_S = 5.0
"""Seconds between two tries to open the same files, each of which reads and hashes all of them."""

_LISTED = ("query", "document")
"""Prompts whose names are listed; those of other prompts are known but would crowd a menu."""


_Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, time, size and number of each file of a bundle."""


@dataclass(slots=True)
class Loaded:
    """An opened bundle with its queue.

    Attributes:
        about: Of these very files, whatever lies at the path by now.
        encoder: Tokenises and computes.
        batcher: What its texts wait in.
        seconds: It took to open.
        since: Unix time of opening.
        users: Requests that are at work with it.
    """

    about: About
    encoder: BundleEncoder
    batcher: Batcher
    seconds: float
    since: float
    users: int = 0


@dataclass(slots=True, eq=False)
class Model:
    """One bundle that is served.

    Attributes:
        spec: As the operator named it.
        known: Of the bundle as it lay there at the last look.
        loaded: ``None`` until a request wants it.
        failure: Why it could not be opened the last time; empty: it could.
        again: When the same files may be tried again, by the monotonic clock.
    """

    spec: ModelSpec
    known: About
    allow_failed: bool
    threads: int | None
    streams: int
    batch_tokens: int
    on_batch: Callable[[str, Batched], None]
    loaded: Loaded | None = None
    stamp: _Stamp = ()
    failure: str = ""
    again: float = 0.0
    _seen: _Stamp = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _swap: threading.Lock = field(default_factory=threading.Lock)

    @property
    def about(self) -> About:
        """Of the bundle as it is served, or would be."""
        loaded = self.loaded
        return self.known if loaded is None else loaded.about

    def load(self) -> tuple[Loaded, bool]:
        """Return the opened bundle, and whether this call opened it; blocks, so not for the event loop.

        Raises:
            Error: If the bundle cannot be opened; the same files are not tried again for :data:`AGAIN_S` seconds.
        """
        with self._lock:
            if self.loaded is not None:
                return self.loaded, False
            before, self.stamp = self.stamp, _stamp(self.spec.path)
            if self.failure and self.stamp == before and time.monotonic() < self.again:
                raise ModelError(self.failure)
            try:
                self.known = About.read(self.spec, allow_failed=self.allow_failed)  # it may be another by now
                self.loaded = self._open(self.known)
            except (Error, OSError) as error:
                self.failure, self.again = first_line(error), time.monotonic() + AGAIN_S
                raise
            self.failure = ""
            return self.loaded, True

    def take(self) -> Loaded:
        """Return the opened bundle, counted as in use until ``users`` is lowered: no reload closes it before that."""
        with self._swap:
            assert self.loaded is not None, "taken before it was opened"
            self.loaded.users += 1
            return self.loaded

    def changed(self) -> bool:
        """Whether other files lie at the path than were read there, and nobody writes them since the last look."""
        before, self._seen = self._seen, _stamp(self.spec.path)
        return self._seen != self.stamp and self._seen == before

    def reload(self) -> None:
        """Serve what now lies at the path; requests under way end with the old bundle. Blocks until it is closed.

        Of a bundle that is not open yet only its description is read.

        Raises:
            Error: If that is no bundle that may be served; the old one goes on.
        """
        with self._lock:
            self.stamp = _stamp(self.spec.path)  # seen, whatever comes of it
            try:
                about = About.read(self.spec, allow_failed=self.allow_failed)
                fresh = self._open(about) if self.loaded is not None else None
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                raise
            self.failure = ""
            with self._swap:
                old, self.loaded, self.known = self.loaded, fresh, about
        if old is not None:
            while old.users:
                time.sleep(0.05)
            old.batcher.close()

    def close(self) -> None:
        """Let the queue empty itself and end its threads."""
        if self.loaded is not None:
            self.loaded.batcher.close()

    def _open(self, about: About) -> Loaded:
        start = time.perf_counter()
        encoder = open_bundle(
            self.spec.path,
            allow_failed=self.allow_failed,
            threads=self.threads,
            streams=self.streams,
            exit=self.spec.exit,
        )
        if encoder.manifest != about.manifest:
            raise ModelError(f"{self.spec.path}: another bundle was put there while it was opened; it is tried again")
        encoder.embed_tokens(encoder.tokenize(["warm-up"])[0])  # the first pass compiles
        batcher = Batcher(
            encoder,
            workers=encoder.streams,
            batch_tokens=self.batch_tokens,
            on_batch=lambda batch: self.on_batch(self.spec.name, batch),
        )
        return Loaded(about, encoder, batcher, time.perf_counter() - start, time.time())


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for: a model, and the prompt that a request without one gets."""

    name: str
    model: Model
    prompt: str | None
    listed: bool

    @property
    def dim(self) -> int:
        """Values of a vector where a request asks for no number."""
        return self.model.spec.dim or self.model.about.config.dim


class Models:
    """All models of a server by name.

    Args:
        specs: At least one; the first is the default of clients that name none.
        allow_failed: Serve bundles that the gate refused.
        threads: CPU threads of each model; ``None``: every core the process may use.
        streams: Forward passes side by side; ``None``: one for each two threads.
        batch_tokens: Padded tokens of one forward pass.
        on_batch: Told of every batch and its model's name, from worker threads.

    Raises:
        Error: If two have one name, or one is no bundle.
        GateFailedError: If the gate refused one.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        *,
        allow_failed: bool = False,
        threads: int | None = None,
        streams: int = 1,
        batch_tokens: int = 192,
        on_batch: Callable[[str, Batched], None] | None = None,
    ) -> None:
        self.all: list[Model] = []
        self._names: dict[str, Named] = {}
        for spec in specs:
            stamp, about = _stamp(spec.path), About.read(spec, allow_failed=allow_failed)
            told = on_batch or (lambda name, batch: None)
            model = Model(spec, about, allow_failed, threads, streams, batch_tokens, told, stamp=stamp)
            self.all.append(model)
            if spec.name.lower() in self._names:
                raise Error(f"--model {spec.name}: got the name twice, expected a name of its own for each bundle")
            self._names[spec.name.lower()] = Named(spec.name, model, spec.prompt, True)

    @property
    def default(self) -> Named:
        """What a request without a name gets."""
        return self._names[self.all[0].spec.name.lower()]

    @property
    def listed(self) -> list[Named]:
        """Names to show."""
        return [*self._names.values(), *(named for named in self._with_prompts().values() if named.listed)]

    def check_name(self, name: str) -> None:
        """Refuse what cannot be a model's name, whatever models there are.

        Raises:
            Refusal: If it is empty, or of other characters.
        """
        if not name:
            raise self._missing("model '' not found")
        if not _ASKED.fullmatch(name):
            raise Refusal("invalid", "invalid model name", param="model")

    def find(self, name: str) -> Named:
        """What a name from a request stands for.

        Raises:
            Refusal: If it is no name, or nothing has it.
        """
        self.check_name(name)
        asked = name.lower().removesuffix(":latest")
        found = self._names.get(asked) or self._with_prompts().get(asked)
        if found is None:
            raise self._missing(f'model "{name}" not found, try pulling it first')
        return found

    def _missing(self, what: str) -> Refusal:
        """The refusal in Ollama's own words and what there is."""
        known = ", ".join(sorted(named.name for named in self.listed))
        return Refusal("missing", f"{what}; this server has {known}", param="model")

    def _with_prompts(self) -> dict[str, Named]:
        """Names that stand for a model and one of the prompts that its bundle has now."""
        found: dict[str, Named] = {}
        for model in self.all:
            for prompt in model.about.prompts:
                name = f"{model.spec.name}-{prompt.lower().replace(' ', '-')}"
                if NAME.fullmatch(name) and name.lower() not in self._names:
                    found.setdefault(name.lower(), Named(name, model, prompt, prompt in _LISTED))
        return found


def _stamp(path: Path) -> _Stamp:
    """What tells a bundle's files from others at the same place: all of them, since cp writes the manifest first."""
    try:
        found = [(file.name, file.stat()) for file in path.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_mtime_ns, status.st_size, status.st_ino) for name, status in found))
