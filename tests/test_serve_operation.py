"""Faults, metrics, swaps and signals: what a client gets, and that the next request works."""

import asyncio
import json
import logging
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from served import Held, embed, engine_of, eventually, make_bundle, serving, works

from leafembed.serve.batching import FAULTS, Batched, Batcher
from leafembed.serve.logs import ACCESS_LOG, SERVER_LOG
from leafembed.serve.settings import Limits, Settings
from leafembed.serve.specs import ModelSpec

SMALL = Limits(body_bytes=2_000, items=4, request_tokens=60, queue_tokens=60, receive_s=0.5, answer_s=1.0, drain_s=5.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def small(bundle):
    with serving({"leaf": bundle}, Settings(limits=SMALL, watch_s=0)) as running:
        yield running


@pytest.fixture
def log():
    """What the server's log gets."""
    records, logger = [], logging.getLogger(SERVER_LOG)
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


# Faults


def test_a_request_whose_time_after_sigterm_is_over_is_told_so(bundle, monkeypatch):
    monkeypatch.setattr(Batcher.close, "__defaults__", (0.2,))
    body = json.dumps({"model": "leaf", "input": "red"}).encode()
    with serving({"leaf": bundle}, Settings(limits=Limits(drain_s=1.0), watch_s=0)) as served:
        held = Held(served, monkeypatch)
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as link:
            link.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            link.sendall(body)
            assert held.begun.acquire(timeout=10)
            served.server.stop()
            answer = link.recv(65_536)
            while piece := link.recv(65_536):
                answer += piece
    held.gate.set()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"error":"the server ends before the answer"}')


def test_an_engine_that_fails_answers_so_and_goes_on(small, monkeypatch):
    encoder = engine_of(small)

    def fail(ids):
        raise RuntimeError("a secret of the engine")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "embed_tokens", fail)
        assert embed(small)[:2] == (500, {"error": "the engine failed on this request"})
        assert small.ask("/v1/embeddings", {"model": "leaf", "input": "red"})[0] == 500
        assert small.ask("/embed", {"inputs": "red"})[:2] == (
            424,
            {"error": "the engine failed on this request", "error_type": "Backend"},
        )
        assert small.ask("/health/ready")[:2] == (503, {"status": "the engine fails"})
        assert small.ask("/health/live")[0] == 200
    assert small.ask("/health/ready")[0] == 200
    assert works(small)


def test_vectors_that_are_no_numbers_are_not_sent(small, monkeypatch):
    encoder = engine_of(small)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "embed_tokens", lambda ids: np.full((len(ids), 8), np.nan, np.float32))
        assert embed(small)[:2] == (500, {"error": "embedding contains NaN or Inf values"})
        status, data, _ = small.ask("/v1/embeddings", {"model": "leaf", "input": "red"})
        assert (status, data["error"]["message"]) == (500, "embedding contains NaN or Inf values")
        assert small.ask("/embed", {"inputs": "red"})[:2] == (
            424,
            {"error": "embedding contains NaN or Inf values", "error_type": "Backend"},
        )
    assert works(small)
    assert "leaf_non_finite_total 3.0" in small.ask("/metrics")[1]


def test_a_worker_thread_that_ends_is_replaced(small, monkeypatch):
    batcher = small.service.models.default.model.loaded.batcher
    before, fail = list(batcher._threads), batcher._fail

    def no_failing(batch, error):
        monkeypatch.setattr(batcher, "_fail", fail)  # once
        fail(batch, error)
        raise SystemExit(3)

    with monkeypatch.context() as patch:
        patch.setattr(engine_of(small), "embed_tokens", lambda ids: 1 / 0)
        monkeypatch.setattr(batcher, "_fail", no_failing)
        assert embed(small)[:2] == (500, {"error": "the engine failed on this request"})
    assert eventually(lambda: not any(thread.is_alive() for thread in before))
    assert works(small)
    assert small.ask("/health/ready")[0] == 200


class Panic(BaseException):
    """As a tokenizer written in Rust raises it: no Exception."""


@pytest.mark.parametrize("kind", [ZeroDivisionError, Panic])
def test_an_error_of_ours_is_told_without_its_text(small, monkeypatch, log, kind):
    def fail(*_):
        raise kind("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(type(small.service), "named", fail)
        status, data, headers = embed(small)
        patch.setattr(type(small.service), "embed", fail)
        nested = small.ask("/v1/embeddings", {"model": "leaf", "input": "red"})[1]
    assert status == 500
    assert data == {"error": f"internal error; the server's log has it as {headers['X-Request-Id']}"}
    assert nested["error"]["type"] == "api_error"
    told = [record for record in log if record.exc_info]
    assert headers["X-Request-Id"] in told[0].getMessage()
    assert [record.exc_info[0] for record in told] == [kind, kind]
    assert works(small)


def test_what_an_engine_raised_is_in_the_log_once_a_batch(small, monkeypatch, log):
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(small), "embed_tokens", lambda ids: 1 / 0)
        headers = embed(small, "a text of ours")[2]
    (batch,) = [record for record in log if record.exc_info]
    assert batch.exc_info[0] is ZeroDivisionError
    assert any(headers["X-Request-Id"] in record.getMessage() for record in log)
    assert "a text of ours" not in "".join(record.getMessage() for record in log)
    assert works(small)


def test_an_engine_that_gives_no_numbers_is_not_ready(small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine_of(small), "embed_tokens", lambda ids: np.full((len(ids), 8), np.nan, np.float32))
        for _ in range(FAULTS):
            embed(small)
        assert small.ask("/health/ready")[0] == 503
    assert works(small)
    assert small.ask("/health/ready")[0] == 200


