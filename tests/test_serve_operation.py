"""Limits, keys, faults, swaps and signals: what a client gets, and that the next request works."""

import asyncio
import gzip
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from served import make_bundle, serving

import leafembed
from leafembed.errors import Error, GateFailedError
from leafembed.serve.body import read_body
from leafembed.serve.logs import ACCESS_LOG
from leafembed.serve.models import Models
from leafembed.serve.refusals import Refusal
from leafembed.serve.settings import Limits, Settings, read_keys
from leafembed.serve.specs import ModelSpec

SMALL = Limits(body_bytes=2_000, items=4, request_tokens=60, queue_tokens=60, receive_s=0.5, answer_s=1.0, drain_s=5.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def small(bundle):
    with serving({"leaf": bundle}, Settings(limits=SMALL, watch_s=0)) as running:
        yield running


def embed(served, value="red", **headers):
    return served.ask("/api/embed", {"model": "leaf", "input": value}, **headers)


def works(served):
    return embed(served)[0] == 200


def engine_of(served):
    return served.service.models.default.model.loaded.encoder


# Limits


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        ("red " * 600, 413, "the body has 2"),
        (["red"] * 5, 413, "batch size 5 > maximum allowed batch size 4"),
        ("red " * 300, 413, "about 302 tokens, at most 60"),
    ],
)
def test_over_a_limit_is_refused_in_shape(small, value, status, message):
    got, data, _ = embed(small, value)
    assert got == status
    assert message in data["error"]
    assert works(small)


def test_the_length_of_a_body_is_counted_not_believed(small):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = small.raw(head + (b"400\r\n" + b" " * 1024 + b"\r\n") * 3)
    assert b" 413 " in answer.splitlines()[0]
    assert b"more than 2000 bytes" in answer
    assert works(small)


def test_a_text_of_too_many_characters_is_refused_before_it_is_tokenised(bundle):
    with serving({"leaf": bundle}, Settings(limits=Limits(chars_per_token=2))) as served:
        assert embed(served, "r" * 17)[0] == 413
        assert served.ask("/tokenize", {"inputs": "r" * 17})[0] == 413
        assert embed(served, "r" * 16)[0] == 200


PLAIN = json.dumps({"model": "leaf", "input": "red"}).encode()
PACKED = gzip.compress(PLAIN)


def test_a_packed_body_is_read_as_the_plain_one(small):
    assert small.ask("/api/embed", PACKED, Content_Encoding="gzip")[1]["embeddings"] == embed(small)[1]["embeddings"]


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (PACKED, "br", 415, "expected none or gzip"),
        (PACKED, "gzip, gzip", 415, "expected none or gzip"),
        (PLAIN, "gzip", 400, "is not gzip"),
        (PACKED[:-9], "gzip", 400, "ends before its gzip data"),
        (PACKED + PACKED, "gzip", 400, "goes on after its gzip data"),
        (gzip.compress(bytes(1_990)), "gzip", 400, "invalid JSON"),
        (gzip.compress(bytes(2_001)), "gzip", 413, "more than 2000 bytes"),
        (gzip.compress(bytes(1_000_000)), "gzip", 413, "more than 2000 bytes"),
    ],
    ids=["br", "twice", "plain", "cut", "two", "within", "over", "bomb"],
)
def test_what_is_packed_otherwise_or_too_large_is_refused(small, body, encoding, status, message):
    got, data, _ = small.ask("/api/embed", body, Content_Encoding=encoding)
    assert got == status
    assert message in data["error"]
    assert works(small)


