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

ROUTES = (
    "/api/embed",
    "/api/embeddings",
    "/v1/embeddings",
    "/embed",
    "/tokenize",
    "/api/show",
    "/api/tags",
    "/ui",
    "/x",
)
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
    """The bytes of one request, most of them near to something legal."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(1, 400))
    body = "{" + ",".join(f'"{rng.choice(KEYS)}":{rng.choice(PIECES)}' for _ in range(rng.randrange(5))) + "}"
    data = body.encode("utf-8", "surrogatepass")
    if kind < 0.12:
        data = data.replace(b'"red"', b'"\xed\xa0\x80"')  # half a surrogate pair, as bytes
    elif kind < 0.25:
        data = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data)
    headers = [f"Host: {rng.choice(('localhost', '127.0.0.1:1', '', 'evil', '[::1]:80', '[::1', '[x'))}"]
    if kind > 0.9:
        data = rng.choice((BOMB, b"", data[: len(data) // 2]))
        headers.append(
            rng.choice(("Content-Encoding: gzip", "Content-Encoding: x", "Expect: 100-continue", "Origin: \xff"))
        )
    if kind > 0.97:
        headers.append("X-Filler: " + "y" * rng.choice((10, 70_000)))
    length = rng.choice((len(data), len(data), len(data), len(data), len(data) + 5, 0, -1, 10**25, "x"))
    headers.append(
        rng.choice((f"Content-Length: {length}", f"Content-Length: {len(data)}", "Transfer-Encoding: chunked"))
    )
    method = rng.choice(("POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "LEAF"))
    head = f"{method} {rng.choice(ROUTES)} HTTP/{rng.choice(('1.1', '1.1', '1.0', '9'))}\r\n" + "\r\n".join(headers)
    return head.encode("latin-1") + b"\r\n\r\n" + data


def send(port, data, rng):
    received, keeps = b"", rng.random() < 0.02  # a connection that is kept waits for the next request
    stalls = rng.random() < 0.01  # one that stalls sends its second half when the server has had enough of it
    with socket.create_connection(("127.0.0.1", port), timeout=2 if keeps else 20) as link:
        try:
            half = rng.randrange(len(data))
            link.sendall(data[:half])
            if stalls:
                received += link.recv(65_536)
            link.sendall(data[half:])
            if not keeps:
                link.shutdown(socket.SHUT_WR)
            if rng.random() < 0.95:  # the others leave at once
                while piece := link.recv(65_536):
                    received += piece
                    if len(received) > 4_000_000:
                        break
        except TimeoutError:
            assert received, data[:300]
        except OSError:  # closed on us, as such bytes deserve
            return received
    return received


def check(answer, sent):
    """An answer is no 5xx, and every error is JSON, to what is no HTTP too."""
    if not answer:
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert status < 500, (answer[:300], sent[:300])
    if status >= 400 and body:
        found, _ = json.JSONDecoder().raw_decode(body.decode())
        assert "error" in found, (answer[:300], sent[:300])


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
            check(send(served.port, data, rng), data)
        before, start = resident(), time.monotonic()
        for _ in range(n):
            data = request(rng)
            check(send(served.port, data, rng), data)
        assert served.ask("/api/embed", {"model": "leaf", "input": "red"})[0] == 200
        assert served.ask("/health/ready")[0] == 200
        assert (time.monotonic() - start) / n < 2  # the slowest wait for what does not come, and are given up
        assert resident() - before < 50
        assert served.service.admitted == 0
