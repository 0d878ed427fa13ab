"""Bytes that no client sends: no answer but JSON, no 5xx, no hang, and the next request works."""

import gzip
import json
import random
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from served import make_bundle, serving

from leafembed.serve.settings import Limits, Settings

LEGAL = {
    "/api/embed": {"model": '"leaf"', "input": '["red","green two"]'},
    "/api/embeddings": {"model": '"leaf"', "prompt": '"red"'},
    "/v1/embeddings": {"model": '"leaf"', "input": '"red"', "encoding_format": '"base64"'},
    "/embed": {"inputs": '["red"]', "normalize": "true"},
    "/tokenize": {"inputs": '"red two"'},
    "/api/show": {"model": '"leaf"'},
}
READ = ("/", "/api/tags", "/api/ps", "/api/version", "/v1/models", "/v1/models/leaf", "/v1/models/%00", "/info",
        "/metrics", "/health/live", "/openapi.json", "/ui", "/ui/card/leaf", "/ui/card/..%2f..%2fetc", "/ui/card/%ff",
        "/x")  # fmt: skip
ROUTES = (*LEGAL, *READ)
KEYS = ("model", "input", "inputs", "prompt", "dimensions", "truncate", "encoding_format", "keep_alive", "options",
        "prompt_name", "input_type", "normalize", "user", "truncation_direction", "name")  # fmt: skip
PIECES = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1e999",
        "1" * 400,
        "NaN",
        "-Infinity",
        '""',
        '"leaf"',
        '"red"',
        "[]",
        "{}",
        '["red"]',
    ),
    *(
        '["a",1]',
        '[["a"]]',
        "[1,2]",
        '"\\ud800"',
        '"\\u0000"',
        '"' + "z" * 3_000 + '"',
        "[" * 2_000,
        '{"a":' * 900,
        "1.5",
    ),
    *('"\u202e\u200d\u0301"', '"../../etc"', '"leaf:latest"', "9007199254740993", '["' + '","'.join("ab" * 40) + '"]'),
)
BOMB = gzip.compress(bytes(1_000_000))


def request(rng):
    """The bytes of one request: a few are noise, half are legal but for one field, the others nearly so."""
    kind = rng.random()
    if kind < 0.03:
        return rng.randbytes(rng.randrange(1, 400))
    return nearly(rng) if kind < 0.5 else mangled(rng)


def nearly(rng):
    """A request as clients send it, with one field that is something else, or further."""
    if rng.random() < 0.2:
        return f"GET {rng.choice(READ)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("ascii")
    path = rng.choice(tuple(LEGAL))
    fields = LEGAL[path] | {rng.choice((*LEGAL[path], *KEYS)): rng.choice(PIECES)}
    data = written(fields.items())
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode("ascii") + data


def written(fields):
    return ("{" + ",".join(f'"{key}":{piece}' for key, piece in fields) + "}").encode("utf-8", "surrogatepass")


