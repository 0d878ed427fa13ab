"""Gives memory back to the system after large requests, as training does between steps."""

from __future__ import annotations

import asyncio
import threading

from leafembed.trimming import give_back_memory

__all__ = ["LARGE_CHARACTERS", "Tidier"]

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
