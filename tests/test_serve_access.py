"""Who may ask: hosts, origins and keys."""

import re
import socket

import pytest
from served import embed, make_bundle, serving

from leafembed.errors import Error
from leafembed.serve.settings import Limits, Settings, read_keys


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def small(bundle):
    with serving({"leaf": bundle}, Settings(watch_s=0)) as running:
        yield running


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
        assert served.ask("/ui")[0] == 200  # it has the field for the key
        assert served.ask("/ui/card/leaf")[0] == 401


@pytest.mark.parametrize(("version", "status"), [(b"1.1", b"400"), (b"1.0", b"200")])
def test_only_http_1_0_may_leave_the_host_out(bundle, version, status):
    settings = Settings(keys=("first",), watch_s=0)
    with (
        serving({"leaf": bundle}, settings) as served,
        socket.create_connection(("127.0.0.1", served.port), 10) as link,
    ):
        link.sendall(b"GET /v1/models HTTP/%s\r\nX-API-Key: first\r\n\r\n" % version)
        assert link.recv(65_536).split()[1] == status


# What clients without a key may make the server keep


@pytest.fixture(scope="module")
def locked(bundle):
    limits = Limits(body_bytes=20_000, bodies_bytes=20_000)
    with serving({"leaf": bundle}, Settings(limits=limits, keys=("first",), watch_s=0)) as running:
        yield running


PLAIN = b'{"model":"leaf","input":"red"}'
KEY = b"X-API-Key: first\r\n"


def chunked(pieces, more=b""):
    """A request in chunks up to the last one, which ends its body."""
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n%s\r\n" % more
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n"


def statuses(link):
    """Of all answers that come until the server ends the connection."""
    received = b""
    while piece := link.recv(65_536):
        received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


def test_a_header_after_the_body_is_none_of_the_request_s(locked):
    for more, after, status in ((b"", KEY, b"401"), (KEY, b"", b"200"), (KEY, b"Host: evil.example\r\n", b"200")):
        with socket.create_connection(("127.0.0.1", locked.port), 10) as link:
            link.sendall(chunked([PLAIN], more) + after + b"\r\n")
            assert link.recv(65_536).split()[1] == status


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["unended", "whole"])
def test_an_end_of_any_size_is_not_kept(locked, end):
    filler = b"X-Filler: " + b"y" * 100_000 + end
    with socket.create_connection(("127.0.0.1", locked.port), 10) as link:
        link.sendall(chunked([PLAIN], KEY) + filler)
        assert statuses(link) == [431]
    with socket.create_connection(("127.0.0.1", locked.port), 10) as link:
        link.sendall(chunked([PLAIN]))
        assert link.recv(65_536).split()[1] == b"401"
        link.sendall(filler)
        assert statuses(link) == []  # it has its answer
    assert embed(locked, X_API_Key="first")[0] == 200


def test_small_chunks_are_no_end(locked):
    """Their lengths are more than a head may have."""
    with socket.create_connection(("127.0.0.1", locked.port), 10) as link:
        link.sendall(chunked([b" "] * 8_000 + [PLAIN], KEY) + b"\r\n")
        assert link.recv(65_536).split()[1] == b"200"


@pytest.mark.parametrize("path", [b"/health/live", b"/health/ready", b"/metrics", b"/ui"])
def test_what_needs_no_key_takes_no_body(locked, path):
    with socket.create_connection(("127.0.0.1", locked.port), 5) as link:
        link.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n" % path + b" " * 19_999)
        assert link.recv(65_536).split()[1] == b"413"
        assert embed(locked, X_API_Key="first")[0] == 200


def test_keys_that_no_header_can_carry_are_refused(tmp_path):
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    with pytest.raises(Error, match="got no key, expected one a line"):
        read_keys(tmp_path / "keys")
    (tmp_path / "latin").write_bytes("schlüssel".encode("latin-1"))
    with pytest.raises(Error, match=r"latin: got bytes that are no UTF-8, expected one key a line"):
        read_keys(tmp_path / "latin")
    with pytest.raises(Error, match="outside ASCII"):
        read_keys(None, ["schlüssel"])
