from __future__ import annotations

import json
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import HashEncoder, write_rows
from families import bert, toy_recipe, toy_texts
from stub_server import answer, serve

import leafembed
from leafembed.errors import CacheError, ModelError, NonFiniteError, RecipeError
from leafembed.judge.tasks import load_tasks
from leafembed.learn.endpoint import Patience
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.plan import parts_of, plan
from leafembed.learn.remote import IN_FLIGHT, PROBES, REQUEST_TEXTS, connect
from leafembed.learn.teacher import load_teacher
from leafembed.pipeline import run
from leafembed.recipe_io import load_recipe, recipe_from_dict
from leafembed.recipe_learn import TeacherConfig
from leafembed.results import print_results
from leafembed.ship.bundle import refresh_card
from leafembed.ship.verdict import judge_again
from leafembed.types import Row

DIM = 32
KEY = "sk-4f1c9e-secret"
PROMPTS = {"query": "search: ", "none": ""}
QUICK = Patience(attempts=2, pause=0.01, timeout=5)


@pytest.fixture
def stub():
    with serve(HashEncoder(DIM)) as running:
        yield running


def config(stub, **changes):
    return TeacherConfig(**{"model": stub.url, "served_model": "hash-32", "prompts": PROMPTS} | changes)


def rows(texts):
    return [Row(text, "en") for text in texts]


def test_it_is_what_the_recipe_and_the_probe_say(stub):
    ref = connect(config(stub, licence="MIT", max_seq_length=64)).ref
    assert (ref.name, ref.dim, ref.licence, ref.max_seq_length, ref.revision) == ("hash-32", DIM, "MIT", 64, None)
    assert dict(ref.prompts) == PROMPTS
    assert stub.texts == list(PROBES)
    assert connect(config(stub)).ref.licence is None


def test_vectors_are_those_of_the_texts_in_their_order(stub):
    encoder = connect(config(stub))
    texts = toy_texts(5 * REQUEST_TEXTS + 3)
    assert np.allclose(encoder.encode(texts), HashEncoder(DIM).encode(texts), atol=1e-6)
    assert max(len(request["input"]) for request in stub.asked) == REQUEST_TEXTS
    assert sorted(stub.texts) == sorted([*PROBES, *texts])
    assert encoder.encode([]).shape == (0, DIM)


def test_a_prompt_is_put_before_the_text_and_an_unknown_one_is_none(stub):
    encoder = connect(config(stub))
    prompted = encoder.encode(["en1"], prompt_name="query")
    assert stub.texts[-1] == "search: en1"
    assert np.allclose(prompted, HashEncoder(DIM).encode(["search: en1"]), atol=1e-6)
    encoder.encode(["en1"], prompt_name="nonsense")
    assert stub.texts[-1] == "en1"


def test_a_few_requests_wait_at_the_same_time(stub):
    encoder = connect(config(stub))
    texts = toy_texts(8 * REQUEST_TEXTS)
    together = threading.Barrier(IN_FLIGHT, timeout=10)

    def wait():
        together.wait()  # answered only when all of them are there
        return answer(stub.vectors(stub.asked[0]["input"]))

    stub.script = [wait] * IN_FLIGHT
    batches = encoder.batches(texts)
    with pytest.raises(ModelError, match=f"got {len(PROBES)} vectors"):
        next(batches)
    assert len(stub.asked) <= 1 + 2 * IN_FLIGHT  # an error stops the rest


def test_whoever_has_enough_stops_the_requests(stub):
    batches = connect(config(stub)).batches(toy_texts(40 * REQUEST_TEXTS))
    next(batches)
    batches.close()
    assert len(stub.asked) <= 1 + 2 * IN_FLIGHT + 1


