"""Gives freed memory back to the system: the C library keeps what was freed, needed again or not."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_back_memory"]


def give_back_memory() -> bool:
    """Ask glibc to return freed memory to the system; elsewhere nothing happens. Whether it was asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return False
    trim(0)
    return True
