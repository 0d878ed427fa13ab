"""Asks a server for vectors, as OpenAI's ``/embeddings`` or Ollama's ``/api/embed`` is asked, and trusts no answer.

What passes by itself (too many requests, a failure of the server, a broken connection) is tried again a bounded number
of times; everything else is an error at once, with the server's own words and never with the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import MissingExtraError, ModelError, NonFiniteError
from leafembed.progress import say
from leafembed.types import FloatArray

if TYPE_CHECKING:
    import httpx2

__all__ = ["PATIENCE", "Patience", "Server", "place_of"]

_RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a server is asked and what it answers.

    Attributes:
        asks: What a request says besides model and input.
        rows: An answer's (place, vector) of each text, in any order.
        expected: What an answer should be, for errors.
    """

    asks: Mapping[str, Any]
    rows: Callable[[Any], list[tuple[int, Any]]]
    expected: str


def _openai_rows(answer: Any) -> list[tuple[int, Any]]:
    return [(item["index"], item["embedding"]) for item in answer["data"]]


def _ollama_rows(answer: Any) -> list[tuple[int, Any]]:
    return list(enumerate(answer["embeddings"]))


_OPENAI = _Dialect({"encoding_format": "float"}, _openai_rows,
                   '"data", a list with "index" and "embedding" for each text')  # fmt: skip
_OLLAMA = _Dialect({"truncate": True}, _ollama_rows, '"embeddings", a list with one of each text')
_OLLAMA_PATH = "/api/embed"
_OPENAI_PATH = "/embeddings"


def place_of(url: str) -> str:
    """Return where texts are posted to: what ends in a path for them as it is, ``/embeddings`` below any other URL."""
    plain = url.rstrip("/")
    return plain if plain.endswith((_OLLAMA_PATH, _OPENAI_PATH)) else f"{plain}{_OPENAI_PATH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        attempts: Requests with the same texts before it is an error.
        pause: Seconds before the second attempt; doubles with each further one.
        longest_pause: Most seconds of one pause, even where ``Retry-After`` asks for more.
        timeout: Seconds without a sign of the server after which an attempt is given up.
    """

    attempts: int = 7
    pause: float = 1.0
    longest_pause: float = 120.0
    timeout: float = 120.0


PATIENCE = Patience()
"""Bridges about a minute without a server: pauses of 1, 2, 4, 8, 16 and 32 s."""


@dataclass(frozen=True, slots=True)
class Server:
    """One model at one URL, and how it is asked.

    Attributes:
        url: Where texts are posted to; one that ends in ``/api/embed`` is asked as Ollama is, any other as OpenAI.
        model: Name of the model there.
        key: Sent as a bearer token; ``None``: none is.
        patience: How long it is waited for.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    patience: Patience = PATIENCE

    def client(self) -> httpx2.Client:
        """A pool of connections, to be closed by the caller.

        It follows no redirect, so that the key goes to no other host, and takes no proxy or password from the
        environment.
        """
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("httpx2", "train") from error
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        return httpx2.Client(headers=headers, timeout=self.patience.timeout, follow_redirects=False, trust_env=False)

    def ask(self, client: httpx2.Client, texts: Sequence[str], stopped: Event) -> FloatArray:
        """Return the vectors of texts, ``(n_texts, dim)`` float32, unit length, in their order.

        Too many requests, a server's own failure and a broken connection are tried again, with pauses that double or
        are as long as the server asks for. ``stopped`` ends a pause and with it the attempts.

        Raises:
            ModelError: If the server refuses, does not answer in time or answers something else than vectors.
            NonFiniteError: If a vector holds NaN or infinity, or is zero.
        """
        import httpx2

        # In ASCII, so that a lone surrogate is the server's to refuse and no error of the encoding.
        body = json.dumps({"model": self.model, "input": list(texts), **self._dialect.asks}).encode("ascii")
        attempts, pause = self.patience.attempts, self.patience.pause
        for attempt in range(1, attempts + 1):
            asked_for = 0.0
            try:
                response = client.post(self.url, content=body)
            except httpx2.TransportError as error:
                problem = self._public(f"{type(error).__name__}: {error}")
            except httpx2.RequestError as error:
                raise ModelError(f"{self.url}: got an answer that cannot be read: {error}; expected JSON") from error
            else:
                if response.is_success:
                    return self._vectors(response, texts)
                problem = f"{response.status_code} {response.reason_phrase}: {self._message(response)}"
                if response.status_code not in _RETRIED:
                    raise ModelError(
                        f"{self.url}: got {problem}; expected vectors: check the URL, the name of the model (got "
                        f"{self.model!r}) and the key (api_key_file)"
                    )
                asked_for = _retry_after(response.headers.get("retry-after"))
            if attempt < attempts:
                wait = min(max(asked_for, pause), self.patience.longest_pause)
                say(f"{self.url}: {problem}; attempt {attempt + 1} of {attempts} in {wait:.3g} s")
                if stopped.wait(wait):
                    break
                pause *= 2
        raise ModelError(f"{self.url}: got {problem} at attempt {attempt} of {attempts}; run again when it answers")

    @property
    def _dialect(self) -> _Dialect:
        return _OLLAMA if self.url.endswith(_OLLAMA_PATH) else _OPENAI

    def _vectors(self, response: httpx2.Response, texts: Sequence[str]) -> FloatArray:
        try:
            rows = sorted(self._dialect.rows(response.json()), key=lambda row: row[0])
            places = [place for place, _ in rows]
            matrix = np.array([vector for _, vector in rows], dtype=np.float64)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(
                f"{self.url}: got {self._public(response.text)[:120]!r} ({type(error).__name__}), expected JSON with "
                f"{self._dialect.expected}, all of one length"
            ) from error
        if places != list(range(len(texts))):
            raise ModelError(
                f"{self.url}: got {len(places)} vectors with index {str(places)[:60]}, expected one for each of "
                f"{len(texts)} texts, from 0"
            )
        if matrix.ndim != 2 or not matrix.size:
            raise ModelError(f"{self.url}: got vectors of shape {matrix.shape[1:]}, expected lists of numbers")
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(bad):
            raise NonFiniteError(
                f"{self.model} at {self.url} gives NaN, infinity or zero for {len(bad)} of {len(texts)} texts, first "
                f"{texts[bad[0]][:60]!r}; expected finite vectors with a direction"
            )
        unit: FloatArray = (matrix / lengths).astype(np.float32)
        return unit

    def _message(self, response: httpx2.Response) -> str:
        """What the server says of its failure, in one line."""
        try:
            body = response.json()
        except ValueError:
            body = response.headers.get("location") if response.is_redirect else response.text
        for name in ("error", "message", "detail"):
            if isinstance(body, dict) and name in body:
                body = body[name]
        return self._public(body if isinstance(body, str) else json.dumps(body))[:300] or "no message"

    def _public(self, text: str) -> str:
        """The text in one line without the key, which some servers repeat."""
        shown = text.replace(self.key, "[key]") if self.key else text
        return " ".join(shown.split())


def _retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; 0 when it asks for nothing."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