def test_another_number_of_values_is_an_error(stub):
    encoder = connect(config(stub))
    stub.encoder = HashEncoder(DIM // 2)
    with pytest.raises(ModelError, match="got vectors of 16 values, expected 32 as at first"):
        encoder.encode(["en1"])


def test_nan_stores_nothing_and_a_failing_server_keeps_what_was_stored(stub, tmp_path):
    teacher, folder = load_teacher(config(stub, shard_rows=REQUEST_TEXTS), tmp_path)
    assert folder is None
    texts = toy_texts(6 * REQUEST_TEXTS)
    bad = {"data": [{"index": i, "embedding": [float("nan")] * DIM} for i in range(REQUEST_TEXTS)]}
    stub.script = [answer(bad)] * IN_FLIGHT
    with pytest.raises(NonFiniteError, match=f"hash-32 at .* for {REQUEST_TEXTS} of {REQUEST_TEXTS} texts, first 'en"):
        teacher.embed_rows(rows(texts))
    assert len(teacher.store) == 0
    stub.script = [None] * IN_FLIGHT + [answer({"error": "quota"}, 403)]  # one of those asked once the first is stored
    with pytest.raises(ModelError, match="got 403 Forbidden: quota"):
        teacher.embed_rows(rows(texts))
    assert len(teacher.store) >= REQUEST_TEXTS
    before = len(teacher.store)
    again, _ = load_teacher(config(stub, shard_rows=REQUEST_TEXTS), tmp_path)
    assert len(again.store) == before
    stub.asked.clear()
    vectors = again.store.take(again.embed_rows(rows(texts)))
    assert len(stub.texts) == len(texts) - before
    assert np.allclose(vectors, HashEncoder(DIM).encode(texts), atol=1e-6)
    assert np.array_equal(again.encode(texts), vectors)
    assert len(stub.texts) == len(texts) - before


class Turned:
    """An encoder whose vectors are a little, or a lot, off."""

    def __init__(self, noise):
        self.inner, self.noise = HashEncoder(DIM), noise
        self.ref = self.inner.ref

    def encode(self, texts, *, prompt_name=None):
        vectors = self.inner.encode(texts)
        vectors = vectors + self.noise * np.random.default_rng(0).standard_normal(vectors.shape).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_another_model_behind_the_same_url_is_another_teacher_and_other_rounding_is_not(stub, tmp_path):
    def fingerprint(**changes):
        return connect(config(stub, **changes), cache_dir=tmp_path).ref.fingerprint

    first = fingerprint()
    stub.encoder = Turned(1e-3)
    assert fingerprint() == first
    assert len(list((tmp_path / "probes").iterdir())) == 1
    assert fingerprint(served_model="other") != first
    assert fingerprint(prompts={}, licence="MIT") == first
    stub.encoder = Turned(0.1)
    other = fingerprint()
    assert other != first
    stub.encoder = HashEncoder(DIM)
    assert fingerprint() == first
    stub.encoder = HashEncoder(DIM // 2)
    assert fingerprint() not in (first, other)


def test_a_damaged_probe_is_named(stub, tmp_path):
    connect(config(stub), cache_dir=tmp_path)
    (path,) = (tmp_path / "probes").iterdir()
    path.write_bytes(b"")
    with pytest.raises(CacheError, match=path.name):
        connect(config(stub), cache_dir=tmp_path)


def test_a_key_that_would_travel_in_the_clear_is_warned_of(stub, tmp_path, capsys, monkeypatch):
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n", encoding="utf-8")
    connect(config(stub, api_key_file=path))
    assert stub.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert "unencrypted" not in capsys.readouterr().err
    monkeypatch.setattr("leafembed.learn.remote._is_loopback", lambda host: False)
    connect(config(stub, api_key_file=path))
    log = capsys.readouterr().err
    assert f"goes to {stub.url} unencrypted; use https" in log
    assert KEY not in log
    connect(config(stub))
    assert "unencrypted" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_what_loopback_is(host, expected):
    from leafembed.learn.remote import _is_loopback

    assert _is_loopback(host) is expected


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"one\ntwo", "schlüssel".encode(), b"\xff\xfe", None])
def test_a_file_without_a_key_is_an_error_that_does_not_show_it(stub, tmp_path, content):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        RecipeError, match=rf"^api_key_file: got {re.escape(str(path))}, .*expected a file that holds the key"
    ) as caught:
        connect(config(stub, api_key_file=path))
    assert "words" not in str(caught.value)
    assert stub.asked == []


