from __future__ import annotations

from leafembed.learn.history import best_evaluation, evaluations_without_gain, history, less_is_better, metric_key

LOG = [
    {"step": 0, "eval_dev_mean": 0.9, "eval_dev_STS": 0.9, "eval_validation_loss": 1.0, "epoch": 0},
    {"step": 2, "loss": 0.5, "distillation": 0.4, "grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.5},
    {"step": 2, "eval_dev_mean": 0.5, "eval_dev_STS": 0.5, "eval_validation_loss": 0.6},
    {"step": 2, "alarm": "below the floor"},
    {"step": 4, "eval_dev_mean": 0.7, "eval_dev_STS": 0.3, "eval_validation_loss": 0.8},
    {"step": 6, "eval_dev_mean": 0.7, "eval_dev_STS": 0.2, "eval_validation_loss": 0.7},
    {"step": 6, "train_runtime": 3.0, "train_loss": 0.5},
]


def test_names_of_metrics():
    assert [metric_key(name) for name in ("dev", "STS", "validation_alignment")] == [
        "eval_dev_mean",
        "eval_dev_STS",
        "eval_validation_alignment",
    ]
    assert [less_is_better(name) for name in ("dev", "STS", "validation_loss")] == [False, False, True]


def test_the_best_evaluation_is_the_first_of_the_best_after_the_start():
    assert best_evaluation(LOG, "dev")["step"] == 4
    assert best_evaluation(LOG, "STS")["step"] == 2
    assert best_evaluation(LOG, "validation_loss")["step"] == 2
    assert best_evaluation(LOG[:2], "dev") is None


def test_evaluations_without_gain_count_from_the_start():
    assert evaluations_without_gain(LOG, "dev") == 3
    assert evaluations_without_gain(LOG, "validation_loss") == 2
    assert evaluations_without_gain([], "dev") == 0


def test_one_entry_a_step():
    found = history(LOG)
    assert [entry["step"] for entry in found] == [0, 2, 4, 6]
    assert found[1] == {
        "step": 2,
        "loss": 0.5,
        "distillation": 0.4,
        "learning_rate": 0.1,
        "grad_norm": 1.0,
        "dev": 0.5,
        "dev_tasks": {"STS": 0.5},
        "validation": {"loss": 0.6},
        "alarms": ["below the floor"],
    }
