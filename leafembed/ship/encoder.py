"""Runs a model folder: tokenise, sort by length, batch, infer, cut. Needs openvino and tokenizers only.

Texts are sorted by length so that a batch pads little: on mixed text most of the padded work disappears. The result is
in the order of the texts. With ``group_size`` 0 it does not depend on the batch (1e-6). Where activations are quantised
at run time it does a little, because the engine rounds them differently for different batch shapes; the gate refuses a
model whose vectors move by more than 1e-3 in cosine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.errors import ModelError
from leafembed.ship.engine import compile_graph, compile_here
from leafembed.ship.folder import EncoderConfig, read_prompts, require_files
from leafembed.ship.machine import usable_cores
from leafembed.ship.reader import Reader
from leafembed.ship.stream import Encoded, ahead, pooled, unit
from leafembed.ship.texts import Ids, batches_by_length, check_texts, open_tokenizer, padded
from leafembed.types import FloatArray, ModelRef, check_vectors

__all__ = ["BATCH_TOKENS", "BundleEncoder"]

_logger = logging.getLogger(__name__)

BATCH_TOKENS = 2_048
"""Most tokens of a forward pass, padding included; more cost memory and are no faster, see ``docs/log.md``."""


class BundleEncoder:
    """The encoder of a model folder or bundle; implements :class:`leafembed.types.Encoder`.

    One object may be used from several threads.

    Attributes:
        ref: What this encoder is.
        manifest: The bundle's manifest; ``None`` for a bare model folder.
        threads: CPU threads of all forward passes together.
        exit: Layer after which the vector is taken; ``None``: after the last.
        streams: Forward passes that run side by side when called from as many threads.
        batch_size: Most texts in one forward pass.
        batch_tokens: Most tokens in one forward pass, padding included.
        lost: What the model loses on this CPU, for people to read; empty: nothing.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        manifest: Mapping[str, Any] | None = None,
        threads: int | None = None,
        streams: int = 1,
        batch_size: int = 32,
        batch_tokens: int = BATCH_TOKENS,
        exit: int | None = None,
        dim: int | None = None,
    ) -> None:
        """Open a model folder; hashes are not checked here, see :func:`leafembed.ship.bundle.open_bundle`.

        Args:
            folder: Holds at least ``REQUIRED_FILES``.
            manifest: Kept as an attribute.
            threads: CPU threads; ``None``: every core the process may use.
            streams: Forward passes side by side, which share the threads; more than 1 is for callers with threads of
                their own, such as a server.
            batch_size: Most texts in one forward pass.
            batch_tokens: Most tokens in one forward pass, padding included, which one text alone may exceed; bounds
                memory where texts are long.
            exit: One of the folder's early exits, a number of layers: later layers are not loaded.
            dim: Leading dimensions that vectors have, scaled to unit length; ``None``: all.

        Raises:
            ModelError: If a file is missing or cannot be used, or there is no such exit.
            ValueError: If ``threads``, ``streams`` or the size of a batch is not positive, or ``dim`` is out of range.
        """
        require_files(folder := Path(folder))
        self.manifest = manifest
        self.threads = usable_cores() if threads is None else _positive(threads, "threads")
        self.streams = _positive(streams, "streams")
        self.batch_size = _positive(batch_size, "batch_size")
        self.batch_tokens = _positive(batch_tokens, "batch_tokens")
        self._config = config = EncoderConfig.read(folder)
        self._reader = Reader(open_tokenizer(folder / "tokenizer.json", config.max_seq_length), config)
        self.exit = exit
        self._dim = config.dim
        self._dim = self._width(dim)
        self._path = folder / "model.xml"
        self._of_thread = threading.local()  # an engine's request serves one caller at a time
        self._lock = threading.Lock()
        program, self._config, self.lost = compile_here(self._path, config, self.threads, self.streams, exit)
        self._models: dict[int | None, Any] = {exit: program}
        if self.lost:
            _logger.warning("%s: %s", config.name, self.lost)
        self.ref = ModelRef(
            name=config.name,
            dim=self._dim,
            fingerprint=config.fingerprint,
            licence=config.licence,
            max_seq_length=config.max_seq_length,
            prompts=read_prompts(folder),
        )

    @property
    def prompts(self) -> Mapping[str, str]:
        """Text put before an input, by prompt name; empty for a model that takes none."""
        return self.ref.prompts

    @property
    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer``, which cuts at ``max_seq_length``; to read from, not to change."""
        return self._reader.tokenizer

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        return self._dim

    @property
    def exits(self) -> tuple[int, ...]:
        """Numbers of layers after which :meth:`encode` can take the vector, besides after the last."""
        return self._config.exits

    @property
    def part(self) -> dict[str, int]:
        """What of the model it was opened as, in mteb's words: ``exit`` and ``embed_dim``; empty: the whole."""
        dim = {"embed_dim": self._dim} if self._dim != self._config.dim else {}
        return dim | ({"exit": self.exit} if self.exit is not None else {})

    @property
    def max_seq_length(self) -> int:
        """Tokens read of one text, special tokens included."""
        return self._config.max_seq_length

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        dim: int | None = None,
        exit: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        overlap: int | None = None,
    ) -> FloatArray:
        """Return embeddings of shape ``(n_texts, dim)``, float32, in the order of the texts.

        A text longer than ``max_seq_length`` is cut, and a warning says how many were; with an ``overlap`` it is read
        in windows instead. A text without any token (an empty one, where the tokenizer adds no special tokens) is read
        as one padding token.

        Args:
            texts: Any number of texts; an empty list gives ``(0, dim)``.
            prompt_name: One of ``prompts``, put before each text; ``None``: no prompt.
            dim: Keep the first ``dim`` values; ``None``: as the encoder was opened.
            exit: Take the vector after this layer; ``None``: as the encoder was opened.
            batch_size: Texts in one forward pass; ``None``: as the encoder was opened.
            normalize: Scale to unit length after the cut; without it a cut vector is shorter than 1.
            overlap: Read a text that is too long in windows that share so many tokens, and return the mean of their
                vectors, weighted by their tokens; ``None``: cut it.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold, ``prompt_name`` is unknown, or ``dim``,
                ``batch_size`` or ``overlap`` is out of range.
            NonFiniteError: If the model returns NaN or infinity.
            ModelError: If there is no such exit.
            TypeError: If ``texts`` has no length, as a generator has none.
        """
        if not hasattr(texts, "__len__"):
            raise TypeError(f"texts: got a {type(texts).__name__}, expected a list; encode_stream takes any iterable")
        check_texts(texts)
        width = self._width(dim)
        vectors, done, cut = np.empty((len(texts), width), dtype=np.float32), 0, 0
        for part in self.encode_stream(
            texts, prompt_name=prompt_name, dim=dim, exit=exit, batch_size=batch_size, normalize=normalize,
            overlap=overlap
        ):  # fmt: skip
            vectors[done : done + len(part.vectors)] = part.vectors
            done, cut = done + len(part.vectors), cut + part.cut
        if cut:
            _logger.warning("%d of %d texts were cut to %d tokens", cut, len(texts), self.max_seq_length)
        return vectors

    def encode_together(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return what :meth:`encode` does, from one forward pass over all texts, however many tokens that takes."""
        vectors = self.embed_tokens(self.tokenize(texts, prompt_name)[0])[:, : self._dim]
        return check_vectors(unit(vectors, self.ref.name), n=len(texts), what=self.ref.name)

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        dim: int | None = None,
        exit: int | None = None,
        batch_size: int | None = None,
        normalize: bool = True,
        overlap: int | None = None,
    ) -> Iterator[Encoded]:
        """Yield the embeddings of any number of texts, in their order, in memory that does not grow with their number.

        Texts are taken some thousands at a time, by a thread that tokenises them while those before are embedded.

        Args:
            texts: Read once.
            prompt_name: As of :meth:`encode`, and so all that follow.
            dim: Values to keep.
            exit: Layer after which the vector is taken.
            batch_size: Texts in one forward pass.
            normalize: Whether a cut vector is scaled to unit length.
            overlap: Tokens that windows of a long text share.

        Raises:
            ValueError: As :meth:`encode`, when the first vectors are asked for.
            NonFiniteError: If the model returns NaN or infinity; rows are counted from the window's first.
            ModelError: If there is no such exit.
        """
        width = self._width(dim)
        if prompt_name is not None and prompt_name not in self.prompts:
            known = ", ".join(self.prompts) or "none, since the model has no prompts"
            raise ValueError(f"prompt_name: got {prompt_name!r}, expected one of {known}")
        size = self.batch_size if batch_size is None else _positive(batch_size, "batch_size")
        for window in ahead(self._reader.windows(texts, self._prompt(prompt_name), overlap)):
            full = np.empty((len(window.ids), self._config.dim), dtype=np.float32)
            for rows in batches_by_length(window.ids, size, self.batch_tokens):
                full[rows] = self.embed_tokens([window.ids[row] for row in rows], exit=exit)
            full = check_vectors(full, n=len(window.ids), what=self.ref.name)
            part = np.ascontiguousarray(pooled(full, window)[:, :width])
            if normalize and width < self._config.dim:
                part = unit(part, self.ref.name)
            yield Encoded(part, window.cut)

    def _prompt(self, name: str | None) -> str:
        """Text of a prompt; of one that ``ref`` was given from outside too."""
        return self.prompts.get(name, "") if name is not None else ""

    def _width(self, dim: int | None) -> int:
        """Values of a vector, where ``dim`` are asked for."""
        if dim is not None and not 1 <= dim <= self._config.dim:
            raise ValueError(f"dim: got {dim}, expected 1 to {self._config.dim}")
        return self.dim if dim is None else dim

    def count_tokens(self, texts: Sequence[str], prompt_name: str | None = None) -> list[int]:
        """Return how many tokens of each text the model reads: prompt and special tokens in, the cut part out."""
        ids, _ = self.tokenize(texts, prompt_name)
        return [len(row) for row in ids]

    def tokenize(self, texts: Sequence[str], prompt_name: str | None = None) -> tuple[list[Ids], list[bool]]:
        """Return the token ids that the model reads of each text ``(n_tokens,)`` int64, and whether it was cut.

        A text of no token is one padding token.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold.
        """
        return self._reader.tokenize(texts, self._prompt(prompt_name))

    def embed_tokens(self, ids: Sequence[Ids], *, exit: int | None = None) -> FloatArray:
        """Return the whole vectors of one batch in one forward pass, float32; not cut to ``dim``, not checked for NaN.

        Args:
            ids: Token ids of each text, as :meth:`tokenize` gives them; at least one text.
            exit: Take the vector after this layer; ``None``: as the encoder was opened.

        Raises:
            ModelError: If there is no such exit.
        """
        input_ids, mask = padded(ids, self._config.pad_token_id, left=self._config.padding_side == "left")
        request = self._request(self.exit if exit is None else exit)
        request.infer({"input_ids": input_ids, "attention_mask": mask}, share_inputs=True)
        output: FloatArray = request.get_output_tensor(0).data
        if output.shape != (len(ids), self._config.dim):
            expected = (len(ids), self._config.dim)
            raise ModelError(f"model.xml returned {output.shape}, encoder.json promises {expected}")
        return output.copy()  # the engine writes the next batch over it

    def _request(self, exit: int | None) -> Any:
        """The engine's request of the calling thread for an exit, made once."""
        requests: dict[int | None, Any] = self._of_thread.__dict__.setdefault("requests", {})
        if exit not in requests:
            requests[exit] = self._compile(exit).create_infer_request()
        return requests[exit]

    def _compile(self, exit: int | None) -> Any:
        """The program that ends at an exit, compiled once."""
        with self._lock:
            if exit not in self._models:
                self._models[exit] = compile_graph(self._path, self._config, self.threads, self.streams, exit)
            return self._models[exit]


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")
    return value
