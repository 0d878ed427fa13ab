"""Signals that come early, time to end in, and what the log of a server begins with."""

import json
import socket
import subprocess
import sys
import time

import pytest
from served import eventually, make_bundle, serving

from leafembed.serve.settings import Limits, Settings

SCRIPT = """\
import os, signal, sys
from leafembed.cli import main

class Early:
    def find_spec(self, name, *_):
        if name == "leafembed.serve.command":
            os.kill(os.getpid(), signal.SIGHUP)

if __name__ == "__main__":
    sys.meta_path.insert(0, Early())
    sys.exit(main(["serve", *sys.argv[1:]]))
"""
"""Is sent SIGHUP while it imports the server, long before a bundle is open."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_ends_no_server_that_is_not_ready_and_all_lines_but_the_first_are_json(bundle, tmp_path, workers):
    (tmp_path / "run.py").write_text(SCRIPT, encoding="utf-8")
    options = ["--host", "0.0.0.0", "--port", "0", "--watch", "0", "--threads", "1", "--workers", workers]
    command = [sys.executable, str(tmp_path / "run.py"), str(bundle), *options]
    log, wanted = tmp_path / "log", {"1": 3, "2": 2}[workers]
    with log.open("w", encoding="utf-8") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        eventually(lambda: process.poll() is not None or log.read_text(encoding="utf-8").count("\n") == wanted)
        process.terminate()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert process.returncode == 0, lines
    assert "leaf serve: leaf" in lines[0]
    assert "at http://0.0.0.0:" in lines[0]
    told = [json.loads(line)["message"] for line in lines[1:]]
    assert told[0] == "other machines can reach 0.0.0.0 and no API key is asked for; see --api-key-file"
    if workers == "1":  # which had read what it serves; several processes read it later
        assert told[1:] == [f"leaf: serves the new bundle at {bundle}"]
    else:
        assert told[1:] == []


def test_a_part_of_a_second_to_end_in_is_time_too(bundle):
    body = b'{"model":"leaf","input":"red"}'
    with serving({"leaf": bundle}, Settings(limits=Limits(drain_s=0.9), watch_s=0)) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as link:
            link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            link.sendall(body[:5])
            time.sleep(0.2)
            served.server.stop()
            time.sleep(0.5)
            link.sendall(body[5:])
            assert link.recv(65_536).startswith(b"HTTP/1.1 200 ")
