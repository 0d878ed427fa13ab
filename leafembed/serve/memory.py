"""Gives memory back to the system after large requests; the C library keeps what was freed, needed again or not.

The training's ``Trim`` does the same between steps. It lies on another floor and needs torch, so this is a second home.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading

__all__ = ["LARGE_CHARACTERS", "Tidier", "give_back_memory"]

LARGE_CHARACTERS = 200_000
"""Characters of a request after which freed memory is given back."""

_WAIT_S = 1.0
"""Seconds until then: its answer is out by then, and one time is enough for all requests that ended meanwhile."""


class Tidier:
    """Asks for it once after any number of large requests."""

    def __init__(self) -> None:
        self._due = False

    def used(self, characters: int) -> None:
        """Take note of a request of so many characters that ends; to be called on the event loop."""
        if characters > LARGE_CHARACTERS and not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_WAIT_S, self._tidy)

    def _tidy(self) -> None:
        self._due = False
        threading.Thread(target=give_back_memory, name="leaf-memory", daemon=True).start()


def give_back_memory() -> bool:
    """Ask glibc to return freed memory to the system; elsewhere nothing happens. Whether it was asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False
    trim(0)
    return True
