"""A request's body, counted while it arrives and while it is unpacked, so that neither can fill the memory."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from leafembed.serve.refusals import Refusal

__all__ = ["ENCODINGS", "ClientGoneError", "read_body"]

ENCODINGS = ("", "identity", "gzip")
"""Content encodings that are read."""

_GZIP = 16 + zlib.MAX_WBITS
_PIECE = 65_536
"""Bytes that are unpacked at a time."""


class ClientGoneError(Exception):
    """The client left, or takes nothing any more: nobody is there to answer."""


async def read_body(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    *,
    limit: int,
    encoding: str = "",
    count: Callable[[int], None] = lambda size: None,
) -> bytes:
    """Return the body of a request, unpacked.

    Args:
        receive: As ASGI gives it.
        limit: Most bytes as they arrive, and most bytes unpacked.
        encoding: One of :data:`ENCODINGS`.
        count: Told the bytes of each piece that is kept; what it raises ends the reading.

    Raises:
        Refusal: If it is over the limit, or not what ``encoding`` says.
        ClientGoneError: If it does not arrive.
    """
    pieces: list[bytes] = []
    arrived = size = 0
    unpacker = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece = message.get("body", b"")
        arrived += len(piece)
        for part in [piece] if unpacker is None else _unpacked(unpacker, piece):
            size += len(part)
            if size > limit:
                raise Refusal("too_large", f"the body has more than {limit} bytes")
            count(len(part))
            pieces.append(part)
        if arrived > limit:
            raise Refusal("too_large", f"the body has more than {limit} bytes")
        if not message.get("more_body", False):
            break
    if unpacker is not None and not unpacker.eof:
        raise Refusal("invalid", "the body ends before its gzip data does")
    return b"".join(pieces)


def _unpacked(unpacker: Any, packed: bytes) -> Any:
    """Yield what comes out of a piece, a little at a time."""
    while packed:
        if unpacker.eof:
            raise Refusal("invalid", "the body goes on after its gzip data")
        try:
            yield unpacker.decompress(packed, _PIECE)
        except zlib.error:
            raise Refusal("invalid", "the body is not gzip, as its content-encoding says") from None
        packed = unpacker.unconsumed_tail or unpacker.unused_data
