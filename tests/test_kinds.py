"""What a task of each type scores is what it can be resampled from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder

from leafembed.judge.floors import RandomEncoder
from leafembed.judge.intervals import STATISTICS
from leafembed.judge.kinds import KINDS
from leafembed.judge.tasks import load_tasks

ENCODERS = [HashEncoder(16), RandomEncoder(16)]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["hash", "random"])
def test_every_item_drawn_once_is_the_score(eval_data: Path, encoder: HashEncoder) -> None:
    tasks = load_tasks(eval_data, ["*"])
    assert {task.type for task in tasks} == {kind.type for kind, _ in KINDS.values()}
    used = set()
    for task in tasks:
        for part in task.parts:
            scored = part.score(lambda texts, prompt_name: encoder.encode(texts))
            values = scored.items.values
            assert len(values) == part.n
            (once,) = STATISTICS[scored.items.statistic](values, np.ones((1, part.n), dtype=np.int64))
            assert once == pytest.approx(scored.scores[task.metric]), task.id
            used.add(scored.items.statistic)
    assert used == set(STATISTICS)