def test_a_bomb_is_not_unpacked_whole():
    """300 MB in 300 kB: no more than a piece over the limit is ever there."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(300)), packer.flush()])

    async def receive():
        return {"type": "http.request", "body": bomb}

    tracemalloc.start()
    with pytest.raises(Refusal, match="more than 1000000 bytes"):
        asyncio.run(read_body(receive, limit=1_000_000, encoding="gzip"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_slow_body_is_given_up(small):
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as link:
        link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        answer = link.recv(65_536)
        assert b" 408 " in answer.splitlines()[0]
        assert b'{"error":"the request did not arrive' in answer
        assert link.recv(65_536) == b""
    assert time.monotonic() - start < 8
    assert works(small)


def test_a_header_that_never_ends_is_cut_off(small):
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as link:
        link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: loc")
        assert link.recv(65_536) == b""
    assert works(small)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["unended", "whole"])
def test_a_head_of_any_size_is_not_kept(small, end):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"y" * 200_000 + end
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as link:
        link.sendall(head)
        answer = link.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "error": "the head of the request has more than 32768 bytes"
    }
    assert works(small)


def test_a_client_that_reads_nothing_is_cut_off(tmp_path):
    """What it was to get must not be kept for it: by the deadline the server has let go of the connection."""
    with serving({"leaf": make_bundle(tmp_path, dim=512)}, Settings(limits=Limits(send_s=0.5))) as served:
        body = json.dumps({"model": "leaf", "input": ["red"] * 2_048}).encode()  # its answer is 12 MB
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with link:
            link.connect(("127.0.0.1", served.port))
            link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            link.sendall(body)
            open_now = served.server.config.http_protocol_class.open_now
            assert _eventually(lambda: len(open_now) == 1)
            assert _eventually(lambda: not open_now)
        assert works(served)


def test_connections_over_the_bound_are_closed(bundle):
    with serving({"leaf": bundle}, Settings(limits=Limits(connections=2))) as served:
        links = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(2)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as third:
            assert third.recv(10) == b""
        for link in links:
            link.close()
        time.sleep(0.2)
        assert works(served)


class Held:
    """Stops an engine until it is released, so that a queue can be looked at."""

    def __init__(self, served, monkeypatch):
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        encoder = engine_of(served)
        compute = encoder.embed_tokens

        def held(ids):
            self.begun.release()
            assert self.gate.wait(20)
            return compute(ids)

        monkeypatch.setattr(encoder, "embed_tokens", held)


@pytest.fixture
def held(small, monkeypatch):
    held = Held(small, monkeypatch)
    yield held
    held.gate.set()


def in_thread(call):
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return thread, result


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/api/embed", "input", 503), ("/v1/embeddings", "input", 429), ("/embed", "inputs", 429)],
)
def test_a_full_queue_sends_away_and_says_when_to_come_back(small, held, path, key, status):
    thread, first = in_thread(lambda: embed(small, ["red two"] * 4))
    assert held.begun.acquire(timeout=10)
    got, data, headers = small.ask(path, {"model": "leaf", key: ["red " * 25] * 2})
    assert got == status
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert "error" in data
    held.gate.set()
    thread.join()
    assert first[0][0] == 200
    assert works(small)


def test_an_answer_that_takes_too_long_is_given_up(small, held):
    status, data, headers = embed(small)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert data == {"error": "no answer within 1 s"}
    held.gate.set()
    assert works(small)
    assert small.service.admitted == 0


def test_a_client_that_leaves_frees_its_place(small, held):
    thread, _ = in_thread(lambda: embed(small))
    assert held.begun.acquire(timeout=10)
    body = json.dumps({"model": "leaf", "input": ["red two"] * 4}).encode()
    link = socket.create_connection(("127.0.0.1", small.port), timeout=10)
    link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    batcher = small.service.models.default.model.loaded.batcher
    assert _eventually(lambda: batcher.waiting_tokens == 12)
    link.close()
    assert _eventually(lambda: batcher.waiting_tokens == 0)
    held.gate.set()
    thread.join()
    assert works(small)


def _eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_limits_are_held_against_each_other():
    with pytest.raises(Error, match="a queue that can hold the largest request"):
        Limits(request_tokens=10, queue_tokens=9)
    with pytest.raises(Error, match="limit items: got 0, expected more than 0"):
        Limits(items=0)


# Who may ask


def test_without_a_key_only_names_of_this_machine(small):
    assert embed(small, Host="evil.example")[0] == 403
    assert embed(small, Host="app.localhost:1")[0] == 200
    assert embed(small, Origin="https://evil.example")[0] == 403
    assert embed(small, Origin="null")[0] == 403
    assert embed(small, Origin=small.url)[0] == 200
    assert small.ask("/v1/models", Host="evil.example")[1]["error"]["type"] == "permission_error"


def test_further_hosts_may_be_allowed(bundle):
    with serving({"leaf": bundle}, Settings(hosts=("leaf.example",))) as served:
        assert embed(served, Host="leaf.example:80", Origin="http://leaf.example")[0] == 200
        assert embed(served, Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        *(
            ("192.168.1.7", True),
            ("fd00::7", True),
            ("leaf", True),
            ("leaf.default.svc.cluster.local", True),
            ("", True),
        ),
        *(("evil.example", False), ("192.168.1.7.evil.example", False), ("local", True), ("notlocal.example.", False)),
    ],
)
def test_reached_by_others_without_a_key_it_has_no_name_that_a_site_could_have(host, admitted):
    assert Settings(loopback=False).admits(host) == admitted
    assert not Settings().admits(host)
    assert Settings(loopback=False, hosts=("*",)).admits(host)


def test_with_keys_a_request_must_show_one(bundle, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\nsecond\n", encoding="utf-8")
    with serving({"leaf": bundle}, Settings(keys=read_keys(file, ["third"]))) as served:
        for headers in ({"X_API_Key": "first"}, {"Authorization": "Bearer second"}, {"Authorization": "bearer third"}):
            assert embed(served, **headers)[0] == 200
        for headers in ({}, {"X_API_Key": "firs"}, {"Authorization": "Basic second"}, {"X_API_Key": "# ours"}):
            assert embed(served, **headers)[:2] == (401, {"error": "API key: missing or wrong; send X-API-Key or "
                                                          "Authorization: Bearer"})  # fmt: skip
        assert served.ask("/v1/models")[1]["error"]["code"] == "invalid_api_key"
        assert served.ask("/health/live")[0] == served.ask("/metrics")[0] == 200


def test_keys_that_no_header_can_carry_are_refused(tmp_path):
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    with pytest.raises(Error, match="got no key, expected one a line"):
        read_keys(tmp_path / "keys")
    with pytest.raises(Error, match="outside ASCII"):
        read_keys(None, ["schlüssel"])


# Faults


def test_an_engine_that_fails_answers_so_and_goes_on(small, monkeypatch):
    encoder = engine_of(small)

    def fail(ids):
        raise RuntimeError("a secret of the engine")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "embed_tokens", fail)
        assert embed(small)[:2] == (500, {"error": "the engine failed on this request"})
        assert small.ask("/v1/embeddings", {"model": "leaf", "input": "red"})[0] == 500
        assert small.ask("/embed", {"inputs": "red"})[:2] == (
            424,
            {"error": "the engine failed on this request", "error_type": "Backend"},
        )
        assert small.ask("/health/ready")[:2] == (503, {"status": "the engine fails"})
        assert small.ask("/health/live")[0] == 200
    assert small.ask("/health/ready")[0] == 200
    assert works(small)


def test_vectors_that_are_no_numbers_are_not_sent(small, monkeypatch):
    encoder = engine_of(small)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "embed_tokens", lambda ids: np.full((len(ids), 8), np.nan, np.float32))
        assert embed(small)[:2] == (500, {"error": "embedding contains NaN or Inf values"})
    assert works(small)
    assert "leaf_non_finite_total 1.0" in small.ask("/metrics")[1]


def test_an_error_of_ours_is_told_without_its_text(small, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("a secret")

    logging.getLogger("leafembed.serve").propagate = True
    with monkeypatch.context() as patch:
        patch.setattr(type(small.service), "named", fail)
        status, data, headers = embed(small)
    assert status == 500
    assert data == {"error": f"internal error; the server's log has it as {headers['X-Request-Id']}"}
    assert works(small)


# Metrics and log


def test_metrics_count_what_was_done(bundle):
    with serving({"leaf": bundle}) as served:
        embed(served, ["red", "green two", "red " * 20])
        embed(served, 3)
        text = served.ask("/metrics")[1]
    for line in (
        'leaf_requests_total{family="ollama",route="/api/embed",status="200"} 1.0',
        'leaf_requests_total{family="ollama",route="/api/embed",status="400"} 1.0',
        'leaf_refusals_total{family="ollama",kind="invalid"} 1.0',
        'leaf_texts_total{model="leaf"} 3.0',
        'leaf_tokens_total{model="leaf"} 13.0',
        'leaf_truncated_texts_total{model="leaf"} 1.0',
        'leaf_batches_total{model="leaf",outcome="ok"}',
        'leaf_phase_seconds_count{phase="tokenize"} 1.0',
        'leaf_phase_seconds_count{phase="queue"} 1.0',
        'leaf_phase_seconds_count{phase="compute"} 1.0',
    ):
        assert line in text, line


def test_a_line_a_request_without_any_text_of_users(small, caplog):
    with caplog.at_level(logging.INFO, logger=ACCESS_LOG):
        embed(small, "a very secret text", X_Request_Id="my-id.1")
        assert _eventually(lambda: caplog.records)
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert line == line | {"id": "my-id.1", "method": "POST", "route": "/api/embed", "status": 200, "kind": ""}
    assert "secret" not in caplog.text


# Swaps


def test_a_new_bundle_at_the_path_is_served_and_garbage_is_not(tmp_path):
    first = make_bundle(tmp_path / "first")
    second = make_bundle(tmp_path / "second", dim=4)
    place = tmp_path / "place"
    shutil.copytree(first, place)
    with serving({"leaf": place}, Settings(watch_s=0.05)) as served:
        assert len(embed(served)[1]["embeddings"][0]) == 8
        _swap(second, place)
        assert _eventually(lambda: len(embed(served)[1]["embeddings"][0]) == 4)
        (place / "manifest.json").write_text("garbage", encoding="utf-8")
        assert _eventually(lambda: 'leaf_reloads_total{outcome="failed"} 1.0' in served.ask("/metrics")[1])
        assert len(embed(served)[1]["embeddings"][0]) == 4
        _swap(first, place)
        assert _eventually(lambda: len(embed(served)[1]["embeddings"][0]) == 8)


def _swap(source, place):
    shutil.copytree(source, place.with_name("new"))
    shutil.rmtree(place)
    place.with_name("new").rename(place)


def test_no_request_is_lost_while_a_bundle_is_swapped(tmp_path):
    bundles = [make_bundle(tmp_path / name) for name in ("a", "b")]
    place = tmp_path / "place"
    shutil.copytree(bundles[0], place)
    with serving({"leaf": place}, Settings(watch_s=0.02)) as served:
        stop, found = threading.Event(), []

        def ask():
            while not stop.is_set():
                found.append(embed(served, ["red", "green"])[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(4):
            _swap(bundles[(i + 1) % 2], place)
            time.sleep(0.15)
        assert _eventually(lambda: 'leaf_reloads_total{outcome="ok"}' in served.ask("/metrics")[1])
        stop.set()
        for thread in threads:
            thread.join()
    assert set(found) == {200}
    assert len(found) > 20


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
