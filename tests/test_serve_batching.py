"""The queue: who shares a batch, who goes first, and what a failure takes with it."""

import asyncio
import threading
import time

import numpy as np
import pytest

from leafembed.serve import batching
from leafembed.serve.batching import FAULTS, Batcher, BatchFailedError
from leafembed.serve.metrics import Metrics


class Engine:
    """Gives each text its tokens' mean; keeps what it was called with; waits for ``gate`` before each batch."""

    dim = 2

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.fault = None

    def embed_tokens(self, ids):
        self.batches.append([len(tokens) for tokens in ids])
        self.begun.release()
        assert self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        return np.array([[tokens.mean(), len(tokens)] for tokens in ids], dtype=np.float32)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def batcher(engine):
    made = Batcher(engine, workers=1, batch_tokens=32)
    yield made
    engine.gate.set()
    made.close()


def texts(*lengths, value=1):
    return [np.full(length, value + place, dtype=np.int64) for place, length in enumerate(lengths)]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def begun(engine):
    assert await asyncio.get_running_loop().run_in_executor(None, engine.begun.acquire, True, 10)


def test_vectors_are_in_the_order_of_the_texts(batcher):
    lengths = (5, 1, 40, 3, 2, 17, 1)
    vectors = run(batcher.embed(texts(*lengths)))
    assert vectors[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert vectors[:, 1].tolist() == list(lengths)


def test_no_batch_has_more_padded_tokens_than_the_budget_but_for_one_long_text(engine, batcher):
    rng = np.random.default_rng(0)
    run(batcher.embed(texts(*rng.integers(1, 60, 300).tolist())))
    assert sum(map(len, engine.batches)) == 300
    assert all(max(batch) * len(batch) <= 32 for batch in engine.batches if len(batch) > 1)
    assert max(max(batch) for batch in engine.batches) > 32
    assert all(max(batch) <= 1.5 * min(batch) + 8 for batch in engine.batches)


@pytest.mark.parametrize("where", ["_gather", "_on_batch"])
def test_whatever_breaks_around_the_engine_ends_no_thread(batcher, monkeypatch, where):
    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(batcher, where, fail)
        if where == "_gather":
            with pytest.raises(BatchFailedError):
                run(batcher.embed(texts(3)))
        else:  # who counts batches does not fail them
            assert run(batcher.embed(texts(3))).shape == (1, 2)
    assert run(batcher.embed(texts(3))).shape == (1, 2)
    assert not batcher.broken


def test_a_thread_that_cannot_go_on_is_replaced(engine, batcher, monkeypatch):
    """Who waits for its batch is told nothing, since that is what failed."""
    (first,), fail = batcher._threads, batcher._fail

    def fail_once(*_):
        batcher._fail = fail
        raise MemoryError

    monkeypatch.setattr(batcher, "_fail", fail_once)
    engine.fault = RuntimeError()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(batcher.embed(texts(3)), 0.5))
    engine.fault = None
    assert run(batcher.embed(texts(3))).shape == (1, 2)
    assert len(batcher._threads) == 1
    assert batcher._threads[0] is not first
    assert not batcher.broken


def test_a_failure_that_cannot_be_logged_is_told(engine, batcher, monkeypatch):
    def log(*_, **__):
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(batching._log, "error", log)
    engine.fault = RuntimeError()
    with pytest.raises(BatchFailedError, match="RuntimeError"):
        run(batcher.embed(texts(3)))
    assert batcher.faults == 1
    engine.fault = None
    assert run(batcher.embed(texts(3))).shape == (1, 2)


def test_passes_side_by_side_are_one_stretch_of_time(engine):
    metrics, found = Metrics(), []
    batcher = Batcher(engine, workers=2, batch_tokens=32, on_batch=lambda batch: found.append(batch))

    async def both():
        engine.gate.clear()
        waiting = [asyncio.ensure_future(batcher.embed(texts(30))) for _ in range(2)]
        await begun(engine)
        await begun(engine)
        await asyncio.sleep(0.2)
        engine.gate.set()
        await asyncio.gather(*waiting)

    run(both())
    batcher.close()
    for batch in found:
        metrics.batch("leaf", batch)
    assert metrics.tokens_per_second > 1.5 * 30 / max(batch.seconds for batch in found)


def test_closing_does_not_wait_for_ever(engine):
    async def stuck():
        engine.gate.clear()
        waiting = asyncio.ensure_future(hung.embed(texts(3)))
        await begun(engine)
        await asyncio.get_running_loop().run_in_executor(None, hung.close, 0.2)
        engine.gate.set()
        await waiting

    hung = Batcher(engine, workers=1, batch_tokens=32)
    run(stuck())


def test_requests_share_a_batch(engine, batcher):
    async def many():
        engine.gate.clear()
        first = asyncio.ensure_future(batcher.embed(texts(30)))
        await begun(engine)
        rest = [asyncio.ensure_future(batcher.embed(texts(4, value=i))) for i in range(8)]
        await asyncio.sleep(0)
        engine.gate.set()
        return await asyncio.gather(first, *rest)

    vectors = run(many())
    assert engine.batches == [[30], [4] * 8]
    assert [float(vector[0, 0]) for vector in vectors[1:]] == list(range(8))


