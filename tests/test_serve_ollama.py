"""Ollama's wire shapes, to the byte where its clients look."""

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


def test_vectors_are_those_of_the_encoder(served, encoder):
    texts = ["red", "", "green blue two", "one"]
    status, data, headers = served.ask("/api/embed", {"model": "leaf", "input": texts})
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert list(data) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert data["model"] == "leaf"
    assert np.array(data["embeddings"], np.float32) == pytest.approx(encoder.encode(texts), abs=1e-6)
    assert data["prompt_eval_count"] == sum(encoder.count_tokens(texts))
    assert data["total_duration"] > 0


def test_a_single_text_has_the_first_service_s_field_too(served):
    _, data, _ = served.ask("/api/embed", {"model": "leaf", "input": "red"})
    assert data["embedding"] == data["embeddings"][0]


@pytest.mark.parametrize("name", ["leaf", "LEAF", "leaf:latest"])
def test_the_name_is_echoed_as_it_was_sent(served, name):
    assert served.ask("/api/embed", {"model": name, "input": "red"})[1]["model"] == name


@pytest.mark.parametrize("value", ["", [], None])
def test_an_empty_input_opens_the_model_and_gives_nothing(served, value):
    status, data, _ = served.ask("/api/embed", {"model": "leaf", "input": value})
    assert (status, data) == (200, {"model": "leaf", "embeddings": []})


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_a_content_type_is_not_looked_at(served, kind):
    assert served.ask("/api/embed", {"model": "leaf", "input": "red"}, Content_Type=kind)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "missing request body"),
        (b"[1]", 400, "invalid JSON: got a list, expected an object"),
        (b"{", 400, "invalid JSON"),
        (b'{"model":"leaf","input":NaN}', 400, "invalid JSON"),
        (b'{"model":"leaf","input":"\\ud800"}', 400, "invalid JSON"),
        (b'{"model":"leaf","input":"\xff"}', 400, "invalid JSON"),
        (b"[" * 100_000, 400, "invalid JSON"),
        (b'{"model":"leaf","input":' + b"9" * 5_000 + b"}", 400, "invalid"),
        ({"input": "red"}, 404, "model '' not found"),
        ({"model": "no", "input": "red"}, 404, 'model "no" not found'),
        ({"model": "no", "input": "red"}, 404, 'model "no" not found, try pulling it first; this server has leaf'),
        ({"model": "no", "input": 1}, 400, "invalid input type"),
        ({"model": "no", "input": "red", "dimensions": "4"}, 400, "dimensions: got a string"),
        ({"model": "../../x", "input": 1}, 400, "invalid model name"),
        ({"input": 1}, 404, "model '' not found"),
        ({"model": "../../x", "input": "red"}, 400, "invalid model name"),
        ({"model": "leaf", "input": 123}, 400, "invalid input type"),
        ({"model": "leaf", "input": True}, 400, "invalid input type"),
        ({"model": "leaf", "input": [["red"]]}, 400, "invalid input type"),
        ({"model": "leaf", "input": ["red", None]}, 400, "invalid input type"),
        ({"model": "leaf", "input": "red", "dimensions": "4"}, 400, "dimensions: got a string"),
        ({"model": "leaf", "input": "red", "dimensions": 4.0}, 400, "dimensions: got a number, expected a whole"),
        ({"model": "leaf", "input": "red", "dimensions": True}, 400, "dimensions: got a boolean"),
        ({"model": "leaf", "input": "red", "truncate": "yes"}, 400, "truncate: got a string"),
        ({"model": "leaf", "input": "red", "keep_alive": "abc"}, 400, "keep_alive: invalid duration"),
        ({"model": "leaf", "input": "red", "options": 3}, 400, "options: expected an object"),
        ({"model": "leaf", "input": "red", "options": {"num_ctx": 1}}, 400, "input after truncation exceeds"),
        ({"model": "leaf", "input": "red " * 20, "truncate": False}, 400, "the input length exceeds the context"),
        ({"model": "leaf", "input": "red", "prompt_name": "no"}, 400, "the model's prompts are query, document, STS"),
    ],
)
def test_what_is_refused_is_an_object_with_a_string(served, body, status, message):
    got, data, headers = served.ask("/api/embed", body, method="POST")
    assert got == status
    assert list(data) == ["error"]
    assert message in data["error"]
    assert headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("value", ["5m", "1h30m", "-1", -1, 0, 300, 1.5, None])
def test_any_duration_may_be_kept_alive(served, value):
    expected = 400 if value == "-1" else 200  # Go's durations need a unit
    assert served.ask("/api/embed", {"model": "leaf", "input": "red", "keep_alive": value})[0] == expected


