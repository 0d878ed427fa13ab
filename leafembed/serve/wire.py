"""JSON in and out: one strict reader for all routes, and vectors written in pieces so that others get their turn.

orjson reads what RFC 8259 allows and nothing else: NaN, lone surrogates, bytes that are not UTF-8, thousands of nested
brackets and trailing text are errors, where the standard library takes them or breaks.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from leafembed.serve.refusals import Refusal
from leafembed.types import FloatArray

__all__ = [
    "BODY",
    "answer",
    "flag",
    "json_body",
    "parts_answer",
    "rows_answer",
    "text_field",
    "texts_field",
    "whole_field",
]

BODY = "leaf.body"
"""Where the border puts a request's body in the ASGI scope."""

_PIECE = 65_536
"""Numbers written between two turns of the event loop, some milliseconds."""

_JSON = "application/json; charset=utf-8"


def json_body(request: Request, *keys: str) -> dict[str, Any]:
    """Return the JSON object of a request, whatever its content type says.

    What is parsed takes twenty times as much memory as its text where it is small lists; so it is parsed here, on the
    event loop, one body at a time, and a handler that waits keeps nothing but what it knows.

    Args:
        request: Its body was put into its scope.
        keys: What the route knows; other keys are left out.

    Raises:
        Refusal: If there is none.
    """
    raw: bytes = request.scope.get(BODY, b"")
    if not raw or raw.isspace():
        raise Refusal("invalid", "missing request body")
    try:
        data = orjson.loads(raw)
    except (orjson.JSONDecodeError, RecursionError) as error:
        where = str(error).split(":")[0][:80]
        raise Refusal("invalid", f"invalid JSON: {where}") from error
    if not isinstance(data, dict):
        raise Refusal("invalid", f"invalid JSON: got {_kind(data)}, expected an object")
    return {key: data[key] for key in keys if key in data}


def text_field(data: Mapping[str, Any], name: str) -> str | None:
    """A text of a request; ``None`` where it is absent or null.

    Raises:
        Refusal: If it is something else.
    """
    found: str | None = _field(data, name, str, "a string")
    return found


def flag(data: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean of a request; the default where it is absent or null.

    Raises:
        Refusal: If it is something else.
    """
    value = _field(data, name, bool, "true or false")
    return default if value is None else value


def whole_field(data: Mapping[str, Any], name: str) -> int | None:
    """A whole number of a request, no float and no text; ``None`` where it is absent or null.

    Raises:
        Refusal: If it is something else.
    """
    if isinstance(data.get(name), bool):
        raise Refusal("invalid", f"{name}: got a boolean, expected a whole number", param=name)
    found: int | None = _field(data, name, int, "a whole number")
    return found


def texts_field(value: Any) -> list[str] | None:
    """A text or a list of texts as a list; ``None``: it is neither."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return None


def answer(
    data: Mapping[str, Any] | list[Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(data), status, dict(headers or {}), _JSON)


def parts_answer(parts: Sequence[bytes]) -> Response:
    """A JSON answer with a list of what is JSON already."""
    return Response(b"[" + b",".join(parts) + b"]", 200, None, _JSON)


async def rows_answer(
    request: Request,
    vectors: FloatArray,
    *,
    before: bytes = b"",
    after: bytes = b"",
    row: tuple[bytes, bytes] = (b"", b""),
    encoded: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A JSON answer with a list of vectors, sent in one piece if it is small, or if the client knows no other way.

    Args:
        request: What is answered; before HTTP/1.1 an answer has no chunks (RFC 9112, 6.1).
        vectors: ``(n, dim)`` float32, finite.
        before: What comes before the list.
        after: What comes after it.
        row: What surrounds a vector; ``%d`` in the second is its place.
        encoded: Write base64 of little-endian float32 and not numbers.
        headers: Of the answer.
    """
    head = dict(headers or {})
    if vectors.size <= _PIECE:
        return Response(b"".join([before, b"[", _rows(vectors, 0, row, encoded), b"]", after]), 200, head, _JSON)

    async def pieces() -> AsyncIterator[bytes]:
        step = max(1, _PIECE // vectors.shape[1])
        yield before + b"["
        for start in range(0, len(vectors), step):
            yield (b"," if start else b"") + _rows(vectors[start : start + step], start, row, encoded)
            await asyncio.sleep(0)
        yield b"]" + after

    if request.scope["http_version"] < "1.1":
        return Response(b"".join([piece async for piece in pieces()]), 200, head, _JSON)
    return StreamingResponse(pieces(), 200, head, _JSON)


def _rows(vectors: FloatArray, first: int, row: tuple[bytes, bytes], encoded: bool) -> bytes:
    opening, closing = row
    if not opening and not closing and not encoded:
        return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    texts = (_base64(vector) if encoded else orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
             for vector in vectors)  # fmt: skip
    return b",".join(opening + text + closing.replace(b"%d", b"%d" % (first + place))
                     for place, text in enumerate(texts))  # fmt: skip


def _base64(vector: FloatArray) -> bytes:
    return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'


def _field(data: Mapping[str, Any], name: str, kind: type, expected: str) -> Any:
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise Refusal("invalid", f"{name}: got {_kind(value)}, expected {expected}", param=name)
    return value


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