def test_a_small_request_does_not_wait_for_a_big_one(engine, batcher):
    async def both():
        engine.gate.clear()
        big = asyncio.ensure_future(batcher.embed(texts(*[30] * 50)))
        await begun(engine)
        small = asyncio.ensure_future(batcher.embed(texts(3)))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(small, big)

    run(both())
    assert engine.batches.index([3]) == 1  # right after the one that was running
    assert len(engine.batches) == 51


def test_how_long_a_request_waited_is_told(engine, batcher):
    told = []

    async def both():
        engine.gate.clear()
        first = asyncio.ensure_future(batcher.embed(texts(30), waited=lambda seconds: told.append(("first", seconds))))
        await begun(engine)
        second = asyncio.ensure_future(batcher.embed(texts(3), waited=lambda seconds: told.append(("second", seconds))))
        await asyncio.sleep(0.2)
        engine.gate.set()
        await asyncio.gather(first, second)

    run(both())
    assert [name for name, _ in told] == ["first", "second"]
    assert told[1][1] > 0.2  # the batch that held it was let go after that


def test_two_big_requests_take_turns(engine, batcher):
    async def both():
        engine.gate.clear()
        jobs = [asyncio.ensure_future(batcher.embed(texts(*[length] * 40))) for length in (30, 29)]
        await asyncio.sleep(0)
        await begun(engine)
        engine.gate.set()
        await asyncio.gather(*jobs)

    run(both())
    order = [batch[0] for batch in engine.batches]
    half = order[: len(order) // 2]
    assert 15 <= half.count(30) <= 25


def test_a_cancelled_request_leaves_the_queue(engine, batcher):
    async def leave():
        engine.gate.clear()
        first = asyncio.ensure_future(batcher.embed(texts(30)))
        await begun(engine)
        gone = asyncio.ensure_future(batcher.embed(texts(*[29] * 20)))
        await asyncio.sleep(0)
        assert batcher.waiting_tokens == 580
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.waiting_tokens == 0
        engine.gate.set()
        await first
        return await batcher.embed(texts(2))

    assert run(leave())[0, 1] == 2
    assert engine.batches == [[30], [2]]


@pytest.mark.parametrize("fault", [RuntimeError("broken"), MemoryError(), SystemExit(1), KeyboardInterrupt()])
def test_a_batch_that_fails_takes_its_own_requests_only(engine, batcher, fault):
    async def fail():
        engine.fault = fault
        with pytest.raises(BatchFailedError, match=type(fault).__name__):
            await batcher.embed(texts(3))
        engine.fault = None
        return await batcher.embed(texts(3))

    assert run(fail())[0, 1] == 3
    assert not batcher.broken


def test_faults_in_a_row_count_as_broken_until_a_batch_succeeds(engine, batcher):
    async def fail():
        engine.fault = RuntimeError()
        for _ in range(FAULTS):
            assert not batcher.broken
            with pytest.raises(BatchFailedError):
                await batcher.embed(texts(3))
        assert batcher.broken
        engine.fault = None
        await batcher.embed(texts(3))

    run(fail())
    assert not batcher.broken


def test_a_batch_that_does_not_end_counts_as_broken_until_it_does(engine, batcher, monkeypatch):
    async def held():
        engine.gate.clear()
        waiting = asyncio.ensure_future(batcher.embed(texts(3)))
        await begun(engine)
        assert not batcher.broken
        monkeypatch.setattr(batching, "STUCK_S", 0.0)
        assert batcher.broken
        engine.gate.set()
        await waiting

    run(held())
    while batcher._running:  # the thread is told last
        time.sleep(0.01)
    assert not batcher.broken


def test_the_rest_of_a_request_whose_batch_failed_is_not_computed(engine, batcher):
    async def fail():
        engine.fault = RuntimeError()
        with pytest.raises(BatchFailedError):
            await batcher.embed(texts(*[30] * 20))
        engine.fault = None
        await batcher.embed(texts(2))

    run(fail())
    assert len(engine.batches) == 2


def test_closed_it_ends_what_waits_and_takes_no_more(engine):
    batcher = Batcher(engine, workers=2, batch_tokens=32)

    async def end():
        waiting = asyncio.ensure_future(batcher.embed(texts(*[30] * 10)))
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)
        assert (await waiting).shape == (10, 2)
        with pytest.raises(BatchFailedError, match="closed"):
            await batcher.embed(texts(1))

    run(end())


def test_a_long_text_is_not_passed_for_ever_by_short_ones(engine, batcher):
    async def crowd():
        engine.gate.clear()
        first = asyncio.ensure_future(batcher.embed(texts(8)))
        await begun(engine)
        long = asyncio.ensure_future(batcher.embed(texts(31)))
        await asyncio.sleep(0)
        engine.gate.set()

        async def one_after_another():
            while not long.done():
                await batcher.embed(texts(2))

        await asyncio.gather(first, long, *(one_after_another() for _ in range(16)))

    run(crowd())
    assert engine.batches.index([31]) < 10
