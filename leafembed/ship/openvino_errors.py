"""What OpenVINO says when something fails, for people to read."""

from __future__ import annotations

from leafembed.errors import first_line

__all__ = ["engine_error"]

_PLACES = ("Exception from ", "Check '")
"""How lines begin that name a place in its own source."""


def engine_error(error: Exception) -> str:
    """Return the first line of an error of OpenVINO's that names no place in its source, or else the first line."""
    said = (line for line in str(error).splitlines() if line.strip() and not line.startswith(_PLACES))
    return next(said, first_line(error))
