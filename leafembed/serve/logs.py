"""What the server writes to stderr: a JSON line for each event, and, if wanted, for each request."""

from __future__ import annotations

import json
import logging
import sys
import time

import orjson

__all__ = ["ACCESS_LOG", "SERVER_LOG", "configure_logs", "log_request"]

ACCESS_LOG = "leafembed.serve.access"
"""Logger of one line a request, JSON already; no text of users and no key is in it."""

SERVER_LOG = "leafembed.serve"
"""Logger of everything else."""


def configure_logs(*, access: bool) -> None:
    """Write the server's own log, uvicorn's and, if ``access``, the requests' to stderr.

    A line that cannot be written, on a full disk for example, is lost, and the request it belongs to is not.
    """
    logging.raiseExceptions = False
    for name, level in ((ACCESS_LOG, logging.INFO if access else logging.WARNING), (SERVER_LOG, logging.WARNING),
                        ("uvicorn.error", logging.ERROR), ("opentelemetry", logging.ERROR)):  # fmt: skip
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s") if name == ACCESS_LOG else _Lines())
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log_request(
    number: str, status: int, seconds: float, *, method: str = "", route: str = "other", size: int = 0, kind: str = ""
) -> None:
    """Write the line of a request.

    Args:
        number: Its id.
        status: Of the answer; 0: the connection was closed without one.
        seconds: From its arrival to its answer.
        method: Of HTTP; empty: what came was no request.
        route: Template of its path.
        size: Bytes of its body.
        kind: Why it was refused; empty: it was not.
    """
    logger = logging.getLogger(ACCESS_LOG)
    if logger.isEnabledFor(logging.INFO):
        line = {"time": round(time.time(), 3), "id": number, "method": method, "route": route, "status": status,
                "ms": round(seconds * 1000, 2), "bytes": size, "kind": kind}  # fmt: skip
        logger.info(json.dumps(line))


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