def mangled(rng):
    """A request of which anything may be wrong."""
    kind = rng.random()
    data = written((rng.choice(KEYS), rng.choice(PIECES)) for _ in range(rng.randrange(5)))
    if kind < 0.04:
        data = data.replace(b'"red"', b'"\xed\xa0\x80"')  # half a surrogate pair, as bytes
    elif kind < 0.25:
        data = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data)
    headers = [f"Host: {rng.choice(('localhost', '127.0.0.1:1', '', 'evil', '[::1]:80', '[::1', '[x'))}"]
    if kind > 0.85:
        data = rng.choice((BOMB, b"", data[: len(data) // 2]))
        headers.append(
            rng.choice(("Content-Encoding: gzip", "Content-Encoding: x", "Expect: 100-continue", "Origin: \xff"))
        )
    if kind > 0.97:
        headers.append("X-Filler: " + "y" * rng.choice((10, 70_000)))
    if rng.random() < 0.05:
        headers.append("Connection: Upgrade\r\nUpgrade: " + rng.choice(("h2c", "websocket", "x")))
    elif rng.random() < 0.9:
        headers.append("Connection: close")
    length = rng.choice((*[len(data)] * 12, len(data) + 5, 0, -1, 10**25, "x"))
    headers.append(rng.choice((f"Content-Length: {length}", f"Content-Length: {length}", "Transfer-Encoding: chunked")))
    method = rng.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "LEAF"))
    head = f"{method} {rng.choice(ROUTES)} HTTP/{rng.choice(('1.1', '1.1', '1.0', '9'))}\r\n" + "\r\n".join(headers)
    return head.encode("latin-1") + b"\r\n\r\n" + data


def send(port, data, rng):
    """What came back, and whether something had to: to who half-closes uvicorn says nothing, and some leave at once.

    No connection is reset before its time is over, whatever is sent: that would lose the answer.
    """
    received, closes = b"", b"Connection: close" in data
    keeps = not closes and rng.random() < 0.05  # a connection that is kept waits for the next request
    halves = not keeps and (not closes or rng.random() < 0.02)
    stalls = rng.random() < 0.01  # one that stalls sends its second half when the server has had enough of it
    leaves = rng.random() < 0.03
    with socket.create_connection(("127.0.0.1", port), timeout=2 if keeps else 20) as link:
        try:
            half = rng.randrange(len(data))
            link.sendall(data[:half])
            if stalls:
                received += link.recv(65_536)
            link.sendall(data[half:])
            if halves:
                link.shutdown(socket.SHUT_WR)
            while not leaves and (piece := link.recv(65_536)):
                received += piece
                if len(received) > 4_000_000:
                    break
        except TimeoutError:
            assert received, data[:300]
        except OSError:  # whose head did not end in time is closed without an answer, and the second half finds nobody
            assert stalls, data[:300]
    return received, not (halves or leaves or stalls)


def check(answer, must, sent):
    """Status of an answer, 0 where none had to be. It is no 5xx, and every error is JSON, to what is no HTTP too."""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        assert not must, sent[:300]
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert status < 500, (answer[:300], sent[:300])
    if status >= 400 and not sent.startswith(b"HEAD"):
        found, _ = json.JSONDecoder().raw_decode(body.decode())
        assert "error" in found, (answer[:300], sent[:300])
    return status


def resident():
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def kinds(data):
    """What a request has in it of what a server is known to fall over."""
    head, _, body = data.partition(b"\r\n\r\n")
    found = {name for name, piece in SIGNS.items() if piece in body}
    if (
        b"Content-Encoding: gzip" in head
        and body.startswith(b"\x1f\x8b")
        and b"Length: %d\r" % len(body) in head + b"\r"
    ):
        found.add("bomb")
    try:
        value = json.loads(body)
    except ValueError:  # bytes that are not UTF-8 too
        return found | ({"malformed"} if body[:1] == b"{" else set())
    except RecursionError:
        return found
    if isinstance(value, dict) and {type(value.get(key)) for key in ("input", "inputs")} & {int, float, bool, dict}:
        found.add("wrong type")
    return found


SIGNS = {
    "NaN": b":NaN",
    "infinity": b":-Infinity",
    "escaped surrogate": b'"\\ud800"',
    "surrogate": b"\xed\xa0\x80",
    "deep list": b"[" * 2_000,
    "deep object": b'{"a":' * 900,
    "huge integer": b"1" * 400,
    "long text": b"z" * 3_000,
}


def test_every_kind_of_bad_request_is_among_the_ten_thousand():
    """Those to half-closed sockets and those that stall are drawn when they are sent."""
    rng = random.Random(0)
    found = Counter(kind for _ in range(10_000) for kind in kinds(request(rng)))
    assert set(found) == {*SIGNS, "bomb", "malformed", "wrong type"}
    assert min(found.values()) >= 20, found


@pytest.mark.parametrize("n", [pytest.param(400, id="some"), pytest.param(10_000, id="many", marks=pytest.mark.slow)])
def test_nothing_gets_it_down(tmp_path, n):
    rng = random.Random(0)
    limits = Limits(receive_s=0.3, body_bytes=20_000)
    with serving({"leaf": make_bundle(tmp_path)}, Settings(limits=limits)) as served:
        for _ in range(min(n // 4, 1_000)):
            data = request(rng)
            check(*send(served.port, data, rng), data)
        before, start, found = resident(), time.monotonic(), Counter()
        for _ in range(n):
            data = request(rng)
            found[check(*send(served.port, data, rng), data)] += 1
        assert served.ask("/api/embed", {"model": "leaf", "input": "red"})[0] == 200
        assert served.ask("/health/ready")[0] == 200
        assert (time.monotonic() - start) / n < 2  # the slowest wait for what does not come, and are given up
        assert resident() - before < 50
        assert served.service.admitted == 0
        assert found[200] > n * 0.2, found
        assert found[0] < n * 0.1, found
        assert {400, 404, 405, 413, 422} <= set(found)
