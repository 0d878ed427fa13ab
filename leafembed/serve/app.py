"""The server as an ASGI application: routes of every family, health, metrics and the page, behind one border."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from leafembed.serve import ollama, openai, tei
from leafembed.serve.border import Border
from leafembed.serve.embedding import Service
from leafembed.serve.merged import EVERY_S, Shared
from leafembed.serve.openapi import document
from leafembed.serve.reloading import watch
from leafembed.serve.wire import answer

__all__ = ["create_app"]


def create_app(service: Service) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application of a service; its lifespan opens the first model and watches all bundles."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, service.models.default.model.load)
        beside = [asyncio.create_task(watch(service))]
        if service.shared is not None:
            beside.append(asyncio.create_task(_share(service, service.shared)))
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if service.shared is not None:
                service.shared.write(_own_metrics(service))
            for model in service.models.all:
                await loop.run_in_executor(None, model.close)

    routes = [
        *ollama.routes(),
        *openai.routes(),
        *tei.routes(),
        Route("/health/live", _live, methods=["GET"]),
        Route("/health/ready", _ready, methods=["GET"]),
        Route("/openapi.json", _document, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        Route("/ui", _page, methods=["GET"]),
        Route("/ui/card/{name}", _card, methods=["GET"]),
    ]
    # A router alone: the middleware of a Starlette application would answer errors in plain text before the border can.
    return Border(Router(routes, redirect_slashes=False, lifespan=lifespan), service)


async def _live(request: Request) -> Response:
    return answer({"status": "ok"})


async def _ready(request: Request) -> Response:
    service: Service = request.app.state.service
    reason = await service.probe()
    return answer({"status": reason or "ok"}, status=503 if reason else 200)


async def _document(request: Request) -> Response:
    return answer(document())


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    page = _own_metrics(service)
    if service.shared is not None:
        page = await asyncio.get_running_loop().run_in_executor(None, service.shared.page, page)
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def _own_metrics(service: Service) -> bytes:
    service.metrics.queue.set(service.admitted)
    return service.metrics.render()


async def _share(service: Service, shared: Shared) -> None:
    """Let the other processes know our metrics, for ever."""
    while True:
        await asyncio.get_running_loop().run_in_executor(None, shared.write, _own_metrics(service))
        await asyncio.sleep(EVERY_S)


async def _page(request: Request) -> Response:
    page = files("leafembed.serve").joinpath("page.html").read_bytes()
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    return Response(page, headers={"content-security-policy": policy}, media_type="text/html; charset=utf-8")


async def _card(request: Request) -> Response:
    """What the page shows of a bundle: its verdict, its scores and its card."""
    service: Service = request.app.state.service
    named = service.named(request.path_params["name"])
    model = named.model
    verdict: dict[str, Any] = model.about.manifest["verdict"]
    exits = {model.spec.exit: named.name}  # of this bundle, as far as they have names
    for other in service.models.all:
        if other.spec.path == model.spec.path:
            exits.setdefault(other.spec.exit, other.spec.name)
    card = await asyncio.get_running_loop().run_in_executor(None, _read_card, model.spec.path)
    return answer({
        "name": named.name,
        "passed": verdict["passed"],
        "checks": verdict["checks"],
        "dim": named.dim,
        "exit": model.spec.exit,
        "exits": [{"exit": exit, "name": name} for exit, name in exits.items()],
        "prompts": list(model.about.prompts),
        "max_seq_length": model.about.config.max_seq_length,
        "card": card,
    })  # fmt: skip


def _read_card(folder: Any) -> str:
    try:
        return str((folder / "README.md").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
