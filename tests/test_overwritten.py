"""A bundle whose files are overwritten where they lie, as ``cp`` does it, while an encoder of it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from served import make_bundle, serving

SCRIPT = """
import sys
from pathlib import Path
import leafembed
folder = Path(sys.argv[1])
encoder = leafembed.load(folder, threads=1)
before = encoder.encode(["one"])
size = (folder / "model.bin").stat().st_size
with (folder / "model.bin").open("r+b") as file:
    file.write(bytes(size)) if sys.argv[2] == "zeroed" else file.truncate(0)
assert (encoder.encode(["one"]) == before).all()
encoder.encode(["two", "three one", "four"])
print("alive")
"""


@pytest.mark.parametrize("how", ["zeroed", "truncated"])
def test_an_encoder_goes_on_with_what_it_opened(tmp_path, how):
    bundle = make_bundle(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle), how], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_server_answers_as_before_and_does_not_take_up_what_does_not_verify(tmp_path):
    bundle = make_bundle(tmp_path)
    with serving({"leaf": bundle}) as served:
        status, before, _ = served.ask("/api/embed", {"model": "leaf", "input": "one"})
        assert status == 200
        (bundle / "model.bin").write_bytes(b"garbage")
        (bundle / "manifest.json").write_text("{}", encoding="utf-8")
        for text in ("one", "two three"):
            assert served.ask("/api/embed", {"model": "leaf", "input": text})[0] == 200
        assert served.ask("/api/embed", {"model": "leaf", "input": "one"})[1]["embeddings"] == before["embeddings"]
