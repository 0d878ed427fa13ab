"""How much of the evaluation sets the teacher's own training text holds, where that text is to be had.

Nothing can be dropped here, since the teacher has learned it; it is counted for the card. Text is read as training text
is, and overlap means the same (``overlap.py``).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leafembed.evidence import Contamination
from leafembed.learn.named import expand
from leafembed.learn.overlap import EvaluationTexts, JudgedSet, sets_fingerprint
from leafembed.learn.sources import read_source, source_files
from leafembed.recipe_text import DataConfig, Source
from leafembed.stages import file_sha256, fingerprint, once

__all__ = ["teacher_overlap"]


def teacher_overlap(
    sources: Sequence[Source], config: DataConfig, folder: Path, *, judged: Mapping[str, JudgedSet]
) -> tuple[Contamination, ...]:
    """Return for each evaluation set what text of the teacher's training touches; nothing if no source is given.

    Args:
        sources: Where that text is.
        config: The recipe's ``[data]``, for the folder that paths are relative to and the bound on lines.
        folder: Where the counts are kept; the same text and sets are compared once.
        judged: Evaluation sets by task id.

    Raises:
        DataError: If a source cannot be read.
    """
    sources = [one for source in sources for one in expand(source)]
    if not sources:
        return ()
    files = [source_files(source, config.root) for source in sources]
    config = dataclasses.replace(config, languages=(), min_chars=1)
    how = [config.max_chars, config.max_line_bytes]
    contents = [[file_sha256(path) for path in found] for found in files]
    key = fingerprint([dataclasses.asdict(source) for source in sources], how, contents, sets_fingerprint(judged))

    def build(target: Path) -> dict[str, Any]:
        target.mkdir(parents=True)
        evaluation, counts = EvaluationTexts(judged), Counter[str]()
        for source, found in zip(sources, files, strict=True):
            for _ in read_source(source, found, config, prompt_name=None, evaluation=evaluation, counts=counts):
                pass  # what overlaps is counted on the way
        return {"sets": evaluation.touched()}

    return tuple(Contamination(**entry) for entry in once(folder / key, key, build)["sets"])
