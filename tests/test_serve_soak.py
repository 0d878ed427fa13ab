"""A server that is kept busy by clients of every sort: nothing fails, and its memory stays what it was.

pytest -m slow tests/test_serve_soak.py --soak-seconds 600 --log-cli-level INFO
"""

import gzip
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import count, cycle
from pathlib import Path

import pytest
from served import make_bundle
from tiny import WORDS

_log = logging.getLogger(__name__)

HEAD = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def texts(number, size):
    """Texts that differ from turn to turn."""
    return [" ".join(WORDS[(number * i + j) % len(WORDS)] for j in range(1 + i % size)) for i in range(1, size + 1)]


def packed(number):
    body = gzip.compress(json.dumps({"model": "leaf", "input": texts(number, 20)}).encode())
    return "/api/embed", body, {"Content-Encoding": "gzip"}


def of(path, **body):
    return path, json.dumps(body).encode(), {}


BAD = [b"{", b'{"input":NaN}', b'{"input":{"a":1}}', b"[" * 5_000, b'{"input":"\\ud800"}', b"\xff\xfe", b""]
CLIENTS = {
    "queries": lambda i: of("/api/embed", model="leaf-query", input=texts(i, 3)[-1]),
    "collections": lambda i: of("/v1/embeddings", model="leaf", input=texts(i, 200),
                                encoding_format=("float", "base64")[i % 2]),
    "long texts": lambda i: of("/embed", inputs=["red " * (10 + i % 490)] * 4),
    "tokens": lambda i: of("/tokenize", inputs=texts(i, 10)),
    "old route": lambda i: of("/api/embeddings", model="LEAF:latest", prompt=texts(i, 2)[0]),
    "packed": packed,
    "mistakes": lambda i: ("/v1/embeddings", BAD[i % len(BAD)], {"X-Request-Id": f"bad-{i}"}),
    "strangers": lambda i: of(f"/no/such/{i}", model=f"model-{i}"),
    "probes": lambda i: (("/health/ready", "/metrics", "/v1/models", "/ui", "/ui/card/leaf")[i % 5], None, {}),
}  # fmt: skip
REFUSED = {"mistakes", "strangers"}


def talk(port, name, stop, statuses):
    """One client that asks until it is told to stop, on a connection that is made anew every hundred requests."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for i in count():
        if stop.is_set():
            break
        path, body, headers = CLIENTS[name](i)
        link.request("GET" if body is None else "POST", path, body, headers)
        with link.getresponse() as response:
            response.read()
        statuses[name, response.status] += 1
        if i % 100 == 99:
            link.close()
    link.close()


def leave(port, stop, statuses):
    """Clients that go before they have sent all, or before they are answered; then one that stays."""
    body = json.dumps({"model": "leaf", "input": texts(7, 100)}).encode()
    whole = HEAD % len(body) + body
    for size in cycle((10, len(whole) // 2, len(whole) - 1, len(whole))):
        if stop.is_set():
            break
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
            link.sendall(whole[:size])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
            link.sendall(whole)
            statuses["leave", int(link.makefile("rb").readline().split()[1])] += 1


def resident(pid):
    """Megabytes of a process in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


class Crowd:
    """All clients at once; what one of them raises ends all."""

    def __init__(self, port):
        self.statuses, self.stop, self.failed = Counter(), threading.Event(), []
        calls = [(talk, (port, name, self.stop, self.statuses)) for name in CLIENTS]
        calls.append((leave, (port, self.stop, self.statuses)))
        self.threads = [threading.Thread(target=self._run, args=call) for call in calls]

    def _run(self, call, args):
        try:
            call(*args)
        except Exception as error:
            self.failed.append(error)
            self.stop.set()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_server_that_is_kept_busy_neither_fails_nor_grows(tmp_path, request):
    seconds = request.config.getoption("--soak-seconds")
    bundle = make_bundle(tmp_path)
    command = [sys.executable, "-m", "leafembed", "serve", str(bundle), "--port", "0", "--quiet", "--watch", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = int(process.stderr.readline().rpartition(":")[2])
        sizes = []
        with Crowd(port) as crowd:
            end, turn = time.monotonic() + seconds, max(seconds / 12, 1.0)
            while time.monotonic() < end and not crowd.stop.wait(turn):
                sizes.append(resident(process.pid))
                os.kill(process.pid, signal.SIGHUP)  # and a new bundle each time
                assert "serves the new bundle" in process.stderr.readline()
        assert crowd.failed == []
        statuses = crowd.statuses
        assert {name for name, _ in statuses} == {*CLIENTS, "leave"}
        assert max(status for _, status in statuses) < 500, statuses
        assert {status for name, status in statuses if name not in REFUSED} == {200}, statuses
        assert min(status for name, status in statuses if name in REFUSED) >= 400, statuses
        settled = sizes[len(sizes) // 4]  # until then caches fill and threads start
        _log.info("%d requests; resident MB at each turn: %s", statuses.total(), [round(size) for size in sizes])
        assert max(sizes) - settled < 50, sizes
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
