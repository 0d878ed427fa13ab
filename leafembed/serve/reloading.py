"""Looks whether a bundle was replaced and serves the new one; one that does not open leaves the old one serving."""

from __future__ import annotations

import asyncio
import logging

from leafembed.serve.embedding import Service
from leafembed.serve.logs import SERVER_LOG
from leafembed.serve.models import Model

__all__ = ["reload_all", "watch"]

_log = logging.getLogger(SERVER_LOG)


async def watch(service: Service) -> None:
    """Look every ``settings.watch_s`` seconds, for ever; by the clock of the event loop, which no one can set back."""
    while service.settings.watch_s:
        await asyncio.sleep(service.settings.watch_s)
        for model in service.models.all:
            if model.changed():
                await _reload(service, model)


async def reload_all(service: Service) -> None:
    """Read every bundle again, as after SIGHUP; those that are open are opened again."""
    for model in service.models.all:
        await _reload(service, model)


async def _reload(service: Service, model: Model) -> None:
    name = model.spec.name
    try:
        await asyncio.get_running_loop().run_in_executor(None, model.reload)
    except Exception as error:  # whatever lies there must not end the server
        service.metrics.reloads.labels("failed").inc()
        _log.error("%s: the bundle at %s is not served, the old one goes on: %s", name, model.spec.path, error)
    else:
        service.metrics.reloads.labels("ok").inc()
        _log.warning("%s: serves the new bundle at %s", name, model.spec.path)
