"""Memory, log and alarms of a run; other callbacks are in test_train_choice, test_resume and test_survival."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from training_runs import Watch, go
from transformers import TrainerCallback

from leafembed.errors import StoppedError
from leafembed.learn import callbacks
from leafembed.learn.callbacks import TRIM_STEPS, Trim

FREED = """
import json
from leafembed.learn.callbacks import give_back_memory

def megabytes():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) // 1024

blocks = [bytearray(b"x") * 60_000 for _ in range(4_000)]  # small enough for the heap, which only shrinks at its end
last = bytearray(b"x") * 60_000
del blocks
before = megabytes()
asked = give_back_memory()
print(json.dumps([asked, before, megabytes()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps freed memory; other C libraries have their own ways")
def test_freed_memory_goes_back_to_the_system():
    result = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    asked, before, after = json.loads(result.stdout)
    assert asked
    assert before - after > 100


def test_memory_is_given_back_now_and_then(monkeypatch):
    asked = []
    monkeypatch.setattr(callbacks, "give_back_memory", lambda: asked.append(True))
    for step in range(1, 2 * TRIM_STEPS + 2):
        Trim().on_step_end(None, SimpleNamespace(global_step=step), None)
    assert len(asked) == 2


def test_the_alarm_that_ends_a_run_is_in_its_log_and_drawn(toy_start, tmp_path):
    class Enough(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            state.log_history.append({"step": state.global_step, "alarm": f"too low at {state.global_step}"})
            if state.global_step == 3:
                raise StoppedError("enough", alarms=(), training={})

    drawn = []
    with pytest.raises(StoppedError):
        go(toy_start, tmp_path, callbacks=[Enough()], on_history=lambda history, best: drawn.append(history))
    assert "too low at 3" in (tmp_path / "work" / "history.jsonl").read_text(encoding="utf-8")
    assert drawn[-1][-1]["alarms"] == ["too low at 3"]


def test_callbacks_get_every_metric_and_their_alarms_are_kept(toy_start, tmp_path):
    watch, drawn = Watch(), []
    facts, _ = go(
        toy_start, tmp_path, callbacks=[watch], on_history=lambda history, best: drawn.append((history, best))
    )
    assert list(watch.seen) == [0, 3, 6, 9, 12]
    names = {"eval_dev_mean", "eval_dev_STS", "eval_validation_distillation", "eval_validation_alignment"}
    assert all(names <= metrics.keys() for metrics in watch.seen.values())
    assert [entry["alarms"] for entry in facts["history"] if "alarms" in entry] == [["all vectors are alike"]]
    assert "all vectors are alike" in (tmp_path / "work" / "history.jsonl").read_text(encoding="utf-8")
    assert len(drawn) == 5
    assert drawn[0][1] == 0
    assert drawn[-1] == (facts["history"], facts["best_step"])


def test_a_callback_can_end_training_for_good(toy_start, tmp_path):
    class Enough(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    facts, _ = go(toy_start, tmp_path, callbacks=[Enough()])
    assert (facts["steps"], facts["planned_steps"]) == (6, 12)
    assert go(toy_start, tmp_path)[1] == 0