@pytest.mark.parametrize(("dim", "length"), [(3, 3), (0, 8), (-1, 8), (99, 8), (8, 8), (None, 8)])
def test_dimensions_cut_and_renormalise_or_are_ignored(served, dim, length):
    _, data, _ = served.ask("/api/embed", {"model": "leaf", "input": "red", "dimensions": dim})
    vector = np.array(data["embeddings"][0])
    assert vector.shape == (length,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_text_that_was_cut_is_told(served, encoder):
    status, data, headers = served.ask("/api/embed", {"model": "leaf", "input": ["red " * 20, "red"]})
    assert (status, headers["X-Truncated-Texts"]) == (200, "1")
    assert data["embeddings"][0] == pytest.approx(encoder.encode(["red " * 8])[0], abs=1e-6)
    assert served.ask("/api/embed", {"model": "leaf", "input": "red"})[2]["X-Truncated-Texts"] is None


def test_prompts_by_field_by_role_and_by_the_model_s_name(served, encoder):
    want = encoder.encode(["red"], prompt_name="query")[0]
    for body in (
        {"model": "leaf", "prompt_name": "query"},
        {"model": "leaf", "input_type": "search_query"},
        {"model": "leaf-query"},
        {"model": "leaf-QUERY:latest"},
    ):
        _, data, _ = served.ask("/api/embed", {**body, "input": "red"})
        assert data["embeddings"][0] == pytest.approx(want, abs=1e-6), body
    plain = served.ask("/api/embed", {"model": "leaf", "input": "red"})[1]["embeddings"][0]
    assert plain != pytest.approx(want, abs=1e-3)
    assert served.ask("/api/embed", {"model": "leaf-sts", "input": "red"})[0] == 200


def test_the_old_route(served, encoder):
    status, data, _ = served.ask("/api/embeddings", {"model": "leaf", "prompt": "red"})
    assert (status, list(data)) == (200, ["embedding"])
    assert data["embedding"] == pytest.approx(encoder.encode(["red"])[0], abs=1e-6)
    assert served.ask("/api/embeddings", {"model": "leaf", "input": "red"})[1] == {"embedding": []}
    assert served.ask("/api/embeddings", {"prompt": "red"})[:2] == (400, {"error": "model is required"})
    assert served.ask("/api/embeddings", {"model": "no", "prompt": "red"})[0] == 404


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_name": "query"},
        {"input_type": "search_query"},
        {"dimensions": 3},
        {"dimensions": 99},
        {"prompt_name": "STS", "dimensions": 3, "truncate": True},
    ],
)
def test_the_old_route_takes_what_the_new_one_takes(served, more):
    old = served.ask("/api/embeddings", {"model": "leaf", "prompt": "red two", **more})[1]["embedding"]
    assert old == served.ask("/api/embed", {"model": "leaf", "input": "red two", **more})[1]["embeddings"][0]


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_name": 1},
        {"prompt_name": "no"},
        {"input_type": ["query"]},
        {"dimensions": "3"},
        {"dimensions": 3.0},
        {"truncate": "yes"},
        {"truncate": False},
    ],
)
def test_the_old_route_refuses_what_the_new_one_refuses(served, more):
    text = "red " * 20
    old = served.ask("/api/embeddings", {"model": "leaf", "prompt": text, **more})[:2]
    assert old[0] == 400
    assert old == served.ask("/api/embed", {"model": "leaf", "input": text, **more})[:2]


def test_what_models_there_are(served):
    models = served.ask("/api/tags")[1]["models"]
    assert [model["name"] for model in models] == ["leaf:latest", "leaf-query:latest", "leaf-document:latest"]
    assert {"size", "digest", "modified_at", "details", "capabilities", "model"} <= set(models[0])
    running = served.ask("/api/ps")[1]["models"]
    assert [model["name"] for model in running] == ["leaf:latest"]
    shown = served.ask("/api/show", {"model": "leaf"})[1]
    assert shown["model_info"]["leaf.embedding_length"] == 8
    assert served.ask("/api/show", {"name": "leaf"})[0] == 200
    assert served.ask("/api/show", {})[:2] == (400, {"error": "model is required"})
    assert served.ask("/api/show", {"model": "x"})[:2] == (404, {"error": "model 'x' not found"})


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_of_clients(served, method):
    assert served.ask("/api/version", method=method)[1] == (
        {"version": leafembed.__version__} if method == "GET" else ""
    )
    assert served.ask("/", method=method)[1] == ("Ollama is running" if method == "GET" else "")


@pytest.mark.parametrize("path", ["/api/pull", "/api/create", "/api/delete", "/api/push", "/api/embed/"])
def test_no_route_makes_or_deletes_models(served, path):
    status, data, _ = served.ask(path, {"model": "leaf"})
    assert (status, list(data)) == (404, ["error"])
    assert served.ask("/api/embed", method="DELETE")[0] == 405
