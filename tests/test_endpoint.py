from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event

import numpy as np
import pytest
from conftest import HashEncoder
from stub_server import answer, serve

from leafembed.errors import ModelError, NonFiniteError
from leafembed.learn.endpoint import PATIENCE, Patience, Server, _retry_after, place_of

KEY = "sk-4f1c9e-secret"
QUICK = Patience(attempts=3, pause=0.01, timeout=5)
TEXTS = ["en1 en2", "de3", "en4 en5 en6"]


@pytest.fixture
def stub():
    with serve(HashEncoder(16)) as running:
        yield running


@pytest.fixture(scope="module")
def plain_client():
    """One for all tests that need none of their own: to make one takes longer than the test."""
    with Server("http://127.0.0.1/v1/embeddings", "some-model", patience=QUICK).client() as client:
        yield client


@pytest.fixture
def ask(stub, plain_client):
    def with_options(texts=TEXTS, *, key=None, patience=QUICK, url=None, stopped=None):
        server = Server(url or f"{stub.url}/embeddings", "some-model", key, patience)
        if key is None and patience.timeout >= QUICK.timeout:
            return server.ask(plain_client, texts, stopped or Event())
        with server.client() as client:
            return server.ask(client, texts, stopped or Event())

    return with_options


def items(*vectors):
    return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]}


def test_vectors_come_in_the_order_of_the_texts_and_of_unit_length(stub, ask):
    assert [item["index"] for item in stub.vectors(TEXTS)["data"]] == [2, 1, 0]
    vectors = ask()
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, HashEncoder(16).encode(TEXTS), atol=1e-6)
    assert stub.asked == [{"model": "some-model", "input": TEXTS, "encoding_format": "float"}]
    assert "authorization" not in stub.headers[0]


def test_a_lone_surrogate_is_no_error_of_ours(stub, ask):
    stub.always = answer(items([1.0, 0.0]))
    assert ask(["a\ud800"]).shape == (1, 2)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_by_itself_is_tried_again(stub, ask, status, capsys):
    stub.script = [answer({"error": {"message": "later"}}, status), answer(b"<html>", status)]
    assert np.allclose(ask(), HashEncoder(16).encode(TEXTS), atol=1e-6)
    assert len(stub.asked) == 3
    log = capsys.readouterr().err
    assert f"got {status}" not in log
    assert f"{status}" in log
    assert "later; attempt 2 of 3 in 0.01 s" in log
    assert "attempt 3 of 3 in 0.02 s" in log


def test_a_server_says_how_long_to_wait(stub, ask):
    stub.script = [answer({}, 429, Retry_After="0.3")]
    start = time.monotonic()
    ask()
    assert time.monotonic() - start >= 0.3
    stub.script = [answer({}, 429, Retry_After="3600")]
    start = time.monotonic()
    ask(patience=Patience(attempts=2, pause=0.01, longest_pause=0.05))
    assert time.monotonic() - start < 5


def test_a_retry_after_is_a_number_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90))
    assert 85 < _retry_after(soon) <= 90
    assert _retry_after("7") == 7
    gone = format_datetime(datetime.now(UTC) - timedelta(seconds=90))
    assert [_retry_after(value) for value in (None, "", "soon", "-3", "nan", "inf", gone)] == [0] * 7


def test_a_server_that_always_fails_is_an_error_with_its_words_after_so_many_attempts(stub, ask):
    stub.always = answer({"error": {"message": "out of\nmemory", "code": 7}}, 500)
    with pytest.raises(ModelError, match=r"/v1/embeddings: got 500 .*: out of memory at attempt 3 of 3; run again"):
        ask()
    assert len(stub.asked) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no such model"}}, "no such model"),
        ({"error": "no such model", "error_type": "x"}, "no such model"),
        ({"message": "no such model"}, "no such model"),
        ({"detail": [{"msg": "no such model"}]}, r'\[\{"msg": "no such model"\}\]'),
        ("no such model", "no such model"),
        (b"no such\n model", "no such model"),
        (b"", "no message"),
    ],
)
def test_a_refusal_is_an_error_at_once_with_the_servers_words(stub, ask, body, words):
    for status in (400, 401, 404, 501):
        stub.always = answer(body, status)
        with pytest.raises(ModelError, match=rf"got {status} .*: {words}; expected vectors: check the URL"):
            ask()
    assert len(stub.asked) == 4


