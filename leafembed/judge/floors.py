"""What a student must beat to have learned anything: here, random vectors and a bag of words.

The other floors, an untrained student and a static token table, are real models that the learning side builds. These
two need no model. Random vectors show what each metric gives to pure chance, a bag of words what it gives to shared
words alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from leafembed.errors import MissingExtraError
from leafembed.reports import BAG_OF_WORDS, FLOOR, RANDOM
from leafembed.text import normalise_text
from leafembed.types import FloatArray, ModelRef

__all__ = ["BagOfWords", "RandomEncoder"]

_MOST_WORDS = 8_192  # as wide as a vector gets: 5,000 documents are then 170 MB
# Scripts without spaces between words, from Thai and Lao over Burmese and Khmer to kana and Han.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


class RandomEncoder:
    """A random unit vector for each text: the same text gives the same vector, in every process."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.ref = ModelRef(f"{FLOOR}{RANDOM}", dim)
        self._salt = f"{seed}\0".encode()

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return ``(n_texts, dim)`` float32, unit length; the prompt has no influence."""
        dim = self.ref.dim
        raw = b"".join(hashlib.shake_256(self._salt + text.encode()).digest(2 * dim) for text in texts)
        # Uniform in a cube rather than on the sphere: no metric here can tell. Halves keep a vector from being zero.
        vectors = np.frombuffer(raw, dtype="<i2").reshape(len(texts), dim).astype(np.float32) + 0.5
        unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


class BagOfWords:
    """Words weighted by how rare they are (tf-idf) in the set that is scored, so that it is the same in every run.

    A word counts ``(1 + log tf)(1 + log((1 + n) / (1 + df)))``. Words are what lies between spaces and punctuation;
    in scripts that do not separate words, pairs of neighbouring characters.
    """

    def __init__(self) -> None:
        self.ref = ModelRef(f"{FLOOR}{BAG_OF_WORDS}", _MOST_WORDS)
        self._last: tuple[frozenset[str], _Fitted] | None = None

    def fitted(self, texts: frozenset[str]) -> _Fitted:
        """Return the encoder that counts words in these texts: all of one evaluation set, as ``Task.texts`` has them.

        The last one is kept, since a set is scored language by language.

        Raises:
            MissingExtraError: If scikit-learn is not installed.
        """
        if self._last is None or self._last[0] is not texts:
            self._last = texts, _Fitted(self.ref, texts)
        return self._last[1]


class _Fitted:
    def __init__(self, ref: ModelRef, texts: Iterable[str]) -> None:
        try:
            from scipy.sparse import csr_array
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "eval") from error
        self._vectorizer = TfidfVectorizer(analyzer=_words, sublinear_tf=True, norm=None).fit(texts)
        self.ref = ref
        words, dim = len(self._vectorizer.vocabulary_), ref.dim
        self._fold: Any = None
        if words > dim:
            # More words than a vector has places share them, with random signs: errors cancel out on average.
            rng = np.random.default_rng(0)
            signs, places = rng.choice([-1.0, 1.0], words), rng.integers(dim, size=words)
            self._fold = csr_array((signs, (np.arange(words), places)), shape=(words, dim))

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Return ``(n_texts, at most dim)`` float32, unit length; the prompt has no influence."""
        counts = self._vectorizer.transform(texts)
        vectors: FloatArray = (counts if self._fold is None else counts @ self._fold).astype(np.float32).toarray()
        vectors[~vectors.any(axis=1), 0] = 1  # of words that were not counted, or that cancel out
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _words(text: str) -> list[str]:
    """The words of a text in the form in which texts are compared; of one without any, all of it."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normal = normalise_text(text)
    found: list[str] = []
    # It parts at spaces and punctuation and, unlike "\w" in Python, not at the vowel signs of Hindi or Thai.
    for word, _ in BertPreTokenizer().pre_tokenize_str(normal):
        if len(word) > 2 and _UNSPACED.search(word):
            found += map("".join, pairwise(word))
        elif any(map(str.isalnum, word)):
            found.append(word)
    return found or [normal]
