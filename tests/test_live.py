from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from leafembed.learn.batches import plan_batches
from leafembed.learn.live import LiveView
from leafembed.recipe_learn import TrainConfig

PLAN = plan_batches(np.full(64, 10, dtype=np.int32), None, config=TrainConfig(batch_size=8, max_steps=8), limit=None,
                    seed=0)  # fmt: skip
LOG = [
    {"step": 4, "loss": 0.5, "distillation": 0.25, "alignment": 2.5, "learning_rate": 1e-4},
    {"step": 4, "eval_dev_mean": 0.75, "eval_dev_STS": 0.8, "eval_validation_loss": 0.6},
    {"step": 4, "alarm": "vectors have collapsed"},
]


def show(view, steps=(5, 6)):
    for step in steps:
        state = SimpleNamespace(global_step=step - 1, log_history=LOG)
        view.on_step_begin(None, state, None)
        state.global_step = step
        view.on_step_end(None, state, None)


def test_a_terminal_shows_rates_losses_scores_and_alarms():
    out = io.StringIO()
    view = LiveView(PLAN, Console(file=out, force_terminal=True, width=120, color_system=None))
    show(view)
    view.close()
    text = out.getvalue()
    for piece in ("step 6 of 8", "texts/s", "tokens/s", "left", "loss 0.5000 (distillation 0.2500, alignment 2.5000)",
                  "dev 0.7500 at step 4 (STS 0.8000)", "ALARM  vectors have collapsed"):  # fmt: skip
        assert piece in text, piece
    assert view.live is None


def test_elsewhere_there_are_lines_now_and_then(capsys):
    view = LiveView(PLAN)
    show(view)
    assert capsys.readouterr().err == ""
    show(view, steps=(7, 8))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training: step 8 of 8, ")
    assert line.endswith("0:00 left; loss 0.5000 (distillation 0.2500, alignment 2.5000)")


def test_the_rate_counts_this_sitting_only():
    view = LiveView(PLAN)
    view.first, view.seconds = 4, 2.0
    assert view.pace(6) == "step 6 of 8, 8 texts/s, 80 tokens/s, 0:02 left"


@pytest.mark.parametrize(("seconds", "text"), [(3, "0:03"), (125, "2:05"), (7384, "2:03:04")])
def test_time_left(seconds, text):
    view = LiveView(PLAN)
    view.first, view.seconds = 7, seconds
    view.plan = SimpleNamespace(texts_until=lambda step: step, tokens_until=lambda step: step, steps=9)
    assert view.pace(8).endswith(f"{text} left")
