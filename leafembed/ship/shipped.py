"""What comes with the project: the model that is used where no bundle is named, and texts to try one on."""

from __future__ import annotations

from pathlib import Path

from leafembed.errors import BundleError, DataError

__all__ = ["QUESTIONS", "ROOT", "SHIPPED", "shipped", "shipped_texts"]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where there is one."""

SHIPPED = ROOT / "models" / "leaf-embeddinggemma-int8"
"""Where the model lies in a checkout; an installed package does not carry it."""

QUESTIONS = Path("data") / "eval" / "retrieval" / "xquad_en" / "queries.jsonl.gz"
"""Where the texts lie, in this folder or in the checkout."""


def shipped() -> Path:
    """The folder of the model that comes with the project.

    Raises:
        BundleError: If it is not there.
    """
    if not SHIPPED.is_dir():
        raise BundleError(
            f"got no bundle, and {SHIPPED} is not there: a clone of the repository holds the model, a package from an "
            "index does not; name a bundle (leaf run makes one, leaf pull fetches one)"
        )
    return SHIPPED


def shipped_texts() -> Path:
    """The file of questions that come with the project.

    Raises:
        DataError: If it is not there.
    """
    for file in (QUESTIONS, ROOT / QUESTIONS):
        if file.is_file():
            return file
    raise DataError(
        f"--texts: got none, and {ROOT / QUESTIONS} is not there, which only a clone of the repository holds; name a "
        "file with a text a line"
    )
