"""What the server writes to stderr: a JSON line for each event, and, if wanted, for each request."""

from __future__ import annotations

import logging
import sys

import orjson

__all__ = ["ACCESS_LOG", "SERVER_LOG", "configure_logs"]

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


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
