from __future__ import annotations

import numpy as np
import pytest
from conftest import HashEncoder

from leafembed import progress
from leafembed.errors import NonFiniteError
from leafembed.learn import cached
from leafembed.learn.cache import VectorStore
from leafembed.learn.cached import CachedEncoder, InBatches
from leafembed.types import ModelRef

TEXTS = [f"word{i} " * (1 + i % 5) for i in range(40)]


class Counting(HashEncoder):
    """Remembers what it was asked for; fails at a text that holds "stop"."""

    def __init__(self, **prompts):
        super().__init__(16)
        self.ref = ModelRef("counting", 16, prompts=prompts)
        self.asked = []

    def encode(self, texts, *, prompt_name=None):
        self.asked += texts
        vectors = super().encode([self.ref.prompts.get(prompt_name or "", "") + text for text in texts])
        vectors[[text.startswith("stop") for text in texts]] = np.nan
        return vectors


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(cached, "_CHUNK", 8)


def open_cached(encoder, folder, shard_rows=16):
    return CachedEncoder(InBatches(encoder), VectorStore(folder, 16), shard_rows=shard_rows)


def test_a_text_is_encoded_once_in_the_life_of_the_store(tmp_path):
    encoder = Counting()
    one = open_cached(encoder, tmp_path)
    first = one.encode([*TEXTS, TEXTS[0]])
    assert np.allclose(first, HashEncoder(16).encode([*TEXTS, TEXTS[0]]), atol=1e-6)
    assert sorted(encoder.asked) == sorted(TEXTS)
    assert one.computed == 40
    assert one.seconds > 0
    assert (open_cached(encoder, tmp_path).encode(TEXTS[::-1]) == first[39::-1]).all()
    assert len(encoder.asked) == 40


def test_a_prompt_makes_another_vector(tmp_path):
    encoder = Counting(query="find: ", none="")
    one = open_cached(encoder, tmp_path)
    bare, prompted = one.encode(["red"]), one.encode(["red"], prompt_name="query")
    assert not np.allclose(bare, prompted)
    assert (one.encode(["red"], prompt_name="none") == bare).all()
    assert encoder.asked == ["red", "red"]


def test_the_longest_texts_come_first(tmp_path):
    encoder = Counting()
    open_cached(encoder, tmp_path).encode(TEXTS)
    lengths = [len(text) for text in encoder.asked]
    assert lengths == sorted(lengths, reverse=True)


def test_what_was_encoded_before_a_failure_stays(tmp_path):
    encoder = Counting()
    with pytest.raises(NonFiniteError, match="counting gives NaN or infinity for 1 of 1 texts, first 'stop'"):
        open_cached(encoder, tmp_path).encode([*TEXTS, "stop"])
    encoder.asked.clear()
    open_cached(encoder, tmp_path).encode(TEXTS)
    assert len(encoder.asked) == 40 - 32


def test_short_work_is_silent_and_long_work_says_how_fast_it_is(tmp_path, monkeypatch, capsys):
    open_cached(Counting(), tmp_path / "a").encode(TEXTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    open_cached(Counting(), tmp_path / "b").encode(TEXTS)
    *between, last = capsys.readouterr().err.splitlines()
    assert len(between) == 4
    assert between[0].startswith("encoding with counting: 8 of 40 texts, ")
    assert between[0].endswith(" s left")
    assert last.startswith("encoding with counting: 40 of 40 texts, ")
