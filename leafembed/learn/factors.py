"""The token table as a product of two matrices, ``A (vocabulary, rank)`` and ``B (rank, hidden)``.

A plain sentence-transformers model has no place for two matrices, so its folder holds the product, and the factors lie
beside it in a file of their own. The INT8 export stores the factors instead of the product. The two stay equal only as
long as the table is not trained, which the recipe makes sure of.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from leafembed.errors import RecipeError
from leafembed.types import Factors, FloatArray

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

__all__ = ["FACTOR_FILE", "carry_factors", "factorise", "factorise_table", "read_factors", "write_factors"]

FACTOR_FILE = "token_table.safetensors"
"""Name of the file with the factors, within a student's folder."""


def factorise(table: FloatArray, rank: int, counts: NDArray[np.int64] | None = None) -> Factors:
    """The product of two matrices that is nearest to a token table: a truncated SVD of its rows, weighted.

    Minimises ``sum over tokens of w |row - a B|^2``, in which ``w`` is ``counts + 1``, so that frequent tokens lose
    least and unseen ones still count. The rows of ``B`` are orthonormal.

    Args:
        table: ``(vocabulary, hidden)``.
        rank: At most ``hidden``.
        counts: How often each token occurs in a sample, ``(vocabulary,)``; ``None``: all alike.
    """
    weights = np.ones(len(table)) if counts is None else counts + 1.0
    moment = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), 16_384):  # in double precision, a piece at a time
        rows = table[start : start + 16_384].astype(np.float64)
        moment += rows.T @ (rows * weights[start : start + 16_384, None])
    _, vectors = np.linalg.eigh(moment)
    right = np.ascontiguousarray(vectors[:, ::-1][:, :rank].T.astype(np.float32))
    return Factors(rows=table @ right.T, matrix=right)


def factorise_table(student: SentenceTransformer, rank: int, texts: Sequence[str]) -> Factors:
    """Lower the rank of a student's token table, weighted by token frequency in ``texts``; return the factors.

    The table becomes their product.

    Raises:
        RecipeError: If two matrices of this rank would hold no fewer weights than the table.
    """
    import torch

    weight = student[0].auto_model.get_input_embeddings().weight
    vocabulary, hidden = weight.shape
    largest = (vocabulary * hidden - 1) // (vocabulary + hidden)
    if rank > largest:
        raise RecipeError(
            f"student.table_rank: got {rank}, expected at most {largest} for a {vocabulary} x {hidden} table"
        )
    counts = np.zeros(vocabulary, dtype=np.int64)
    for start in range(0, len(texts), 4096):
        for ids in student.tokenizer(list(texts[start : start + 4096]), add_special_tokens=False)["input_ids"]:
            np.add.at(counts, ids, 1)
    factors = factorise(weight.detach().cpu().numpy(), rank, counts)
    weight.data = torch.from_numpy(factors.rows @ factors.matrix)
    return factors


def write_factors(folder: Path, factors: Factors) -> None:
    """Write the factors beside a student."""
    save_file({"A": factors.rows, "B": factors.matrix}, folder / FACTOR_FILE)


def read_factors(folder: Path) -> Factors | None:
    """The factors beside a student; ``None`` where its table is not factorised."""
    path = folder / FACTOR_FILE
    if not path.is_file():
        return None
    found = load_file(path)
    return Factors(rows=found["A"], matrix=found["B"])


def carry_factors(initial: Path, target: Path) -> None:
    """Copy the factors of a student, if it has any, beside what training made of it; the table is the same in both."""
    if (initial / FACTOR_FILE).is_file():
        shutil.copyfile(initial / FACTOR_FILE, target / FACTOR_FILE)
