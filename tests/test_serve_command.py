"""Which bundles are served under which names, and the command that serves them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from served import make_bundle, serving, works

import leafembed
from leafembed.errors import Error, GateFailedError
from leafembed.serve.models import Models
from leafembed.serve.specs import ModelSpec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


# Which models


def test_a_refused_bundle_is_not_served_unless_it_is_said(tmp_path):
    refused = make_bundle(tmp_path, kept=0.7)
    with pytest.raises(GateFailedError):
        Models([ModelSpec("leaf", refused)])
    with serving({"leaf": refused}, allow_failed=True) as served:
        assert works(served)
        assert served.ask("/ui/card/leaf")[1]["passed"] is False


def test_several_bundles_each_opened_when_it_is_wanted(bundle):
    specs = [ModelSpec.parse(f"leaf={bundle}"), ModelSpec.parse(f"small={bundle}@dim=4@prompt=query")]
    with serving(specs) as served:
        assert served.service.models.all[1].loaded is None
        assert [m["name"] for m in served.ask("/api/ps")[1]["models"]] == ["leaf:latest"]
        _, data, _ = served.ask("/api/embed", {"model": "small", "input": "red"})
        want = leafembed.load(bundle).encode(["red"], prompt_name="query", dim=4)
        assert np.array(data["embeddings"]) == pytest.approx(want, abs=1e-6)
        assert data["load_duration"] > 0
        assert [m["name"] for m in served.ask("/api/ps")[1]["models"]] == ["leaf:latest", "small:latest"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leaf", "expected NAME=PATH"),
        ("=x", "expected NAME=PATH"),
        ("a/b=x", "expected NAME=PATH"),
        ("leaf=x@size=3", "got @size"),
        ("leaf=x@dim=no", "got @dim=no, expected a whole number"),
    ],
)
def test_a_model_that_cannot_be_meant(text, message):
    with pytest.raises(Error, match=message):
        ModelSpec.parse(text)


def test_a_spec_must_fit_its_bundle(bundle):
    for option, message in (("@dim=9", "got @dim=9, the bundle has 8"), ("@prompt=no", "the bundle's prompts are")):
        with pytest.raises(Error, match=message):
            Models([ModelSpec.parse(f"leaf={bundle}{option}")])
    with pytest.raises(Error, match="got the name twice"):
        Models([ModelSpec("leaf", bundle), ModelSpec("LEAF", bundle)])


# The command


def start(bundle, *options, key=""):
    environment = {**os.environ, "LEAF_API_KEY": key}
    command = [sys.executable, "-m", "leafembed", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    line = process.stderr.readline()
    assert "http://127.0.0.1:" in line, line + process.stderr.read()
    return process, int(line.rstrip().rpartition(":")[2])


def test_the_command_serves_drains_and_ends_well(bundle, tmp_path):
    process, port = start(bundle, "--threads", "1", key="sesame")
    try:
        body = json.dumps({"model": "leaf", "input": "red"}).encode()
        head = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nX-API-Key: sesame\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(head + body[:5])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            link.sendall(body[5:])
            answer = link.recv(65_536)
        assert b" 200 " in answer.splitlines()[0]
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "sesame" not in log
        assert '"status": 200' in log
    finally:
        process.kill()
        process.stderr.close()


def test_sighup_opens_the_bundle_again(bundle):
    process, _ = start(bundle, "--quiet", "--watch", "0")
    try:
        for _ in range(2):  # the first one frees what the start opened
            process.send_signal(signal.SIGHUP)
            assert "serves the new bundle" in process.stderr.readline()
    finally:
        process.terminate()
        assert process.wait(20) == 0  # an engine that the main thread opened ended it with SIGSEGV here
        process.stderr.close()


def test_without_its_extra_the_command_says_what_to_install(bundle, monkeypatch, capsys):
    from leafembed.cli import main

    for name in [name for name in sys.modules if name.startswith("leafembed.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(bundle)]) == 1
    assert "pip install 'leafembed[serve]'" in capsys.readouterr().err