def test_no_redirect_is_followed(stub, ask):
    with serve(HashEncoder(16)) as other:
        stub.always = answer(b"", 307, Location=f"{other.url}/embeddings")
        with pytest.raises(ModelError, match=rf"got 307 .*: {other.url}/embeddings; expected vectors"):
            ask(key=KEY)
        assert other.asked == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"data": [{"index": 0, "emb', r"JSONDecodeError\), expected JSON with \"data\""),
        (b"<html>welcome</html>", r"got '<html>welcome</html>'"),
        (b"", r"got '' \(JSONDecodeError\)"),
        (b"\xff\xfe\xfa", "expected JSON"),
        (None, r"TypeError\), expected JSON"),
        ([1, 2], "expected JSON"),
        ({"vectors": []}, r"\(KeyError\)"),
        ({"data": [{"embedding": [1.0]}]}, r"\(KeyError\)"),
        ({"data": [{"index": 0}]}, r"\(KeyError\)"),
        ({"data": {"index": 0, "embedding": [1.0]}}, r"\(TypeError\)"),
        (items([1.0, 2.0], [1.0], [1.0, 2.0]), "all of one length"),
        (items("AACAPw==", "AACAPw==", "AACAPw=="), "all of one length"),
        (items([10**400], [1.0], [1.0]), r"\(OverflowError\)"),
        (items(1.0, 2.0, 3.0), r"vectors of shape \(\), expected lists of numbers"),
        (items([], [], []), "expected lists of numbers"),
        (items([1.0], [1.0]), r"got 2 vectors with index \[0, 1\], expected one for each of 3 texts"),
        (items([1.0], [1.0], [1.0], [1.0]), "got 4 vectors"),
        ({"data": []}, "got 0 vectors"),
        ({"data": [{"index": 0, "embedding": [1.0]}] * 3}, r"got 3 vectors with index \[0, 0, 0\]"),
    ],
)
def test_an_answer_without_the_right_vectors_is_an_error(stub, ask, body, message):
    stub.always = answer(body)
    with pytest.raises(ModelError, match=message):
        ask()
    assert len(stub.asked) == 1


@pytest.mark.parametrize("bad", [[None, 1.0], [float("nan"), 1.0], [float("-inf"), 1.0], [0.0, 0.0], [1e300, 1e300]])
def test_a_vector_without_a_direction_is_an_error_that_names_the_text(stub, ask, bad):
    stub.always = answer(items([1.0, 0.0], bad, [0.0, 1.0]))
    with pytest.raises(NonFiniteError, match=r"some-model at .* gives NaN.* for 1 of 3 texts, first 'de3'"):
        ask()


def test_a_server_that_is_not_there_is_an_error(stub, ask):
    with serve(HashEncoder(16)) as gone:
        url = f"{gone.url}/embeddings"
    with pytest.raises(ModelError, match=r"got ConnectError: .* at attempt 3 of 3"):
        ask(url=url)


def test_a_slow_server_is_given_up(stub, ask):
    free = Event()

    def slow():
        free.wait(5)
        return answer({})

    stub.always = slow
    try:
        with pytest.raises(ModelError, match=r"got ReadTimeout: .* at attempt 2 of 2"):
            ask(patience=Patience(attempts=2, pause=0.01, timeout=0.1))
    finally:
        free.set()


def test_a_body_that_ends_early_is_a_broken_connection(stub, ask):
    whole = json.dumps(stub.vectors(TEXTS)).encode()
    stub.script = [answer(whole[:50], Content_Length=str(len(whole)), Connection="close")]
    assert ask(patience=Patience(attempts=2, pause=0.01, timeout=0.5)).shape == (3, 16)
    assert len(stub.asked) == 2


def test_a_stop_ends_the_pauses(stub, ask):
    stopped = Event()
    stopped.set()
    stub.always = answer({}, 503)
    with pytest.raises(ModelError, match="at attempt 1 of 7"):
        ask(patience=PATIENCE, stopped=stopped)


def test_the_key_is_sent_and_never_shown(stub, ask, capsys):
    ask(key=KEY)
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    messages = []
    for status, body in ((401, echo), (500, echo), (200, KEY), (401, KEY.encode())):
        stub.always = answer(body, status)
        with pytest.raises(ModelError) as caught:
            ask(key=KEY)
        messages.append(f"{caught.value} {caught.value!r}")
    assert all("[key]" in message for message in messages)
    server = Server("http://localhost/v1/embeddings", "m", KEY)
    assert not [text for text in (*messages, repr(server), *capsys.readouterr()) if KEY in text]


def test_ollama_is_asked_and_read_as_ollama(stub, ask):
    assert place_of(f"{stub.ollama}/") == stub.ollama
    assert {place_of(f"https://host/v1{end}") for end in ("/", "", "/embeddings", "/embeddings/")} == {
        "https://host/v1/embeddings"
    }
    vectors = ask(url=stub.ollama)
    assert np.allclose(vectors, HashEncoder(16).encode(TEXTS), atol=1e-6)
    assert stub.asked == [{"model": "some-model", "input": TEXTS, "truncate": True}]
    stub.script = [answer({"error": 'model "x" not found, try pulling it first'}, 404)]
    with pytest.raises(ModelError, match='404 Not Found: model "x" not found, try pulling it first'):
        ask(url=stub.ollama)
    stub.script = [answer(items([1.0, 0.0]))]
    with pytest.raises(ModelError, match=r'expected JSON with "embeddings", a list with one of each text'):
        ask(url=stub.ollama)
    stub.script = [answer({"embeddings": [[1.0, 0.0]]})]
    with pytest.raises(ModelError, match=r"got 1 vectors with index \[0\], expected one for each of 3 texts"):
        ask(url=stub.ollama)
