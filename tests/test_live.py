from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from leafembed.learn import live
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


ARGS = SimpleNamespace(eval_steps=3)


def show(view, steps=(5, 6)):
    for step in steps:
        state = SimpleNamespace(global_step=step - 1, log_history=LOG)
        view.on_step_begin(ARGS, state, None)
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


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set forward."""
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(live.time, "perf_counter", lambda: now.value)

    def forward(seconds):
        now.value += seconds

    return forward


def test_reading_texts_counts_as_training_and_evaluations_do_not(clock, capsys):
    view, state = LiveView(PLAN), SimpleNamespace(global_step=0, log_history=[])
    view.on_train_begin(ARGS, state, None)
    clock(50)
    view.on_evaluate(ARGS, state, None)  # before the first step
    for step in range(1, 5):
        if step > 1:
            clock(2)  # transformers draws the texts of a step before it says that the step begins
        view.on_step_begin(ARGS, state, None)
        clock(3 if step > 1 else 5)
        state.global_step = step
        view.on_step_end(ARGS, state, None)
        if step == 3:
            clock(70)
            view.on_evaluate(ARGS, state, None)
            clock(10)
            view.on_save(ARGS, state, None)
    assert view.seconds == 4 * 5
    # 4 steps of 5 s; evaluations of steps 6 and 8 at (50 + 70) / 2 s each, and their checkpoints at 10 s.
    assert view.pace(4) == "step 4 of 8, 2 texts/s, 16 tokens/s, 2:40 left"
    # That of step 6 itself comes after the step.
    assert view._pauses_left(6) == 2 * 70
    assert [view._pauses_left(done) / 70 for done in (0, 1, 3, 7, 8)] == [3, 3, 3, 1, 1]
