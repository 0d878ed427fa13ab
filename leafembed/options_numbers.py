"""Numbers on the command line, and what is said of those that do not fit."""

from __future__ import annotations

import argparse

__all__ = ["amount", "port", "positive", "seconds", "size"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def amount(text: str, *, or_else: str = "") -> float:
    """A number above 0; ``or_else`` is what else the error says is expected."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number{or_else}")
    return value


def seconds(text: str) -> float:
    """A number of seconds, 0 for never."""
    return 0.0 if text in ("0", "0.0") else amount(text, or_else=", or 0 for never")


def port(text: str) -> int:
    """A port of TCP, 0 for any."""
    value = _whole(text, least=0)
    if value > 65_535:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a port of at most 65535")
    return value


def size(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    value = int(text) if text.isdecimal() else -1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
    return value
