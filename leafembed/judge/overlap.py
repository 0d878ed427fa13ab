"""Whether a student's queries find in the teacher's index what the teacher's own queries find: no labels are needed.

A student in its teacher's space can serve an index that the teacher built: documents stay as they are, and only queries
are encoded by the student (asymmetric retrieval; LEAF, arXiv 2509.12539, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from leafembed.judge.metrics import IntArray, rank
from leafembed.types import FloatArray, check_vectors

__all__ = ["index_overlap"]

_RESAMPLES = 1_000
_BLOCK = 256  # queries at once: their 10 documents each, of 768 dimensions, are 8 MB


def index_overlap(documents: FloatArray, teacher: FloatArray, student: FloatArray, *, k: int) -> dict[str, Any]:
    """Return how far a student's queries agree with its teacher's on one index.

    Args:
        documents: ``(n_documents, dim)``, unit length, by the teacher.
        teacher: ``(n_queries, dim)``, unit length: the queries by the teacher.
        student: The same by the student.
        k: Results of a query to compare; fewer where there are not as many documents.

    Returns:
        ``documents``, ``queries``, ``k``; means over the queries: ``overlap`` (share of the teacher's first k that are
        among the student's, 0 to 1), ``first_kept`` (share of the teacher's first results that are among the student's
        first k), ``same_first``, ``cosine`` of the two query vectors, and ``kept`` (the teacher's cosine to what the
        student finds, as a share of that to what the teacher finds); and ``interval``, low and high end of the overlap
        at 95 % (bootstrap over queries).

    Raises:
        ValueError: If there is no query or document, or dimensions differ.
        NonFiniteError: If a vector is not finite or not of unit length.
    """
    n = len(teacher)
    if not n or not len(documents) or len(student) != n:
        raise ValueError(f"got {len(documents)} documents, {n} and {len(student)} queries, expected some and as many")
    if len({vectors.shape[1] for vectors in (documents, teacher, student)}) != 1:
        raise ValueError(
            f"got vectors of {documents.shape[1]}, {teacher.shape[1]} and {student.shape[1]} dimensions, expected one "
            "number: an index of one model is searched by another in its space only"
        )
    for name, vectors in (("documents", documents), ("teacher's queries", teacher), ("student's queries", student)):
        check_vectors(vectors, n=len(vectors), what=f"the {name}")
    k = min(k, len(documents))
    own, other = (rank(queries, documents, k=k) for queries in (teacher, student))
    shared = np.array([len(np.intersect1d(a, b)) / k for a, b in zip(own, other, strict=True)])
    found = [_cosines(teacher, documents, ranked).mean() for ranked in (other, own)]
    drawn = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(shared[drawn].mean(axis=1), [0.025, 0.975])
    return {
        "documents": len(documents),
        "queries": n,
        "k": k,
        "overlap": float(shared.mean()),
        "interval": [float(low), float(high)],
        "first_kept": float(np.mean([a[0] in b for a, b in zip(own, other, strict=True)])),
        "same_first": float((own[:, 0] == other[:, 0]).mean()),
        "kept": float(found[0] / found[1]),
        "cosine": float(np.sum(teacher * student, axis=1).mean()),
    }


def _cosines(queries: FloatArray, documents: FloatArray, ranked: IntArray) -> FloatArray:
    """Cosines of each query with its own documents, ``(n_queries, k)``; the other ones are never computed.

    Args:
        queries: ``(n_queries, dim)``, unit length.
        documents: ``(n_documents, dim)``, unit length.
        ranked: ``(n_queries, k)`` document indices.
    """
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(queries), _BLOCK))
    return np.concatenate([np.einsum("qd,qkd->qk", queries[block], documents[ranked[block]]) for block in blocks])
