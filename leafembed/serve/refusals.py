"""What a request can be refused for, and the shape in which each family of clients expects to hear it.

A handler raises a :class:`Refusal`; the border turns it into the family's body and status. Statuses are those that the
families' own servers give (Ollama, OpenAI, text-embeddings-inference), so that their clients retry what is worth it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FAMILIES", "Family", "Kind", "Refusal", "family_of"]

Kind = Literal[
    "malformed",
    "head_too_large",
    "invalid",
    "empty",
    "missing",
    "no_route",
    "no_method",
    "too_large",
    "too_many",
    "encoding",
    "unauthorized",
    "forbidden",
    "slow",
    "overloaded",
    "unavailable",
    "late",
    "canceled",
    "failed",
]
"""Why a request was not answered with vectors; also a label of the metrics."""

_STATUS: dict[Kind, int] = {
    "malformed": 400,
    "head_too_large": 431,
    "invalid": 400,
    "empty": 400,
    "missing": 404,
    "no_route": 404,
    "no_method": 405,
    "too_large": 413,
    "too_many": 413,
    "encoding": 415,
    "unauthorized": 401,
    "forbidden": 403,
    "slow": 408,
    "overloaded": 429,
    "unavailable": 503,
    "late": 503,
    "canceled": 499,
    "failed": 500,
}


class Refusal(Exception):
    """A request that is not answered with vectors; the message is for the client.

    Args:
        kind: Why.
        message: What was got and what was expected, without the user's text.
        param: Field of the request that is to blame; ``None``: none.
        retry_after: Seconds after which it may be tried again; ``None``: it would fail again.
    """

    def __init__(self, kind: Kind, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.param = param
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Family:
    """A family of clients.

    Attributes:
        name: Label in metrics and logs.
        status: Where its statuses differ from the common ones.
        body: Its error body.
    """

    name: str
    status: dict[Kind, int]
    body: Callable[[Refusal, int], dict[str, Any]]

    def answer(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        """Status and body of a refusal."""
        status = {**_STATUS, **self.status}[refusal.kind]
        return status, self.body(refusal, status)


def _ollama_body(refusal: Refusal, status: int) -> dict[str, Any]:
    return {"error": refusal.message}


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def _openai_body(refusal: Refusal, status: int) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    code = {"missing": "model_not_found", "unauthorized": "invalid_api_key", "overloaded": "rate_limit_exceeded"}
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": code.get(refusal.kind),
        }
    }


_TEI_TYPES: dict[Kind, str] = {
    "overloaded": "Overloaded",
    "failed": "Backend",
    "unavailable": "Unhealthy",
    "late": "Overloaded",
    "empty": "Empty",
}


def _tei_body(refusal: Refusal, status: int) -> dict[str, Any]:
    return {"error": refusal.message, "error_type": _TEI_TYPES.get(refusal.kind, "Validation")}


FAMILIES = {
    "ollama": Family("ollama", {"overloaded": 503}, _ollama_body),
    "openai": Family("openai", {}, _openai_body),
    "tei": Family("tei", {"invalid": 422, "too_many": 422, "failed": 424}, _tei_body),
}

_PREFIXES = (("/v1/", "openai"), ("/embed", "tei"), ("/info", "tei"), ("/tokenize", "tei"))


def family_of(path: str) -> Family:
    """The family whose clients ask for a path; Ollama's where no other has it."""
    name = next((name for prefix, name in _PREFIXES if path == prefix or path.startswith(prefix)), "ollama")
    return FAMILIES[name]
