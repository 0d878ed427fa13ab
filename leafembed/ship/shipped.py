"""The model that comes with the project: what is used where no bundle is named."""

from __future__ import annotations

from pathlib import Path

from leafembed.errors import BundleError

__all__ = ["SHIPPED", "shipped"]

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "leaf-embeddinggemma-int8"
"""Where it lies in a checkout; an installed package does not carry it."""


def shipped() -> Path:
    """The folder of the model that comes with the project.

    Raises:
        BundleError: If it is not there.
    """
    if not SHIPPED.is_dir():
        raise BundleError(
            f"got no bundle, and {SHIPPED} is not there; name a bundle (leaf run makes one, leaf pull fetches one)"
        )
    return SHIPPED
