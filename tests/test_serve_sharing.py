"""A large request beside others: it is tokenised in slices, others get their turn, and it keeps what it needs."""

import gc
import random

import pytest
from served import Held, embed, engine_of, eventually, in_thread, make_bundle, serving
from starlette.requests import Request
from test_beginnings import pairs_over_the_text

from leafembed.serve import memory
from leafembed.serve.memory import LARGE_CHARACTERS
from leafembed.serve.refusals import Refusal
from leafembed.serve.settings import Limits, Settings
from leafembed.serve.tokens import json_rows
from leafembed.serve.wire import BODY, json_body
from leafembed.ship.beginnings import SLICE_CHARACTERS

LONG = ["red green " * 12] * 2_000
"""Four slices."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving({"leaf": make_bundle(tmp_path_factory.mktemp("serve"))}) as running:
        yield running


class Tokenizing:
    """What is tokenised, and a gate before it."""

    def __init__(self, served, monkeypatch):
        self.texts = []
        encoder = engine_of(served)
        tokenize = encoder.tokenize

        def noted(texts, prompt=None):
            self.texts.append(list(texts))
            assert eventually(lambda: self.open)
            return tokenize(texts, prompt)

        self.open = True
        monkeypatch.setattr(encoder, "tokenize", noted)


def test_a_large_request_is_tokenised_in_slices(served, monkeypatch):
    tokenizing = Tokenizing(served, monkeypatch)
    status, data, _ = embed(served, LONG)
    assert (status, len(data["embeddings"]), data["prompt_eval_count"]) == (200, 2_000, 16_000)
    assert [text for part in tokenizing.texts for text in part] == LONG
    assert len(tokenizing.texts) == 4
    assert max(sum(map(len, part)) for part in tokenizing.texts) <= SLICE_CHARACTERS


def test_a_short_text_is_tokenised_between_the_slices_of_long_ones(served, monkeypatch):
    tokenizing = Tokenizing(served, monkeypatch)
    tokenizing.open = False
    long = [in_thread(lambda: embed(served, LONG)) for _ in range(2)]
    assert eventually(lambda: len(tokenizing.texts) == 2)  # both threads are at work
    short, found = in_thread(lambda: embed(served, ["blue " * 200] * 3))
    assert eventually(lambda: served.service._pool._work_queue.qsize() == 1)
    tokenizing.open = True
    for thread in (short, *(thread for thread, _ in long)):
        thread.join(30)
    assert found[0][0] == 200
    place = next(place for place, part in enumerate(tokenizing.texts) if part[0].startswith("blue"))
    assert place <= 4 < len(tokenizing.texts) - 3


def test_no_more_is_tokenised_than_a_request_may_have(tmp_path, monkeypatch):
    with serving(
        {"leaf": make_bundle(tmp_path)}, Settings(limits=Limits(request_tokens=16_000, items=4_000))
    ) as served:
        tokenizing = Tokenizing(served, monkeypatch)
        status, data, _ = embed(served, ["a:b:c:d:" * 15] * 3_900)  # estimated at fewer than they are
        assert status == 413 and "tokens, at most 16000" in data["error"]
        assert len(tokenizing.texts) < 5
        assert served.service.admitted == 0


def test_tokens_are_counted_before_a_long_text_is_read_whole():
    tokenizer, given = pairs_over_the_text(), []

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode_batch(self, texts, **options):
            given.extend(texts)
            return tokenizer.encode_batch(texts, **options)

    text = "".join(random.Random(0).choices("\ue000\ue001", k=2 * SLICE_CHARACTERS))
    with pytest.raises(Refusal, match="at least"):
        json_rows(Spy(), [text], special=False, before=0, most=2 * SLICE_CHARACTERS)
    assert given == []
    rows, count = json_rows(Spy(), [text], special=False, before=5, most=7 * SLICE_CHARACTERS)
    assert (len(rows), count) == (1, 5 + 6 * SLICE_CHARACTERS)


def empty_lists():
    gc.collect()
    return sum(type(thing) is list and not thing for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"model": "leaf", "input": "red"}),
        ("/api/embeddings", {"model": "leaf", "prompt": "red"}),
        ("/v1/embeddings", {"model": "leaf", "input": "red"}),
        ("/embed", {"inputs": "red"}),
    ],
)
def test_what_no_route_knows_is_not_kept_while_a_request_waits(served, monkeypatch, path, body):
    held = Held(served, monkeypatch)
    body |= {"x": [[]] * 40_000, "options": {"y": [[]] * 40_000}}
    raw = str(body).replace("'", '"').encode()
    body.clear()
    before = empty_lists()  # of other tests
    thread, found = in_thread(lambda: served.ask(path, raw))
    assert held.begun.acquire(timeout=20)
    kept = empty_lists() - before
    held.gate.set()
    thread.join(20)
    assert found[0][0] == 200
    assert kept < 20_000


def test_a_body_is_what_the_route_knows_of_it():
    request = Request({"type": "http", BODY: b'{"model":"leaf","x":1,"input":null}'})
    assert json_body(request, "input", "model", "y") == {"model": "leaf", "input": None}


def test_memory_is_given_back_once_after_large_requests(served, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_WAIT_S", 0.3)
    monkeypatch.setattr(memory, "give_back_memory", lambda: asked.append(True))
    assert embed(served, "red")[0] == 200
    assert sum(map(len, LONG)) > LARGE_CHARACTERS
    assert embed(served, LONG)[0] == embed(served, ["red " * 400] * 200)[0] == 200
    assert eventually(lambda: asked, 5)
    assert len(asked) == 1
