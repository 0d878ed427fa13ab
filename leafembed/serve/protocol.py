"""uvicorn's HTTP protocol with what it lacks: deadlines for slow senders and readers, bounds on connections and heads.

uvicorn itself waits for ever for the end of a head or a body, keeps a head of any size, and keeps the unsent rest of an
answer for a client that reads nothing. Where a request asks for another protocol too, as Java's client
does, its parser passes over the body; here such a request is served as what it is.

A client that sends all of a request before it reads would not see why it was refused: what is closed with bytes unread
is reset, and the answer is lost with it. So its end is marked, and what still comes is thrown away (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from leafembed.serve.logs import log_request
from leafembed.serve.metrics import Metrics
from leafembed.serve.refusals import Refusal, family_of
from leafembed.serve.settings import Limits

__all__ = ["protocol_of"]

_FLUSH_S = 5.0
"""Seconds in which the end of an answer must be taken once its connection is closed."""

_SILENT_S = 2.0
"""Seconds without a byte after which one that was refused is taken to have sent all."""

_THROWN_BYTES = 256_000_000
"""Most bytes that are thrown away for one that was refused; none of them is kept."""


def protocol_of(limits: Limits, metrics: Metrics) -> type[HttpToolsProtocol]:
    """Return the protocol of one server, with its limits, its counters and its connections."""
    return type("Protocol", (_Protocol,), {"limits": limits, "metrics": metrics, "open_now": set()})


class _HeadTooLongError(Exception):
    """Raised inside the parser, which gives up on the request."""


class _Protocol(HttpToolsProtocol):
    limits: ClassVar[Limits]
    metrics: ClassVar[Metrics]
    open_now: ClassVar[set[Any]]
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _silent: asyncio.TimerHandle | None = None
    _abort: asyncio.TimerHandle | None = None
    _thrown = 0
    _left = 0
    _moved = 0.0
    _ending = False
    _since = 0.0
    _in_body = False
    _head = 0
    _counted = 0
    _again = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        link = SimpleNamespace(write=transport.write, is_closing=self._is_closing, close=self._close_well)
        self._link = cast("asyncio.Transport", link)  # as a request uses it, which knows no better way to close
        if len(self.open_now) >= self.limits.connections:
            transport.close()
            self._note("connections")
            return
        self.open_now.add(self)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_now.discard(self)
        for timer in (self._late, self._unread, self._silent, self._abort):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.transport = self.transport
        self._link = self.transport  # it holds this protocol, which holds it
        self._unset_keepalive_if_required()  # uvicorn keeps a connection that was reset, body and all, until it is due

    def data_received(self, data: bytes) -> None:
        if self._silent is not None:
            self._throw_away(data)
            return
        if self._late is None:
            self._begin()
        most = self.limits.head_bytes
        for start in range(0, len(data), most):  # what follows a body within a piece is not counted
            piece = data[start : start + most]
            self._head += len(piece)
            self._feed(piece)
            # Of a head or trailer that has not ended the parser keeps all, and tells of a header only when it is whole.
            if self._head > most:
                self._refuse(self._too_long())
            if self._is_closing():
                return

    def on_message_begin(self) -> None:
        self._in_body, self._counted = False, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if not self._in_body:  # a trailer must not be taken for one of the head, a key least of all (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":  # which no head is without
            self._again = self._without_upgrade()
            return
        super().on_headers_complete()
        self.cycle.transport = self._link
        self._in_body, self._head = True, 0

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._end()
        self._in_body, self._head = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._silent is None:  # else nothing that still comes is a request
            super().on_response_complete()

    def shutdown(self) -> None:
        """The server ends, and does not wait for what is thrown away."""
        self._ending = True
        if self._silent is not None:
            self._close()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in JSON too; its path, and so its family, is not known."""
        self._refuse(self._too_long() if self._counted > self.limits.head_bytes else Refusal("malformed", msg))

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

    def _too_long(self) -> Refusal:
        part = "end" if self._in_body else "head"
        return Refusal("head_too_large", f"the {part} of the request has more than {self.limits.head_bytes} bytes")

    def _refuse(self, refusal: Refusal) -> None:
        if self._is_closing():
            return
        if self.pipeline or (self._in_body and self.cycle.response_started):  # it would be taken for another's answer
            self._note(refusal.kind)
        else:
            number, (status, body) = secrets.token_hex(8), family_of("").answer(refusal)
            content = orjson.dumps(body)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json; charset=utf-8\r\n"
            head += f"content-length: {len(content)}\r\nx-request-id: {number}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + content)
            self._note(refusal.kind, status, number)
        if self.pipeline:  # one whose answer is not written yet
            self.transport.close()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # it writes no more
            self.cycle.message_event.set()
        self._linger()

    def _note(self, kind: str, status: int = 0, number: str = "") -> None:
        self.metrics.unread(kind, status)
        log_request(number, status, self.loop.time() - self._since if self._since else 0.0, kind=kind)

    def _is_closing(self) -> bool:
        return self._silent is not None or self.transport.is_closing()

    def _close_well(self) -> None:
        """Close the connection once its last answer is written."""
        if self.pipeline:  # there are further requests, which get none
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Throw away what comes until the client ends, is silent, or its time for the request is over."""
        if self._ending or self.transport.is_closing():
            self.transport.close()
            return
        with suppress(OSError):  # it is gone already
            self.transport.write_eof()
        self.flow.resume_reading()
        if self._late is None:  # this one began in the same piece as the one before it
            self._begin()
        self._silent = self.loop.call_later(_SILENT_S, self._close_silent)

    def _close_silent(self) -> None:
        if self._being_read():  # a client that reads its answer has nothing to say
            self._silent = self.loop.call_later(_SILENT_S, self._close_silent)
        else:
            self._close()

    def _being_read(self) -> bool:
        """Whether a part of the answer is not sent yet, and the client took some of it lately."""
        left, now = self.transport.get_write_buffer_size(), self.loop.time()
        if left != self._left:
            self._left, self._moved = left, now
        return left > 0 and now - self._moved < self.limits.send_s

    def _throw_away(self, data: bytes) -> None:
        self._thrown += len(data)
        if self._silent is not None:
            self._silent.cancel()
        if self._thrown > _THROWN_BYTES:
            self._close()
        else:
            self._silent = self.loop.call_later(_SILENT_S, self._close_silent)

    def _begin(self) -> None:
        # A little later than the border, which says why where it can.
        self._since = self.loop.time()
        self._late = self.loop.call_later(self.limits.receive_s + 1.0, self._close_late)

    def _end(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close_late(self) -> None:
        self._late = None
        if self._silent is not None and self._being_read():
            self._late = self.loop.call_later(self.limits.receive_s, self._close_late)
            return
        if self._head and not self._in_body and self._silent is None:
            self._note("slow")
        self._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            self._abort = self.loop.call_later(_FLUSH_S, self.transport.abort)
