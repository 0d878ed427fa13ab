"""What goes wrong around a running server: files, disk, clock and clients. Each time the next request works."""

import ast
import gc
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from served import eventually, make_bundle, serving

import leafembed.serve
from leafembed.serve.logs import SERVER_LOG
from leafembed.serve.settings import Limits, Settings
from leafembed.serve.wire import BODY


def embed(served):
    status, data, _ = served.ask("/api/embed", {"model": "leaf", "input": ["red", "green two"]})
    assert status == 200, data
    return data["embeddings"]


def count(served, metric):
    """A counter's value, 0 before it first counts."""
    lines = [line for line in served.ask("/metrics")[1].splitlines() if line.startswith(metric + " ")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


FAILED, TAKEN = 'leaf_reloads_total{outcome="failed"}', 'leaf_reloads_total{outcome="ok"}'


# Files


@pytest.fixture
def log(monkeypatch):
    """Lines of the server's log, above those of requests."""
    logger, lines = logging.getLogger(SERVER_LOG), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(logger, "handlers", [handler])
    return lines


def watched(served, monkeypatch):
    """Counts how often the server looked at its bundle's files."""
    kind, looks = type(served.service.models.default.model), threading.Semaphore(0)
    changed = kind.changed

    def look(model):
        looks.release()
        return changed(model)

    monkeypatch.setattr(kind, "changed", look)
    return looks


@pytest.mark.parametrize(
    ("name", "in_place"),
    [("model.bin", False), ("model.bin", True), ("model.xml", True), ("tokenizer.json", True), ("encoder.json", True)],
)
def test_garbage_among_a_bundle_s_files_is_told_once_and_not_served(tmp_path, monkeypatch, log, name, in_place):
    place = make_bundle(tmp_path) / name
    whole = place.read_bytes()

    def put(data):
        if in_place:
            with place.open("r+b") as file:
                file.write(data)
        else:
            (tmp_path / "draft").write_bytes(data)
            (tmp_path / "draft").replace(place)

    with serving({"leaf": tmp_path / "bundle"}, Settings(watch_s=0.02)) as served:
        before, looks = embed(served), watched(served, monkeypatch)
        put(b"\xff" * len(whole))
        assert eventually(lambda: count(served, FAILED) == 1)
        assert embed(served) == before
        for _ in range(5):
            assert looks.acquire(timeout=30)
        assert len(log) == 1
        assert "is not served, the old one goes on" in log[0]
        assert f"/{name}" in log[0]
        put(whole)
        assert eventually(lambda: count(served, TAKEN) == 1)
        assert embed(served) == before
        assert count(served, FAILED) == 1


def test_a_bundle_that_is_copied_over_another_is_taken_up_when_all_of_it_is_there(tmp_path):
    """As cp does it: the manifest comes before the weights that it promises."""
    old, new = make_bundle(tmp_path / "old"), make_bundle(tmp_path / "new", dim=4)
    with serving({"leaf": old}, Settings(watch_s=0.02)) as served:
        assert len(embed(served)[0]) == 8
        names = sorted(path.name for path in new.iterdir())
        first = names.index("manifest.json") + 1
        assert "model.bin" in names[first:]
        for name in names[:first]:
            shutil.copyfile(new / name, old / name)
        assert eventually(lambda: count(served, FAILED) == 1)  # whoever copies stops here for a while
        assert len(embed(served)[0]) == 8
        for name in names[first:]:
            shutil.copyfile(new / name, old / name)
        assert eventually(lambda: count(served, TAKEN) == 1)
        assert len(embed(served)[0]) == 4


def test_files_that_change_at_every_look_are_left_alone_until_they_do_not(tmp_path):
    bundle = make_bundle(tmp_path)
    with serving({"leaf": bundle}, Settings(watch_s=0)) as served:
        model = served.service.models.default.model
        for size in range(3):
            (bundle / "README.md").write_bytes(b"x" * size)
            assert not model.changed()
        assert model.changed()


def test_a_card_that_is_no_text_is_shown_as_far_as_it_is(tmp_path):
    bundle = make_bundle(tmp_path)
    with serving({"leaf": bundle}, Settings(watch_s=0)) as served:
        (bundle / "README.md").write_bytes(b"half a \xe2\x82")
        status, data, _ = served.ask("/ui/card/leaf")
        assert (status, data["card"]) == (200, "half a \ufffd")
        assert embed(served)


# Disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_on_a_full_disk_stops_no_request(tmp_path, workers):
    with socket.socket() as probe:  # the line that names the port is lost
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--threads", "1", "--workers", workers]
    command = [sys.executable, "-m", "leafembed", "serve", str(make_bundle(tmp_path)), *options]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = subprocess.Popen(command, stderr=full)
    try:
        assert eventually(lambda: _post(port, "red") == 200)
        assert [_post(port, value) for value in ("green", 3, "two")] == [200, 400, 200]
        process.send_signal(signal.SIGHUP)
        assert _post(port, "red") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def _post(port, value):
    """Status of a request, 0 where nobody listens."""
    body = json.dumps({"model": "leaf", "input": value}).encode()
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            link.sendall(head + body)
            return int(link.makefile("rb").readline().split()[1])
    except ConnectionError:
        return 0


# Clock


HOURS = [-7 * 3600.0, 7 * 3600.0]


@pytest.fixture(params=HOURS, ids=["back", "ahead"])
def jump(request, monkeypatch):
    """Sets the clock of the world to another hour when it is called."""
    now = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: now() + request.param)


