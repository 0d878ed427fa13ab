"""Texts in windows: what a window holds, the thread that reads ahead, long texts in pieces."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import numpy as np
import pytest
from tiny import WORDS, make_model_folder, token_table

from leafembed.ship import stream
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.stream import ahead, windows
from leafembed.ship.texts import batches_by_length

TABLE = token_table(len(WORDS), 8)
TEXTS = ["red", "one two three", "grün 赤", "", "two green blue"] * 7


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Reads eight tokens, the first of which is [CLS]."""
    return BundleEncoder(
        make_model_folder(tmp_path_factory.mktemp("stream") / "m", prompts={"query": "query:"}), threads=1
    )


def test_windows_end_by_number_or_by_characters(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_TEXTS", 3)
    monkeypatch.setattr(stream, "WINDOW_CHARACTERS", 10)
    texts = ["a", "b", "c", "d" * 10, "e", "f" * 20, "g"]
    assert list(windows(texts)) == [["a", "b", "c"], ["d" * 10], ["e", "f" * 20], ["g"]]
    assert list(windows([])) == []


def test_a_stream_gives_what_a_list_gives_and_reads_no_farther_than_it_must(encoder, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_TEXTS", 5)
    read = []

    def endless():
        for i in count():
            read.append(i)
            yield TEXTS[i % len(TEXTS)]

    parts = list(islice(encoder.encode_stream(endless()), 7))
    np.testing.assert_allclose(np.vstack([part.vectors for part in parts]), encoder.encode(TEXTS), atol=1e-6)
    assert len(read) <= 5 * (7 + 3)  # a window is embedded, one waits, one is being tokenised


def test_ahead_keeps_order_raises_where_it_broke_and_leaves_no_thread():
    def broken():
        yield from range(4)
        raise ValueError("no fifth item")

    found = []
    with pytest.raises(ValueError, match="no fifth item"):
        found.extend(ahead(broken()))
    assert found == [0, 1, 2, 3]
    some = ahead(iter(range(1000)))
    assert list(islice(some, 3)) == [0, 1, 2]
    some.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "leaf-tokenizer"]


def test_items_are_made_while_the_one_before_is_used():
    at_work = threading.Event()

    def items():
        yield from (0, 1)
        at_work.set()
        yield 2

    for item in ahead(items()):
        if item == 0:
            assert at_work.wait(5), "nothing was made while item 0 was in use"


def test_a_bad_item_is_named_by_its_number_in_the_stream(encoder, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_TEXTS", 2)
    with pytest.raises(ValueError, match=r"texts\[4\]: got int"):
        list(encoder.encode_stream(["red", "red", "red", "red", 7]))


def test_batches_keep_to_size_and_budget():
    ids = [np.zeros(n, np.int64) for n in (3, 9, 1, 9, 2, 30)]
    found = [[len(ids[row]) for row in rows] for rows in batches_by_length(ids, 3, 20)]
    assert found == [[30], [9, 9], [3, 2, 1]]  # one text alone may exceed the budget
    assert [len(rows) for rows in batches_by_length(ids, 4)] == [4, 2]
    assert list(batches_by_length([], 4, 20)) == []


def test_a_long_text_is_read_in_pieces_that_overlap_and_are_weighed_by_their_tokens(encoder):
    words = [WORDS[3 + i % 7] for i in range(17)]
    # Eight tokens: [CLS], one left free, six of the text, of which two are shared.
    pieces = [words[start : start + 6] for start in (0, 4, 8, 12)]
    vectors = encoder.encode([" ".join(piece) for piece in pieces])
    expected = sum(vector * (1 + len(piece)) for vector, piece in zip(vectors, pieces, strict=True))
    texts = ["red", " ".join(words), "one two"]
    found = encoder.encode(texts, overlap=2)
    np.testing.assert_allclose(found[1], expected / np.linalg.norm(expected), atol=1e-5)
    np.testing.assert_allclose(found[[0, 2]], encoder.encode([texts[0], texts[2]]), atol=1e-6)
    assert not np.allclose(found[1], encoder.encode(texts)[1], atol=1e-2)


def test_every_piece_has_the_prompt_and_nothing_is_cut(encoder, caplog):
    text = " ".join(["red"] * 5 + ["blue"] * 5)
    (found,) = encoder.encode([text], prompt_name="query", overlap=0)
    parts = encoder.encode(["red " * 4, "red" + " blue" * 3, "blue blue"], prompt_name="query")
    expected = parts.T @ [7, 7, 5]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
    assert not caplog.records
    (part,) = encoder.encode_stream([text, "red"], overlap=1)
    assert part.cut == 0
    (part,) = encoder.encode_stream([text, "red"])
    assert part.cut == 1


def test_pieces_at_fewer_dimensions_are_the_cut_of_the_whole(encoder):
    text = " ".join(WORDS[3:9] * 4)
    (whole,), (part,) = encoder.encode([text], overlap=1), encoder.encode([text], overlap=1, dim=3)
    np.testing.assert_allclose(part, whole[:3] / np.linalg.norm(whole[:3]), atol=1e-6)


@pytest.mark.parametrize("overlap", [-1, 6, 100])
@pytest.mark.parametrize("words", [20, 1])
def test_pieces_that_do_not_advance_are_refused_before_a_text_needs_them(encoder, overlap, words):
    with pytest.raises(ValueError, match=r"overlap: got -?\d+ tokens, expected 0 to 5"):
        encoder.encode(["red " * words], overlap=overlap)


def test_tokenising_ahead_ends_when_the_reader_fails(encoder, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_TEXTS", 1)
    parts = encoder.encode_stream(iter(TEXTS))
    next(parts)
    parts.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "leaf-tokenizer" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
