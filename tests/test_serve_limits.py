"""Limits: what a client gets that is over one, and that the next request works."""

import asyncio
import gzip
import json
import socket
import time
import tracemalloc
import zlib

import pytest
from served import Held, embed, eventually, in_thread, make_bundle, serving, works

from leafembed.errors import Error
from leafembed.serve.body import read_body
from leafembed.serve.refusals import Refusal
from leafembed.serve.settings import Limits, Settings

SMALL = Limits(body_bytes=2_000, items=16, request_tokens=60, queue_tokens=60, receive_s=0.5, answer_s=1.0, drain_s=5.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def small(bundle):
    with serving({"leaf": bundle}, Settings(limits=SMALL, watch_s=0)) as running:
        yield running


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        ("red " * 600, 413, "the body has 2"),
        (["red"] * 17, 413, "batch size 17 > maximum allowed batch size 16"),
        (["red " * 20] * 16, 413, "about 128 tokens, at most 60"),
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


def test_what_the_model_cuts_off_does_not_count(bundle):
    with serving({"leaf": bundle}, Settings(limits=Limits(request_tokens=800, queue_tokens=800))) as served:
        status, data, _ = embed(served, ["red " * 40] * 100)
        assert (status, data["prompt_eval_count"]) == (200, 800)


def test_what_the_model_cuts_off_is_tokenised_and_has_a_bound_of_its_own(bundle):
    limits = Limits(request_tokens=790, queue_tokens=790, request_chars=1_600)
    with serving({"leaf": bundle}, Settings(limits=limits)) as served:
        assert embed(served, ["red " * 40] * 10)[0] == 200
        status, data, _ = embed(served, ["red " * 40] * 11)
        assert (status, data["error"]) == (413, "the request has 1760 characters, at most 1600 are taken at once")
        assert served.ask("/tokenize", {"inputs": ["x " * 80] * 9})[0] == 200
        status, data, _ = served.ask("/tokenize", {"inputs": ["x " * 80] * 10})
        assert (status, data["error"]) == (413, "the request has at least 800 tokens, at most 790 are taken at once")
        assert served.service.admitted == 0


def test_bodies_that_arrive_are_bounded_together(bundle):
    """Three clients hold back the end of what unpacks to 30 kB each, where 64 kB are kept."""
    packer = zlib.compressobj(9, wbits=31)
    begun = packer.compress(b" " * 30_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 9999\r\n\r\n"
    limits = Limits(body_bytes=40_000, bodies_bytes=64_000)
    with serving({"leaf": bundle}, Settings(limits=limits)) as served:
        links = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(3)]
        for link in links[:2]:
            link.sendall(head + begun)
        assert eventually(lambda: served.server.config.app.held == 60_000)
        links[2].sendall(head + begun)
        answer = links[2].recv(4096)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert works(served)
        for link in links:
            link.close()
        assert eventually(lambda: served.server.config.app.held == 0)


@pytest.mark.parametrize("more", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["bare", "upgrade"])
@pytest.mark.parametrize(("target", "status"), [(b"localhost:80", b"400"), (b"http://localhost/x", b"404")])
def test_who_takes_it_for_a_proxy_is_refused(small, target, status, more):
    """CONNECT changes the protocol without a header that could be left out."""
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as link:
        link.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n")
        assert link.recv(65_536).split()[1] == status
    assert works(small)


@pytest.mark.parametrize(
    "asks", [b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAA\r\n",
             b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"]
)  # fmt: skip
def test_a_request_that_would_change_the_protocol_is_served_as_it_is(bundle, asks):
    def head(path, more, size):
        return b"POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n" % (path, more, size)

    with serving({"leaf": bundle}) as served, socket.create_connection(("127.0.0.1", served.port), 10) as link:
        first = head(b"/api/embed", asks, len(PLAIN)) + PLAIN
        for cut in (len(first), 20, len(first) - 5):  # in one piece, within the head, within the body
            link.sendall(first[:cut])
            time.sleep(0.05)
            link.sendall(first[cut:] + head(b"/api/embeddings", b"", len(PLAIN)) + PLAIN)
            answers = b""
            while b'"embedding":[]' not in answers:  # of the old route, which has no prompt here
                piece = link.recv(65_536)
                assert piece, answers
                answers += piece
            assert answers.count(b"HTTP/1.1 200 OK") == 2
            assert b'"prompt_eval_count":2' in answers


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
            assert eventually(lambda: len(open_now) == 1)
            assert eventually(lambda: not open_now)
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


@pytest.fixture
def held(small, monkeypatch):
    held = Held(small, monkeypatch)
    yield held
    held.gate.set()


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [("/api/embed", "input", 503), ("/v1/embeddings", "input", 429), ("/embed", "inputs", 429)],
)
def test_a_full_queue_sends_away_and_says_when_to_come_back(small, held, path, key, status):
    thread, first = in_thread(lambda: embed(small, ["red two"] * 4))
    assert held.begun.acquire(timeout=10)
    got, data, headers = small.ask(path, {"model": "leaf", key: ["red " * 25] * 7})
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
    assert eventually(lambda: batcher.waiting_tokens == 12)
    link.close()
    assert eventually(lambda: batcher.waiting_tokens == 0)
    held.gate.set()
    thread.join()
    assert works(small)


def test_limits_are_held_against_each_other():
    with pytest.raises(Error, match="a queue that can hold the largest request"):
        Limits(request_tokens=10, queue_tokens=9)
    with pytest.raises(Error, match="expected all to be at least one"):
        Limits(body_bytes=10, bodies_bytes=9)
    with pytest.raises(Error, match="limit items: got 0, expected more than 0"):
        Limits(items=0)
