"""Refusals that must arrive, be counted and be logged, however little of HTTP a client speaks."""

import json
import logging
import re
import socket
import time

import pytest
from served import eventually, make_bundle, serving, works

from leafembed.serve import protocol
from leafembed.serve.logs import ACCESS_LOG
from leafembed.serve.server import bind
from leafembed.serve.settings import Limits, Settings

MB = 1_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("refusals"))


@pytest.fixture(scope="module")
def plain(bundle):
    with serving({"leaf": bundle}, Settings(watch_s=0)) as running:
        yield running


@pytest.fixture
def lines(caplog):
    """The log lines of requests so far."""
    caplog.set_level(logging.INFO, logger=ACCESS_LOG)
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == ACCESS_LOG]


def post(size, more=b""):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n" % (more, size)
    return head + b" " * size


def chunked(size):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n" % size + b" " * size + b"\r\n0\r\n\r\n"


def talk(served, data, pause=0.0):
    """What a client gets that sends everything before it reads, as most do; after a pause within, if wanted."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as link:
        if pause:
            link.sendall(data[:200])
            time.sleep(pause)
            data = data[200:]
        link.sendall(data)
        received = b""
        while piece := link.recv(65_536):
            received += piece
    return received


def status_of(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(re.search(rb"content-length: (\d+)", head)[1]) == len(body)
    assert "error" in json.loads(body)
    return int(head.split(b" ", 2)[1])


# Answers arrive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post(8 * MB + 1), 413),
        (post(9 * MB), 413),
        (post(60 * MB), 413),
        (chunked(9 * MB), 413),
        (post(7 * MB, b"Content-Encoding: br\r\n"), 415),
        (post(7 * MB, b"Connection: close\r\nOrigin: http://evil.example\r\n"), 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"y" * 9 * MB, 431),
        (b"GARBAGE\r\n" * MB, 400),
        (chunked(9).replace(b"9\r\n", b"no\r\n") + b" " * 9 * MB, 400),
    ],
    ids=["just over", "over", "far over", "chunked", "encoding", "closing", "head", "garbage", "chunk"],
)
def test_who_sends_all_before_it_reads_gets_its_answer(plain, data, status):
    for _ in range(3):
        assert status_of(talk(plain, data)) == status
    assert works(plain)


def test_who_is_late_with_a_large_body_gets_its_answer(bundle):
    with serving({"leaf": bundle}, Settings(limits=Limits(receive_s=0.3))) as served:
        assert status_of(talk(served, post(7 * MB), pause=0.6)) == 408
        assert works(served)


def refused(served):
    """A connection that was sent a refusal and has not ended its request, and those that the server counts."""
    link = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    link.sendall(post(9 * MB)[: 2 * MB])
    assert b" 413 " in link.recv(65_536)
    return link, served.server.config.http_protocol_class.open_now


def test_who_was_refused_and_says_no_more_is_let_go(plain, monkeypatch):
    monkeypatch.setattr(protocol, "_SILENT_S", 0.2)
    link, open_now = refused(plain)
    with link:
        assert len(open_now) == 1  # it counts as long as it is there
        assert eventually(lambda: not open_now, 1)


def test_who_was_refused_and_never_ends_is_let_go(bundle):
    with serving({"leaf": bundle}, Settings(limits=Limits(receive_s=0.1))) as served:
        link, open_now = refused(served)
        with link, pytest.raises(OSError, match=r"reset|Broken"):
            for _ in range(40):
                link.sendall(b" ")
                time.sleep(0.05)
        assert not open_now


def test_who_was_refused_and_sends_without_end_is_let_go(plain, monkeypatch):
    monkeypatch.setattr(protocol, "_THROWN_BYTES", 20 * MB)
    link, open_now = refused(plain)
    with link, pytest.raises(OSError, match=r"reset|Broken"):
        for _ in range(60):
            link.sendall(bytes(MB))
    assert eventually(lambda: not open_now, 1)


@pytest.mark.parametrize("before", [True, False], ids=["refused before", "refused then"])
def test_an_end_does_not_wait_for_who_was_refused(bundle, monkeypatch, before):
    monkeypatch.setattr(protocol, "_SILENT_S", 60)
    with serving({"leaf": bundle}, Settings(limits=Limits(receive_s=60 if before else 0.6))) as served:
        if before:
            link, _ = refused(served)
        else:
            link = socket.create_connection(("127.0.0.1", served.port), timeout=10)
            link.sendall(post(9)[:-5])
            time.sleep(0.2)
        start = time.monotonic()
    assert time.monotonic() - start < 1.5
    link.close()


# They are counted and logged


def test_a_refusal_on_the_way_to_a_route_has_its_route(bundle, lines):
    limits = Limits(body_bytes=100, requests=1)
    with serving({"leaf": bundle}, Settings(limits=limits, keys=("sesame",), watch_s=0)) as served:
        key = {"X_API_Key": "sesame"}
        found = [
            served.ask("/v1/embeddings", b"{}")[0],
            served.ask("/v1/embeddings", b" " * 101, **key)[0],
            served.ask("/v1/embeddings", b"{}", Content_Encoding="br", **key)[0],
            served.ask("/v1/models/leaf")[0],
            served.ask("/v1/nothing", **key)[0],
        ]
        served.server.config.app.at_work += 1
        found.append(served.ask("/v1/embeddings", b"{}", **key)[0])
        served.server.config.app.at_work -= 1
        served.service.draining = True
        found.append(served.ask("/v1/embeddings", b"{}", **key)[0])
        page = served.ask("/metrics")[1]
    routes = ["/v1/embeddings"] * 3 + ["/v1/models/{name:path}", "other"] + ["/v1/embeddings"] * 2
    statuses = [401, 413, 415, 401, 404, 429, 503]
    assert found == statuses
    assert [(line["route"], line["status"]) for line in lines()[:7]] == list(zip(routes, statuses, strict=True))
    for route, status in zip(routes, statuses, strict=True):
        assert f'leaf_requests_total{{family="openai",route="{route}",status="{status}"}} 1.0' in page


def test_a_host_that_is_refused_has_its_route(plain, lines):
    assert plain.ask("/v1/embeddings", b"{}", Host="evil.example")[0] == 403
    assert eventually(lambda: [(line["route"], line["status"]) for line in lines()] == [("/v1/embeddings", 403)])


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"GARBAGE\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Filler: " + b"y" * 40_000 + b"\r\n\r\n", 431, "head_too_large"),
    ],
    ids=["garbage", "head"],
)
def test_what_is_no_request_is_counted_and_logged_under_the_id_that_it_got(bundle, lines, data, status, kind):
    with serving({"leaf": bundle}) as served:
        answer = talk(served, data)
        page = served.ask("/metrics")[1]
    assert status_of(answer) == status
    number = re.search(rb"x-request-id: (\w+)\r\n", answer)[1].decode()
    line = lines()[0]
    assert line == line | {"id": number, "method": "", "route": "other", "status": status, "bytes": 0, "kind": kind}
    assert 0 <= line["ms"] < 1_000
    assert f'leaf_refusals_total{{family="none",kind="{kind}"}} 1.0' in page
    assert f'leaf_requests_total{{family="none",route="other",status="{status}"}} 1.0' in page


def test_a_connection_that_is_closed_without_an_answer_is_counted_and_logged(bundle, lines):
    with serving({"leaf": bundle}, Settings(limits=Limits(connections=1, receive_s=0.1))) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as link:
            link.sendall(b"POST /api/em")
            time.sleep(0.1)
            assert talk(served, b"") == b""
            assert link.recv(10) == b""  # its head never ended
        time.sleep(0.1)
        page = served.ask("/metrics")[1]
    for kind in ("connections", "slow"):
        assert f'leaf_refusals_total{{family="none",kind="{kind}"}} 1.0' in page
    assert [(line["kind"], line["status"]) for line in lines()[:2]] == [("connections", 0), ("slow", 0)]
    assert 'family="none",route' not in page  # neither was a request


# What RFC 9110 and 9112 ask for


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("POST", "/v1/models", "GET, HEAD"), ("GET", "/v1/embeddings", "POST"), ("PUT", "/embed", "POST")],
)
def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(plain, method, path, allow):
    status, data, headers = plain.ask(path, b"{}" if method != "GET" else None, method=method)
    assert (status, headers["Allow"]) == (405, allow)
    assert "error" in data


def test_who_shows_no_key_is_told_how_to(bundle):
    with serving({"leaf": bundle}, Settings(keys=("sesame",))) as served:
        for path in ("/api/tags", "/v1/models", "/info"):
            status, _, headers = served.ask(path)
            assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="leaf"')


@pytest.mark.parametrize("keys", [(), ("sesame",)], ids=["open", "keys"])
def test_two_hosts_are_refused(bundle, keys):
    head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nX-API-Key: sesame\r\nhost: evil.example\r\nConnection: close\r\n\r\n"
    with serving({"leaf": bundle}, Settings(keys=keys)) as served:
        answers = {path: talk(served, head % path) for path in (b"/api/tags", b"/v1/models", b"/info")}
        assert {status_of(answer) for answer in answers.values()} == {400}
        assert b'"type":"invalid_request_error"' in answers[b"/v1/models"]
        assert b'"error_type":"Validation"' in answers[b"/info"]


def test_an_answer_is_sent_whole_to_one_that_reads_late_and_wants_no_more(tmp_path, monkeypatch):
    """It says nothing while it reads, which is not the silence of one that has gone."""
    monkeypatch.setattr(protocol, "_SILENT_S", 0.05)
    monkeypatch.setattr(protocol, "_FLUSH_S", 0.05)

    def narrow(host, port):  # so that the system keeps little of the answer
        listener = bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        return listener

    monkeypatch.setattr("served.bind", narrow)
    body = json.dumps({"model": "leaf", "input": [f"red {i}" for i in range(250)]}).encode()  # written at once
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    bundle = make_bundle(tmp_path, dim=256)
    with serving({"leaf": bundle}, Settings(watch_s=0)) as served, socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        link.settimeout(20)
        link.connect(("127.0.0.1", served.port))
        link.sendall(head % len(body) + body)
        received = link.recv(1_000)
        time.sleep(0.5)
        while piece := link.recv(65_536):
            received += piece
    assert received.endswith(b'"prompt_eval_count":750}')