def test_a_clock_that_jumps_while_a_request_waits_ends_it_neither_early_nor_late(tmp_path, monkeypatch, jump):
    limits = Limits(receive_s=0.3, answer_s=20.0)
    with serving({"leaf": make_bundle(tmp_path)}, Settings(limits=limits, watch_s=0)) as served:
        encoder = served.service.models.default.model.loaded.encoder
        compute, begun, gate = encoder.embed_tokens, threading.Event(), threading.Event()

        def held(ids):
            begun.set()
            assert gate.wait(20)
            return compute(ids)

        monkeypatch.setattr(encoder, "embed_tokens", held)
        found = []
        thread = threading.Thread(target=lambda: found.append(embed(served)))
        thread.start()
        assert begun.wait(20)
        jump()
        assert served.ask("/health/ready")[0] == 200  # the loop has had its turn, and has ended nothing
        gate.set()
        thread.join()
        assert len(found) == 1
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
            link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert b" 408 " in link.recv(65_536).splitlines()[0]
        assert embed(served)


def test_a_bundle_of_another_hour_is_seen(tmp_path, jump):
    bundle = make_bundle(tmp_path)
    with serving({"leaf": bundle}, Settings(watch_s=0.02)) as served:
        embed(served)
        jump()
        os.utime(bundle / "manifest.json", (time.time(), time.time()))
        assert eventually(lambda: count(served, TAKEN) == 1)
        _, data, _ = served.ask("/api/embed", {"model": "leaf", "input": "red"})
        assert 0 < data["total_duration"] < 60e9


def test_the_time_of_day_is_told_and_never_reckoned_with():
    """Logs, a gauge and the hour of opening say it; whatever waits or measures uses a clock that nobody sets."""
    users = set()
    for path in Path(leafembed.serve.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"} & {
            ast.unparse(node.func) for node in calls
        }:
            users.add(path.stem)
    assert users == {"logs", "metrics", "models"}


# Clients


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    with serving({"leaf": make_bundle(tmp_path_factory.mktemp("quiet"))}, Settings(watch_s=0)) as running:
        yield running


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("sent", ["half a head", "half a body", "half a chunk"])
def test_a_client_that_goes_in_the_middle_of_its_request_leaves_nothing(quiet, how, sent):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\n"
    data = {
        "half a head": head,
        "half a body": head + b'Content-Length: 99\r\n\r\n{"input":',
        "half a chunk": head + b'Transfer-Encoding: chunked\r\n\r\n20\r\n{"input":',
    }[sent]
    canceled = 'leaf_refusals_total{family="ollama",kind="canceled"}'
    open_now, before = quiet.server.config.http_protocol_class.open_now, count(quiet, canceled)
    assert eventually(lambda: not open_now)
    with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as link:
        link.sendall(data)
        assert eventually(lambda: len(open_now) == 1)
        if sent != "half a head":
            assert eventually(lambda: count(quiet, "leaf_requests_at_work") == 2)  # this one, and who asks
        if how == "reset":
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert eventually(lambda: not open_now)
    assert eventually(lambda: count(quiet, canceled) == before + (sent != "half a head"))
    assert quiet.service.admitted == 0
    assert embed(quiet)


def post(link, body):
    link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return int(link.recv(65_536).split()[1])


def test_a_connection_that_is_reset_after_its_answer_is_let_go(quiet):
    """And not when it would have been silent for too long, with its request."""
    kind = quiet.server.config.http_protocol_class
    assert eventually(lambda: not _alive(kind))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as link:
            assert post(link, b'{"model":"leaf","input":"red"}') == 200
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert eventually(lambda: not _alive(kind))
    assert embed(quiet)


def _alive(kind):
    gc.collect()
    # The type itself: to isinstance, proxies of other packages in this process answer by importing what they stand for.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


def test_a_connection_that_is_silent_keeps_no_body(quiet):
    open_now = quiet.server.config.http_protocol_class.open_now
    assert eventually(lambda: not open_now)
    with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as link:
        for body, status in ((b'{"model":"leaf","input":"red"}', 200), (b" " * 1_000_000 + b"{", 400)):
            assert post(link, body) == status
            (connection,) = open_now
            assert eventually(lambda: BODY not in connection.cycle.scope)  # noqa: B023
    assert embed(quiet)
