"""What stands between the network and the routes: who may ask, how much, for how long; ids, log, and errors in shape.

One ASGI wrapper reads a body up to its limit, hands it on whole, watches for a client that leaves, and turns whatever
is raised into the family's error. Browsers send cross-site requests to servers on their own machine; since any content
type is read as JSON here, as Ollama does, a server without keys answers only to the names of its own machine.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.exceptions import HTTPException
from starlette.routing import Match, Router

from leafembed.serve.body import ENCODINGS, ClientGoneError, read_body
from leafembed.serve.embedding import Service
from leafembed.serve.logs import SERVER_LOG, log_request
from leafembed.serve.refusals import Family, Refusal, family_of
from leafembed.serve.wire import BODY

__all__ = ["Border"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN = ("/health/live", "/health/ready", "/metrics")
"""Paths of probes and scrapers, which have no key and are answered while the server ends."""

_WITHOUT_KEY = (*_OPEN, "/ui")
"""Paths that need no key; the page has a field for it, and what it shows comes by requests that do need one.

They take no body: else whoever has no key could fill the room for the bodies of those who have one.
"""

_SECONDS_TO_COME_BACK = 1
_ID = re.compile(rb"[\w.-]{1,64}")
_log = logging.getLogger(SERVER_LOG)


@dataclass(slots=True)
class _Exchange:
    """One request and what is known of its answer."""

    scope: _Scope
    receive: _Receive
    send: _Send
    family: Family
    id: str
    start: float = field(default_factory=time.perf_counter)
    status: int = 0
    kind: str = ""
    held: int = 0

    @property
    def encoding(self) -> str:
        return self.header(b"content-encoding").strip().lower()

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")


class Border:
    """The ASGI wrapper around the routes."""

    def __init__(self, app: Router, service: Service) -> None:
        self.app = app
        self.service = service
        self.state = self  # request.app.state.service, as in any Starlette application
        self.at_work = 0
        self.held = 0  # bytes of bodies, of all requests at work

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Handle one connection's message as ASGI says."""
        scope["app"] = self  # what routes find their service by
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        given = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
        number = given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)
        exchange = _Exchange(scope, receive, send, family_of(path), number)
        self.at_work += 1
        self.service.metrics.at_work.inc()
        try:
            await self._answer(exchange)
        finally:
            self.at_work -= 1
            self.held -= exchange.held
            self.service.metrics.at_work.dec()
            self._note(exchange)
            scope.pop(BODY, None)  # uvicorn keeps the scope for as long as the connection is silent

    async def _answer(self, exchange: _Exchange) -> None:
        limits = self.service.settings.limits
        try:
            try:
                async with asyncio.timeout(limits.receive_s):
                    self._check(exchange)
                    exchange.scope[BODY] = await read_body(
                        exchange.receive,
                        limit=0 if exchange.scope["path"] in _WITHOUT_KEY else limits.body_bytes,
                        encoding=exchange.encoding,
                        count=partial(self._hold, exchange),
                    )
            except TimeoutError:
                raise Refusal("slow", f"the request did not arrive within {limits.receive_s:.0f} s") from None
            await self._route(exchange)
        except Refusal as refusal:
            if refusal.kind == "failed":
                _log.error("request %s failed: %s", exchange.id, refusal)
            await self._refuse(exchange, refusal)
        except HTTPException as error:
            await self._refuse_route(exchange, error)
        except ClientGoneError:
            exchange.status, exchange.kind = 499, "canceled"
        except asyncio.CancelledError:  # its time after SIGTERM is over; uvicorn would say so in plain text
            if exchange.status or not self.service.draining:
                raise
            ending = Refusal("unavailable", "the server ends before the answer", retry_after=_SECONDS_TO_COME_BACK)
            await self._refuse(exchange, ending)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic in a tokenizer's Rust is no Exception; uvicorn would answer it in plain text
            _log.exception("request %s failed", exchange.id)
            await self._refuse(exchange, Refusal("failed", f"internal error; the server's log has it as {exchange.id}"))

    def _hold(self, exchange: _Exchange, size: int) -> None:
        """Count bytes of a body that are kept."""
        exchange.held += size
        self.held += size
        if self.held > self.service.settings.limits.bodies_bytes:
            raise self.service.busy()

    async def _route(self, exchange: _Exchange) -> None:
        """Run the route until it answers, its time is over, or the client leaves."""
        limits, gone = self.service.settings.limits, asyncio.Event()
        replayed = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": exchange.scope[BODY], "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self.app(exchange.scope, receive, self._sender(exchange)))
        leaving = asyncio.ensure_future(_left(exchange.receive))
        try:
            done, _ = await asyncio.wait({work, leaving}, timeout=limits.answer_s, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                await work
            elif exchange.status:  # the answer is being sent, piece by piece, each with a limit of its own
                await work
            elif leaving in done:
                raise ClientGoneError
            else:
                raise Refusal("late", f"no answer within {limits.answer_s:.0f} s", retry_after=_SECONDS_TO_COME_BACK)
        finally:
            gone.set()
            for task in (work, leaving):
                if not task.done():
                    task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    def _sender(self, exchange: _Exchange) -> _Send:
        limits = self.service.settings.limits

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", exchange.id.encode())]
            try:
                async with asyncio.timeout(limits.send_s):
                    await exchange.send(message)
            except TimeoutError:
                raise ClientGoneError from None

        return send

    def _check(self, exchange: _Exchange) -> None:
        service, limits = self.service, self.service.settings.limits
        path = exchange.scope["path"]
        hosts = sum(name == b"host" for name, _ in exchange.scope["headers"])
        if hosts > 1:  # a proxy may believe the other one
            raise Refusal("malformed", "Host: got it more than once")
        if not hosts and exchange.scope["http_version"] == "1.1":  # RFC 9112, 3.2
            raise Refusal("malformed", "Host: missing, expected in every HTTP/1.1 request")
        self._check_caller(exchange, path)
        if path in _OPEN:
            return
        if service.draining:
            raise Refusal("unavailable", "the server is ending", retry_after=_SECONDS_TO_COME_BACK)
        if self.at_work > limits.requests:
            raise service.busy()
        if exchange.encoding not in ENCODINGS:
            raise Refusal("encoding", "content-encoding: expected none or gzip")
        length = exchange.header(b"content-length")
        if length.isdecimal() and int(length[:20]) > limits.body_bytes:
            raise Refusal("too_large", f"the body has {length[:20]} bytes, at most {limits.body_bytes} are taken")

    def _check_caller(self, exchange: _Exchange, path: str) -> None:
        settings = self.service.settings
        if settings.keys:
            scheme, _, token = exchange.header(b"authorization").partition(" ")
            key = exchange.header(b"x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
            if path not in _WITHOUT_KEY and not settings.knows(key):
                raise Refusal("unauthorized", "API key: missing or wrong; send X-API-Key or Authorization: Bearer")
            return
        host = _host(exchange.header(b"host"))
        if not settings.admits(host):
            raise Refusal("forbidden", "Host: not a name of this machine; start the server with --allow-host or a key")
        origin = exchange.header(b"origin")
        if origin and not self._is_own(origin, host):
            raise Refusal("forbidden", "Origin: another site's pages may not use this server without an API key")

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            name = urlsplit(origin).hostname or ""
        except ValueError:
            return False
        own = self.service.settings
        return name == host or (own.loopback and own.admits(name))

    async def _refuse_route(self, exchange: _Exchange, error: HTTPException) -> None:
        if error.status_code == 404:
            await self._refuse(exchange, Refusal("no_route", "there is nothing at this path"))
        else:
            allow = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            await self._refuse(exchange, Refusal("no_method", "the path does not take this method"), allow=allow)

    async def _refuse(self, exchange: _Exchange, refusal: Refusal, *, allow: str = "") -> None:
        exchange.kind = refusal.kind
        if exchange.status:  # half an answer is out already; all that is left is to break it off
            raise ConnectionError("an answer could not be finished")
        exchange.status, body = exchange.family.answer(refusal)
        content = orjson.dumps(body)
        headers = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"content-length", str(len(content)).encode()),
            (b"x-request-id", exchange.id.encode()),
        ]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", str(refusal.retry_after).encode()))
        if refusal.kind == "unauthorized":
            headers.append((b"www-authenticate", b'Bearer realm="leaf"'))
        if allow:
            headers.append((b"allow", allow.encode()))
        if refusal.kind in ("too_large", "slow", "encoding"):  # the rest of the body is not read
            headers.append((b"connection", b"close"))
        try:
            await exchange.send({"type": "http.response.start", "status": exchange.status, "headers": headers})
            await exchange.send({"type": "http.response.body", "body": content})
        except OSError:
            exchange.kind = "canceled"

    def _note(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.start
        metrics, family = self.service.metrics, exchange.family.name
        route = self._template(exchange.scope)
        metrics.requests.labels(family, route, str(exchange.status)).inc()
        metrics.seconds.labels(family).observe(seconds)
        if exchange.kind:
            metrics.refusals.labels(family, exchange.kind).inc()
        log_request(exchange.id, exchange.status, seconds, method=exchange.scope["method"], route=route,
                    size=len(exchange.scope.get(BODY, b"")), kind=exchange.kind)  # fmt: skip

    def _template(self, scope: _Scope) -> str:
        """The route of a request, also of one that was refused on its way there."""
        route = scope.get("route")
        if route is None:
            route = next((route for route in self.app.routes if route.matches(scope)[0] is not Match.NONE), None)
        return getattr(route, "path", "other")


async def _left(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _host(header: str) -> str:
    """The host of a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header
