"""Runs a model folder: tokenise, sort by length, batch, infer, cut. Needs openvino and tokenizers only.

Texts are sorted by length so that a batch pads little: on mixed text most of the padded work disappears. The result is
in the order of the texts. With ``group_size`` 0 it does not depend on the batch size (1e-6). Where activations are
quantised at run time it does a little, because the engine rounds them differently for different batch shapes: on a
6-layer MiniLM the cosine between batches of 1 and of 32 was 0.9998 at the least.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import ModelError, NonFiniteError, first_line
from leafembed.ship.engine import compile_graph
from leafembed.ship.folder import REQUIRED_FILES, EncoderConfig, read_prompts
from leafembed.ship.machine import usable_cores
from leafembed.types import FloatArray, ModelRef, check_vectors

__all__ = ["BundleEncoder", "batches_by_length", "check_texts", "open_tokenizer"]

_logger = logging.getLogger(__name__)

_CHUNK = 4_096
"""Texts tokenised at once; token ids are kept, the tokenizer's larger bookkeeping is not."""

_SHORTEST = 2
"""Shortest batch in tokens: graphs are traced with at least 2, since tracers treat a dimension of 1 as fixed."""

_Ids = NDArray[np.int64]


class BundleEncoder:
    """The encoder of a model folder or bundle; implements :class:`leafembed.types.Encoder`.

    One object may be used from several threads.

    Attributes:
        ref: What this encoder is.
        manifest: The bundle's manifest; ``None`` for a bare model folder.
        threads: CPU threads of all forward passes together.
        exit: Layer after which the vector is taken; ``None``: after the last.
        streams: Forward passes that run side by side when called from as many threads.
        batch_size: Texts in one forward pass.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        manifest: Mapping[str, Any] | None = None,
        threads: int | None = None,
        streams: int = 1,
        batch_size: int = 32,
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
            batch_size: Texts in one forward pass.
            exit: One of the folder's early exits, a number of layers: later layers are not loaded.
            dim: Leading dimensions that vectors have, scaled to unit length; ``None``: all.

        Raises:
            ModelError: If a file is missing or cannot be used, or there is no such exit.
            ValueError: If ``threads``, ``streams`` or ``batch_size`` is not positive, or ``dim`` is out of range.
        """
        folder = Path(folder)
        missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: not a model folder, it lacks {', '.join(missing)}")
        self.manifest = manifest
        self.threads = usable_cores() if threads is None else _positive(threads, "threads")
        self.streams = _positive(streams, "streams")
        self.batch_size = _positive(batch_size, "batch_size")
        self._config = config = EncoderConfig.read(folder)
        self._tokenizer = open_tokenizer(folder / "tokenizer.json", config.max_seq_length)
        self.exit = exit
        if dim is not None and not 1 <= dim <= config.dim:
            raise ValueError(f"dim: got {dim}, expected 1 to {config.dim}")
        self._dim = config.dim if dim is None else dim
        self._path = folder / "model.xml"
        self._models: dict[int | None, Any] = {}
        self._of_thread = threading.local()  # an engine's request serves one caller at a time
        self._lock = threading.Lock()
        self._compile(exit)
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
        return self._tokenizer

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        return self._dim

    @property
    def exits(self) -> tuple[int, ...]:
        """Numbers of layers after which :meth:`encode` can take the vector, besides after the last."""
        return self._config.exits

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
    ) -> FloatArray:
        """Return embeddings of shape ``(n_texts, dim)``, float32, in the order of the texts.

        A text longer than ``max_seq_length`` is cut, and a warning says how many were. A text without any token (an
        empty one, where the tokenizer adds no special tokens) is read as one padding token.

        Args:
            texts: Any number of texts; an empty list gives ``(0, dim)``.
            prompt_name: One of ``prompts``, put before each text; ``None``: no prompt.
            dim: Keep the first ``dim`` values; ``None``: as the encoder was opened.
            exit: Take the vector after this layer; ``None``: as the encoder was opened.
            batch_size: Texts in one forward pass; ``None``: as the encoder was opened.
            normalize: Scale to unit length after the cut; without it a cut vector is shorter than 1.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold, ``prompt_name`` is unknown, or ``dim`` or
                ``batch_size`` is out of range.
            NonFiniteError: If the model returns NaN or infinity.
            ModelError: If there is no such exit.
        """
        whole = self._config.dim
        width = self.dim if dim is None else dim
        if not 1 <= width <= whole:
            raise ValueError(f"dim: got {dim}, expected 1 to {whole}")
        if prompt_name is not None and prompt_name not in self.prompts:
            known = ", ".join(self.prompts) or "none, since the model has no prompts"
            raise ValueError(f"prompt_name: got {prompt_name!r}, expected one of {known}")
        size = self.batch_size if batch_size is None else _positive(batch_size, "batch_size")
        ids, was_cut = self.tokenize(texts, prompt_name)
        if cut := sum(was_cut):
            _logger.warning("%d of %d texts were cut to %d tokens", cut, len(ids), self.max_seq_length)
        full = np.empty((len(ids), whole), dtype=np.float32)
        for rows in batches_by_length(ids, size):
            full[rows] = self.embed_tokens([ids[row] for row in rows], exit=exit)
        full = check_vectors(full, n=len(ids), what=self.ref.name)
        part = np.ascontiguousarray(full[:, :width])
        return _unit(part, self.ref.name) if normalize and width < whole else part

    def count_tokens(self, texts: Sequence[str], prompt_name: str | None = None) -> list[int]:
        """Return how many tokens of each text the model reads: prompt and special tokens in, the cut part out."""
        ids, _ = self.tokenize(texts, prompt_name)
        return [len(row) for row in ids]

    def tokenize(self, texts: Sequence[str], prompt_name: str | None = None) -> tuple[list[_Ids], list[bool]]:
        """Return the token ids that the model reads of each text ``(n_tokens,)`` int64, and whether it was cut.

        A text of no token is one padding token.

        Raises:
            ValueError: If an item is not a text that UTF-8 can hold.
        """
        check_texts(texts)
        prompt = self.prompts.get(prompt_name, "") if prompt_name is not None else ""
        result: list[_Ids] = []
        cut: list[bool] = []
        for start in range(0, len(texts), _CHUNK):
            chunk = [prompt + text for text in texts[start : start + _CHUNK]]
            encodings = self._tokenizer.encode_batch_fast(chunk, add_special_tokens=self._config.add_special_tokens)
            # One attended padding token stands for a text of no tokens: a mean over nothing would be NaN.
            result += [np.array(encoding.ids or [self._config.pad_token_id], np.int64) for encoding in encodings]
            cut += [bool(encoding.overflowing) for encoding in encodings]
        return result, cut

    def embed_tokens(self, ids: Sequence[_Ids], *, exit: int | None = None) -> FloatArray:
        """Return the whole vectors of one batch in one forward pass, float32; not cut to ``dim``, not checked for NaN.

        Args:
            ids: Token ids of each text, as :meth:`tokenize` gives them; at least one text.
            exit: Take the vector after this layer; ``None``: as the encoder was opened.

        Raises:
            ModelError: If there is no such exit.
        """
        longest = max(_SHORTEST, *map(len, ids))
        input_ids = np.full((len(ids), longest), self._config.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            place = slice(longest - len(tokens), None) if self._config.padding_side == "left" else slice(len(tokens))
            input_ids[row, place] = tokens
            mask[row, place] = 1
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


def open_tokenizer(path: Path, max_seq_length: int | None) -> Any:
    """Open a ``tokenizer.json`` that pads nothing and cuts at ``max_seq_length`` tokens; ``None``: it cuts nothing.

    Raises:
        ModelError: If it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise ModelError(f"{path}: not a tokenizer: {first_line(error)}") from error
    direction = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()  # we pad each batch to its own longest
    tokenizer.no_truncation()
    if max_seq_length is not None:
        tokenizer.enable_truncation(max_seq_length, direction=direction)
    return tokenizer


def check_texts(texts: Sequence[str]) -> None:
    """Raise a ``ValueError`` naming the first item that is not a text that UTF-8 can hold."""
    if isinstance(texts, (str, bytes)):
        raise ValueError("texts: got a single text, expected a list of texts; pass [text]")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}]: got {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{index}]: a lone surrogate at character {error.start} is not text") from error


def batches_by_length(ids: Sequence[_Ids], size: int) -> Iterator[NDArray[np.intp]]:
    """Yield indices of ``size`` texts of about the same number of tokens, longest first."""
    # Longest first: too little memory shows at once.
    order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _unit(vectors: FloatArray, what: str) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        row = int((norms == 0).argmax())
        raise NonFiniteError(
            f"{what}: the first {vectors.shape[1]} values of row {row} are all 0 and have no direction"
        )
    unit: FloatArray = vectors / norms
    return unit


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")
    return value