RECIPE = """
[[data.sources]]
path = "corpus.txt"
[teacher]
model = "http://127.0.0.1:8080/v1"
served_model = "m"
[student]
init = "encoder"
model = "org/name"
[eval]
dev = ["agreement"]
test = ["sts/toy.test"]
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.served_model=", r"teacher\.served_model: got '', expected the model's name at the URL"),
        ("teacher.revision=main", r"teacher\.revision: got 'main', expected nothing"),
        ("student.init=static", r"student\.init: got 'static', expected encoder, with student\.model"),
        ("student.init=random", r"student\.init: got 'random', expected encoder"),
        ("teacher.model=./folder", r"teacher\.served_model: got 'm', expected nothing, since teacher\.model is no URL"),
        ("teacher.model=https://user:secret@host/v1", r"teacher\.model: got 'a URL that is not shown"),
        ("teacher.model=https://host/v1?key=secret", r"teacher\.model: got 'a URL that is not shown"),
        ("teacher.model=https://host/v1#secret", r"teacher\.model: got 'a URL that is not shown"),
        ("teacher.model=https://", r"teacher\.model: .*expected http\(s\)://HOST"),
        ("teacher.model=https://host:port/v1", r"teacher\.model"),
        ("teacher.model=https://[host/v1", r"teacher\.model"),
        ("teacher.prompts=3", r"teacher\.prompts: got 3, expected a table of texts"),
        ("teacher.prompts.query=3", r"teacher\.prompts\.query: got 3, expected text"),
    ],
)
def test_what_cannot_work_with_a_url_is_refused_by_key(tmp_path, override, message):
    path = tmp_path / "remote.toml"
    path.write_text(RECIPE, encoding="utf-8")
    load_recipe(path, ["teacher.prompts.query=search: "])
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, [override])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["api_key_file", "prompts"])
def test_keys_of_a_url_are_refused_for_other_teachers(tmp_path, key):
    (tmp_path / "local.toml").write_text(RECIPE, encoding="utf-8")
    value = '{ query = "q: " }' if key == "prompts" else "key"
    overrides = ["teacher.model=./folder", "teacher.served_model=", f"teacher.{key}={value}"]
    with pytest.raises(RecipeError, match=rf"teacher\.{key}: .* expected nothing, since teacher\.model is no URL"):
        load_recipe(tmp_path / "local.toml", overrides)


@pytest.fixture(scope="module")
def line(tmp_path_factory, eval_data):
    """A finished run, and what a second one asked for."""
    root = tmp_path_factory.mktemp("remote")
    (root / "key").write_text(KEY, encoding="utf-8")
    with serve(HashEncoder(DIM)) as stub:
        teacher = {"model": stub.url, "served_model": "hash-32", "prompts": PROMPTS, "prompt_name": "query"}
        student = {"init": "encoder", "model": str(bert(root / "body"))}
        plain = toy_recipe(root, "", eval_data, teacher=teacher | {"api_key_file": str(root / "key")}, student=student)
        write_rows(
            root / "seen.jsonl", [{"text": next(iter(load_tasks(eval_data, ["retrieval/toy_en"])[0].scored))[0]}]
        )
        plain["eval"]["teacher_sources"] = [{"path": "seen.jsonl", "licence": "CC0-1.0"}]
        plain["gate"]["min_tail_response"] = 0.0  # after twelve steps it is about the limit, by the CPU's arithmetic
        recipe = recipe_from_dict(plain)
        outcome = run(recipe, root / "run")
        asked = list(stub.texts)
        keyed = all(headers["authorization"] == f"Bearer {KEY}" for headers in stub.headers)
        stub.asked.clear()
        run(recipe, root / "run")
        again = list(stub.texts)
        planned = plan(recipe)
    return SimpleNamespace(root=root, outcome=outcome, asked=asked, again=again, keyed=keyed, planned=planned)


def test_the_whole_line_runs_on_vectors_alone(line):
    manifest = line.outcome.manifest
    assert leafembed.load(line.outcome.folder, threads=1).encode(["en1 en2", "de3"]).shape == (2, DIM)
    assert manifest["teacher"]["name"] == "hash-32"
    assert manifest["student"]["licence"] == "not stated"
    assert manifest["reports"].keys() >= {"teacher", "floor: static table", "floor: untrained student", "int8"}
    assert [entry["name"] for entry in manifest["speed"]] == ["student, torch fp32", "student, INT8"]
    assert manifest["machine"]["scored_in"] == {"precision": "fp32", "device": "cpu"}
    assert manifest["behaviour"].keys() == {"student", "int8"}
    assert [entry["task"] for entry in manifest["contamination"]] == ["retrieval/toy_en"]
    overlap = manifest["teacher_overlap"]
    assert overlap["sources"] == ["seen.jsonl"]
    assert [(entry["task"], entry["exact"], entry["rows_exact"]) for entry in overlap["sets"]] == [
        ("retrieval/toy_en", 1, 1)
    ]
    assert "as far as it is here (seen.jsonl)" in (line.outcome.folder / "README.md").read_text(encoding="utf-8")
    assert judge_again(manifest, "run").checks == line.outcome.verdict.checks


def test_the_student_starts_from_its_encoder_and_the_static_floor_is_made_of_its_tokens(line):
    body = load_sentence_transformer(line.root / "body")
    start, static = (
        load_sentence_transformer(line.root / "run" / name) for name in ("untrained-student", "static-table")
    )
    ours, theirs = (model[0].auto_model.state_dict() for model in (start, body))
    assert all(np.array_equal(value, theirs[key]) for key, value in ours.items())
    assert start.max_seq_length == body.max_seq_length
    assert len(static[0].embedding.weight) == len(body.tokenizer)
    assert static.prompts == start.prompts
    assert start.prompts.keys() >= PROMPTS.keys()
    assert not any(start.prompts.values())
    assert list(line.planned.parts) == parts_of(start)


def test_each_text_was_asked_for_once_and_a_second_run_asks_for_the_probe_alone(line):
    texts = [text for text in line.asked if text not in PROBES]
    assert len(texts) == len(set(texts))
    # The corpus, the queries of the task, and the validation texts with other ends.
    assert sum(text.startswith("search: ") for text in texts) == 120 + 30 + 24
    assert line.again == list(PROBES)


def test_the_key_was_sent_and_is_in_no_file_of_the_run(line):
    assert line.keyed
    files = [path for path in line.root.rglob("*") if path.is_file() and path != line.root / "key"]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    recipe = json.loads((line.outcome.folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]
    assert recipe["teacher"]["prompts"] == PROMPTS


def test_card_and_table_do_without_the_speed_of_the_teacher(line, capsys):
    card = refresh_card(line.outcome.folder).read_text(encoding="utf-8")
    speed = card[card.index("## Speed") : card.index("## Size")]
    assert "student, INT8" in speed
    assert "teacher" not in speed
    print_results(line.outcome.manifest)
    assert "gate: PASSED" in capsys.readouterr().out
