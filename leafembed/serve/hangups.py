"""SIGHUP, taken before anything else is done, and remembered until somebody can do what it asks for."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["HangUps"]


class HangUps:
    """From here on SIGHUP ends this process no more: it is noted, where signals can be taken, in the main thread."""

    def __init__(self) -> None:
        self._noted = False
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self._note)

    def taken(self) -> bool:
        """Whether SIGHUP came since this was asked last."""
        noted, self._noted = self._noted, False
        return noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True  # no lock: this runs in the midst of whatever the main thread does
