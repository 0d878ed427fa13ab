"""uvicorn's HTTP protocol with what it lacks: deadlines for slow senders and readers, bounds on connections and heads.

uvicorn itself waits for ever for the end of a head or a body, keeps a head of any size, and keeps the unsent rest of an
answer for a client that reads nothing. Where a request asks for another protocol too, as Java's client
does, its parser passes over the body; here such a request is served as what it is.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leafembed.serve.settings import Limits

__all__ = ["protocol_of"]

_FLUSH_S = 5.0
"""Seconds in which the end of an answer must be taken once its connection is closed."""


def protocol_of(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol of one server, with its limits and its count of connections."""
    return type("Protocol", (_Protocol,), {"limits": limits, "open_now": set()})


class _HeadTooLongError(Exception):
    """Raised inside the parser, which gives up on the request."""


class _Protocol(HttpToolsProtocol):
    limits: ClassVar[Limits]
    open_now: ClassVar[set[Any]]
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _in_body = False
    _head = 0
    _counted = 0
    _again = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.open_now) >= self.limits.connections:
            transport.close()
            return
        self.open_now.add(self)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_now.discard(self)
        self._end()
        self._read_again()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn keeps a connection that was reset, body and all, until it is due

    def data_received(self, data: bytes) -> None:
        if self._late is None:
            self._begin()
        if not self._in_body:
            self._head += len(data)
        self._feed(data)
        # A head that has not ended: the parser keeps all of it, and tells of a header only when it is whole.
        if not self._in_body and self._head > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(431, "Request Header Fields Too Large", self._too_long())

    def on_message_begin(self) -> None:
        self._in_body, self._counted = False, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":  # which no head is without
            self._again = self._without_upgrade()
            return
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._end()
        self._in_body, self._head = False, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in JSON too; its path, and so its family, is not known."""
        if self._counted > self.limits.head_bytes:
            self._refuse(431, "Request Header Fields Too Large", self._too_long())
        else:
            self._refuse(400, "Bad Request", msg)

    def pause_writing(self) -> None:
        """The client takes less than it is sent: it has its time to go on."""
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.send_s, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._read_again()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_FLUSH_S, self.transport.abort)  # no more than the rest of an answer is lost by that

    def _feed(self, data: bytes) -> None:
        """As uvicorn's ``data_received``, except that a head which asks for another protocol is read again without."""
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._again:
                    return
                data, self._again = self._again + data[upgrade.args[0] :], b""
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def _without_upgrade(self) -> bytes:
        """The head that was read, less what asks for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b" ".join((self.parser.get_method(), self.url, b"HTTP/" + version))]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _count(self, size: int) -> None:
        self._counted += size
        if self._counted > self.limits.head_bytes:
            raise _HeadTooLongError

    def _too_long(self) -> str:
        return f"the head of the request has more than {self.limits.head_bytes} bytes"

    def _refuse(self, status: int, reason: str, message: str) -> None:
        content = orjson.dumps({"error": message})
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json; charset=utf-8\r\n"
        head += f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _begin(self) -> None:
        # A little later than the border, which says why where it can.
        self._late = self.loop.call_later(self.limits.receive_s + 1.0, self._close)

    def _end(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(_FLUSH_S, self.transport.abort)
