"""OpenAI's and text-embeddings-inference's wire shapes."""

import base64
import json
import socket

import numpy as np
import pytest
from served import make_bundle, serving

import leafembed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def served(bundle):
    with serving({"leaf": bundle}) as running:
        yield running


@pytest.fixture(scope="module")
def encoder(bundle):
    return leafembed.load(bundle)


def test_the_answer_of_openai(served, encoder):
    status, data, _ = served.ask("/v1/embeddings", {"model": "leaf", "input": ["red", "green two"], "dimensions": 4})
    assert status == 200
    want = encoder.encode(["red", "green two"], dim=4)
    assert data["object"] == "list"
    assert [set(one) for one in data["data"]] == [{"object", "embedding", "index"}] * 2
    assert [one["index"] for one in data["data"]] == [0, 1]
    assert np.array([one["embedding"] for one in data["data"]]) == pytest.approx(want, abs=1e-6)
    assert data["model"] == "leaf"
    assert data["usage"] == {"prompt_tokens": 5, "total_tokens": 5}  # each text has a [CLS]


def test_base64_is_little_endian_float32(served, encoder):
    body = {"model": "leaf", "input": ["red", "blue"], "encoding_format": "base64"}
    rows = served.ask("/v1/embeddings", body)[1]["data"]
    got = np.array([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows])
    assert np.array_equal(got, encoder.encode(["red", "blue"]))


def test_a_large_answer_comes_in_pieces_and_is_whole(served, encoder, monkeypatch):
    monkeypatch.setattr("leafembed.serve.wire._PIECE", 24)  # three vectors of eight numbers
    texts = [f"{word} {i}" for i in range(5) for word in ("red", "blue")]
    for encoding in ("float", "base64"):
        rows = served.ask("/v1/embeddings", {"model": "leaf", "input": texts, "encoding_format": encoding})[1]["data"]
        assert [row["index"] for row in rows] == list(range(10))
    data = served.ask("/api/embed", {"model": "leaf", "input": texts})[1]
    assert np.array(data["embeddings"]) == pytest.approx(encoder.encode(texts), abs=1e-6)


@pytest.mark.parametrize(("path", "key"), [("/v1/embeddings", "input"), ("/api/embed", "input"), ("/embed", "inputs")])
def test_a_large_answer_has_a_length_for_one_that_knows_no_pieces(served, monkeypatch, path, key):
    monkeypatch.setattr("leafembed.serve.wire._PIECE", 24)
    body = json.dumps({"model": "leaf", key: [f"red {i}" for i in range(10)]}).encode()
    received = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as link:
        link.sendall(b"POST %s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)))
        link.sendall(body)
        while piece := link.recv(65_536):
            received += piece
    head, _, content = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length: %d" % len(content) in head
    data = json.loads(content)
    assert len(data if path == "/embed" else data.get("data") or data["embeddings"]) == 10


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": "red"}, 400, "model"),
        ({"model": "no", "input": "red"}, 404, "model"),
        ({"model": "leaf"}, 400, "input"),
        ({"model": "leaf", "input": []}, 400, "input"),
        ({"model": "leaf", "input": [1, 2]}, 400, "input"),
        ({"model": "leaf", "input": [[1], [2]]}, 400, "input"),
        ({"model": "leaf", "input": "red", "dimensions": 0}, 400, "dimensions"),
        ({"model": "leaf", "input": "red", "dimensions": 9}, 400, "dimensions"),
        ({"model": "leaf", "input": "red", "dimensions": "4"}, 400, "dimensions"),
        ({"model": "leaf", "input": "red", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": "leaf", "input": "red " * 20, "truncate": False}, 400, "input"),
    ],
)
def test_errors_of_openai_are_nested(served, body, status, param):
    got, data, _ = served.ask("/v1/embeddings", body)
    assert got == status
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert data["error"]["param"] == param
    assert data["error"]["code"] == ("model_not_found" if status == 404 else None)


def test_an_empty_string_has_a_vector_alone_and_among_others(served):
    for value in ("", ["red", ""]):
        assert served.ask("/v1/embeddings", {"model": "leaf", "input": value})[0] == 200


def test_models_of_openai(served):
    listed = served.ask("/v1/models")[1]
    assert [model["id"] for model in listed["data"]] == ["leaf", "leaf-query", "leaf-document"]
    assert served.ask("/v1/models/leaf")[1] == listed["data"][0]
    assert served.ask("/v1/models/no")[1]["error"]["code"] == "model_not_found"


def test_the_answer_of_tei(served, encoder):
    status, data, headers = served.ask("/embed", {"inputs": ["red", "green two"], "dimensions": 4})
    assert status == 200
    assert np.array(data) == pytest.approx(encoder.encode(["red", "green two"], dim=4), abs=1e-6)
    assert (headers["x-compute-tokens"], headers["x-compute-characters"]) == ("5", "12")
    times = [float(headers[f"x-{phase}-time"]) for phase in ("total", "tokenization", "queue", "inference")]
    assert times[0] >= max(times[1:])
    assert np.array(served.ask("/embed", {"inputs": "red"})[1]).shape == (1, 8)
    whole = served.ask("/embed", {"inputs": "red", "normalize": False, "dimensions": 4})[1]
    assert np.array(whole) == pytest.approx(encoder.encode(["red"], dim=4, normalize=False), abs=1e-6)
    for role in ("prompt_name", "input_type"):
        _, asked, headers = served.ask("/embed", {"inputs": "red", role: "query"})
        assert np.array(asked) == pytest.approx(encoder.encode(["red"], prompt_name="query"), abs=1e-6)
    assert headers["x-compute-time"].isdecimal()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 422, "Validation"),
        ({"inputs": ""}, 400, "Empty"),
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": [1]}, 422, "Validation"),
        ({"inputs": "red", "dimensions": 0}, 422, "Validation"),
        ({"inputs": "red " * 20, "truncate": False}, 422, "Validation"),
        ({"inputs": "red", "prompt_name": "no"}, 422, "Validation"),
        ({"inputs": "red", "truncation_direction": "left"}, 422, "Validation"),
        ({"inputs": ["red"] * 2_049}, 422, "Validation"),
    ],
)
def test_errors_of_tei_name_their_type(served, body, status, kind):
    got, data, _ = served.ask("/embed", body)
    assert (got, data["error_type"]) == (status, kind)
    assert isinstance(data["error"], str)


def test_info_and_tokens(served, encoder):
    info = served.ask("/info")[1]
    assert (info["model_id"], info["max_input_length"]) == ("leaf", 8)
    (tokens,) = served.ask("/tokenize", {"inputs": "red two"})[1]
    assert [token["text"] for token in tokens] == ["[CLS]", "red", "two"]
    assert [(token["start"], token["stop"]) for token in tokens] == [(0, 0), (0, 3), (4, 7)]
    (whole,) = served.ask("/tokenize", {"inputs": "red " * 20})[1]  # the model reads 8 of them
    assert [token["text"] for token in whole] == ["[CLS]", *["red"] * 20]
    assert [token["start"] for token in whole[1:]] == list(range(0, 80, 4))
    (bare,) = served.ask("/tokenize", {"inputs": "red two", "add_special_tokens": False})[1]
    assert [token["text"] for token in bare] == ["red", "two"]