def test_a_bundle_that_does_not_open_is_logged_and_not_hashed_for_every_request(tmp_path, bundle, log, monkeypatch):
    broken = make_bundle(tmp_path)
    with serving([ModelSpec("leaf", bundle), ModelSpec("broken", broken)]) as served:
        model = served.service.models.all[1]
        opened, attempts = type(model)._open, []
        monkeypatch.setattr(type(model), "_open", lambda self, about: attempts.append(self) or opened(self, about))
        weights = (broken / "model.bin").read_bytes()
        (broken / "model.bin").write_bytes(weights[:-1] + b"\0\0")
        for _ in range(3):
            status, _, headers = served.ask("/api/embed", {"model": "broken", "input": "red"})
            assert (status, headers["Retry-After"]) == (503, "5")
        assert len(attempts) == 1
        assert any("broken cannot be opened" in record.getMessage() for record in log)
        (broken / "model.bin").write_bytes(weights)  # other files are tried at once
        assert served.ask("/api/embed", {"model": "broken", "input": "red"})[0] == 200


def test_what_a_request_took_is_not_closed_by_a_reload(tmp_path):
    with serving({"leaf": make_bundle(tmp_path)}) as served:
        model = served.service.models.default.model
        taken = model.take()
        reload = threading.Thread(target=model.reload)
        reload.start()
        assert eventually(lambda: model.loaded is not taken)
        assert reload.is_alive()
        assert len(asyncio.run(taken.batcher.embed(taken.encoder.tokenize(["red"])[0]))) == 1
        taken.users -= 1
        reload.join(10)
        assert not reload.is_alive()


# Metrics and log


def test_when_to_come_back_is_reckoned_from_all_streams(bundle):
    """Two streams of 100 tokens a second each are 200, however long nothing was computed in between."""
    with serving({"leaf": bundle}) as served:
        service = served.service
        assert service.metrics.tokens_per_second == service.retry_after() - 1 == 0
        for end in (*range(1, 51), *range(4_000, 4_051)):
            for stream in (0.0, 0.5):
                service.metrics.batch("leaf", Batched(4, 100, 128, 1.0, end + stream, failed=False))
        assert service.metrics.tokens_per_second == pytest.approx(200, rel=0.001)
        service.admitted = 990
        assert service.retry_after() == 5
        service.admitted = 0


def test_metrics_count_what_was_done(bundle):
    with serving({"leaf": bundle}) as served:
        embed(served, ["red", "green two", "red " * 20])
        embed(served, 3)
        text = served.ask("/metrics")[1]
    for line in (
        'leaf_requests_total{family="ollama",route="/api/embed",status="200"} 1.0',
        'leaf_requests_total{family="ollama",route="/api/embed",status="400"} 1.0',
        'leaf_refusals_total{family="ollama",kind="invalid"} 1.0',
        'leaf_texts_total{model="leaf"} 3.0',
        'leaf_tokens_total{model="leaf"} 13.0',
        'leaf_truncated_texts_total{model="leaf"} 1.0',
        'leaf_batches_total{model="leaf",outcome="ok"}',
        'leaf_phase_seconds_count{phase="tokenize"} 1.0',
        'leaf_phase_seconds_count{phase="queue"} 1.0',
        'leaf_phase_seconds_count{phase="compute"} 1.0',
    ):
        assert line in text, line


def test_a_line_a_request_without_any_text_of_users(small, caplog):
    with caplog.at_level(logging.INFO, logger=ACCESS_LOG):
        embed(small, "a very secret text", X_Request_Id="my-id.1")
        assert eventually(lambda: caplog.records)
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert line == line | {"id": "my-id.1", "method": "POST", "route": "/api/embed", "status": 200, "kind": ""}
    assert "secret" not in caplog.text


# Swaps


def test_a_new_bundle_at_the_path_is_served_and_garbage_is_not(tmp_path):
    first = make_bundle(tmp_path / "first")
    second = make_bundle(tmp_path / "second", dim=4)
    place = tmp_path / "place"
    shutil.copytree(first, place)
    with serving({"leaf": place}, Settings(watch_s=0.05)) as served:
        assert len(embed(served)[1]["embeddings"][0]) == 8
        _swap(second, place)
        assert eventually(lambda: len(embed(served)[1]["embeddings"][0]) == 4)
        (place / "manifest.json").write_text("garbage", encoding="utf-8")
        assert eventually(lambda: 'leaf_reloads_total{outcome="failed"} 1.0' in served.ask("/metrics")[1])
        assert len(embed(served)[1]["embeddings"][0]) == 4
        _swap(first, place)
        assert eventually(lambda: len(embed(served)[1]["embeddings"][0]) == 8)


def _swap(source, place):
    shutil.copytree(source, place.with_name("new"))
    shutil.rmtree(place)
    place.with_name("new").rename(place)


def test_no_request_is_lost_while_a_bundle_is_swapped(tmp_path):
    bundles = [make_bundle(tmp_path / name) for name in ("a", "b")]
    place = tmp_path / "place"
    shutil.copytree(bundles[0], place)
    with serving({"leaf": place}, Settings(watch_s=0.02)) as served:
        stop, found = threading.Event(), []

        def ask():
            while not stop.is_set():
                found.append(embed(served, ["red", "green"])[0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(4):
            _swap(bundles[(i + 1) % 2], place)
            time.sleep(0.15)
        assert eventually(lambda: 'leaf_reloads_total{outcome="ok"}' in served.ask("/metrics")[1])
        stop.set()
        for thread in threads:
            thread.join()
    assert set(found) == {200}
    assert len(found) > 20
