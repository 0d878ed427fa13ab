"""Numbers on the command line, and what is said of those that do not fit."""

from __future__ import annotations

import argparse

__all__ = ["amount", "port", "positive", "seconds", "size"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def amount(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return value


def seconds(text: str) -> float:
    """A number of seconds, 0 for never."""
    return 0.0 if text in ("0", "0.0") else amount(text)


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
