"""Makes a corpus of the sources that a test writes, and takes its texts out again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leafembed.learn.data import prepare_corpus
from leafembed.learn.overlap import JudgedSet
from leafembed.recipe_text import DataConfig, Source
from leafembed.text import normalise_text
from leafembed.types import Corpus, Row


def lines(n: int, word: str = "word") -> list[str]:
    return [f"{word} number {i}" for i in range(n)]


def corpus(
    root: Path,
    *sources: Source,
    seed: int = 0,
    prompt_name: str | None = None,
    judged: Sequence[str] = (),
    **config: Any,
) -> Corpus:
    """The corpus of ``sources`` below ``root``, kept in ``root / "kept"``; no text of ``judged`` may be in it."""
    config = DataConfig(root=root, sources=sources, **({"validation_rows": 16} | config))
    kept = root / "kept"
    texts = frozenset(map(normalise_text, judged))
    sets = {"sts/judged": JudgedSet(frozenset((text,) for text in texts), texts)} if texts else {}
    return prepare_corpus(config, kept, seed=seed, prompt_name=prompt_name, judged=sets)


def texts(rows: Iterable[Row]) -> list[str]:
    return [row.text for row in rows]


def both(found: Corpus) -> list[Row]:
    """Rows to train on, then rows held out."""
    return [*found.train, *found.validation]
