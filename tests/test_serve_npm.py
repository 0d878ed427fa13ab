"""The clients of npm, as they come, pointed at a server of ours. Run with make test-js, which installs them."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest
from served import make_bundle, serving
from test_transformers_js import JS

import leafembed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (JS / "node_modules" / "ollama").is_dir(), reason="not installed: make test-js"),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
]


def test_ollama_and_openai(tmp_path):
    bundle, texts = make_bundle(tmp_path), ["red", "green two", "blue"]
    with serving({"leaf": bundle}) as served:
        run = subprocess.run(["node", JS / "clients.mjs", served.url], input=json.dumps(texts), capture_output=True,
                             text=True, check=False, timeout=120)  # fmt: skip
    assert run.returncode == 0, run.stderr
    got, want = json.loads(run.stdout), leafembed.load(bundle).encode(texts)
    for name in ("ollama", "openai", "float"):
        assert np.array(got[name]) == pytest.approx(want, abs=1e-6), name
    assert got["legacy"] == pytest.approx(want[0], abs=1e-6)
    assert got["tokens"] == got["usage"] == 7
    assert got["models"] == ["leaf:latest", "leaf-query:latest", "leaf-document:latest"]
    assert all('model "no" not found' in error for error in got["errors"])
