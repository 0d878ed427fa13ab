"""The section of a recipe that says what text is learned from.

``recipe.py`` and ``recipe_learn.py`` hold the others. A default lives here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from leafembed.errors import require, require_at_least

__all__ = ["DataConfig", "Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place that training text comes from: ``[[data.sources]]``."""

    named: Literal["", "all-nli", "stsb", "ms_marco"] = ""
    """Public dataset known by name: fills ``hub``, ``revision``, ``files`` and columns; empty: none."""
    path: str = ""
    """File or glob below ``data.root``: .txt, .jsonl or .parquet, .gz of the first two; empty with ``hub``."""
    hub: str = ""
    """Dataset id on a model hub, instead of a local path; needs ``revision`` and ``files``."""
    revision: str = ""
    """Commit of the hub dataset; a name such as ``main`` is refused, since it moves."""
    files: str = "*.parquet"
    """Glob of the files to read within the hub dataset."""
    text: str = "text"
    """Column of the text."""
    positive: str = ""
    """Column of a text with the same meaning or the answer; empty: none."""
    negative: str = ""
    """Column of a hard negative; empty: none."""
    positive_lang: str = "lang_pair"
    """Column of the positive's language; rows without it: the language of the text."""
    lang: str = ""
    """Language tag of every row, where rows carry none; empty: read the row's ``lang`` column, else ``und``."""
    prompt_name: str | None = None
    """Teacher prompt of the text; None: ``teacher.prompt_name``."""
    positive_prompt_name: str | None = None
    """Teacher prompt of positives and negatives; None: the same as of the text."""
    roles: tuple[str, ...] = ()
    """Further teacher prompts that the text is learned with, a row for each; useful with ``student.prompts``."""
    positive_target: Literal["own", "text"] = "own"
    """Teacher vector that a positive learns; own: its own; text: that of the text which it translates."""
    weight: float = 1.0
    """Weight of each row in the draw of ``data.max_rows`` within its language; 0 leaves the source out."""
    max_rows: int | None = None
    """Most rows to read from this source, sampled evenly over it; None: all."""
    licence: str = ""
    """Licence of the text, shown on the card."""
    origin: str = ""
    """Where the text was taken from, shown on the card."""

    def __post_init__(self) -> None:
        require_at_least("data.sources", self, weight=0, max_rows=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Training text."""

    root: Path = Path()
    """Folder that source paths are relative to; with ``--set``, those of the mixture too."""
    sources: tuple[Source, ...] = ()
    """Places to read, one table each; at least one, here or in ``mixture``."""
    mixture: Path | None = None
    """TOML file with further ``[[sources]]`` and the weights ``[languages]`` and ``[lengths]``; None: none."""
    languages: tuple[str, ...] = ()
    """Language tags to keep; empty: all."""
    max_rows: int | None = None
    """Rows to draw for training, balanced over languages (a pair is one row); None: all there are, not balanced."""
    temperature: float = 2.0
    """Balance of ``max_rows``: a language with n rows weighs n^(1/temperature); 1 keeps the proportions."""
    language_weights: Mapping[str, float] = field(default_factory=dict)
    """Factor on a language's share of ``max_rows``, e.g. { en = 2.0 }; 1 for those not named. ``deu`` is ``de``."""
    length_weights: Mapping[str, float] = field(default_factory=dict)
    """Factor on the chance of a row by its length: short (below 100 characters), medium (below 500), long."""
    mine_negatives: int = 0
    """Hardest candidates, by the teacher's vectors, of which a pair without a negative gets one; 0: none are mined."""
    negative_margin: float = 0.05
    """A mined negative's cosine to the text lies below the positive's by at least this share of it."""
    min_chars: int = 3
    """Shorter texts are dropped."""
    max_chars: int = 20_000
    """Longer texts are cut at this many characters."""
    max_line_bytes: int = 262_144
    """A longer line is an error, since it is usually a file that is not made of lines."""
    validation_rows: int = 1_000
    """Texts held out from training."""

    def __post_init__(self) -> None:
        require_at_least("data", self, mine_negatives=0, negative_margin=0)
        for name, limits in (("language_weights", self.language_weights), ("length_weights", self.length_weights)):
            require(all(value >= 0 for value in limits.values()), f"data.{name}", dict(limits), "factors of at least 0")
        known = {"short", "medium", "long"}
        require(known >= set(self.length_weights), "data.length_weights", list(self.length_weights), str(sorted(known)))
        require_at_least("data", self, temperature=1, validation_rows=16, max_rows=32, min_chars=1, max_chars=8)
