"""Memory of a run; the other callbacks are tested by whole runs (test_train, test_resume, test_survival)."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

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
