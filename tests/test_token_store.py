from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leafembed.errors import CacheError, ModelError, NonFiniteError
from leafembed.learn import shards, token_store
from leafembed.learn.token_store import TokenStore, TokenTargets
from leafembed.stages import file_sha256

KEYS = (b"a" * 16, b"b" * 15 + b"\0", b"c" * 16)


def filled(folder: Path) -> TokenStore:
    store = TokenStore(folder, 2)
    vectors = [np.array([[3, 4]], np.float16), np.array([[0, 20], [0, 10]], np.float16)]
    store.append(KEYS[:2], vectors, [np.array([4]), np.array([2, 6])])
    return store


def test_the_store_keeps_tokens_across_processes(tmp_path):
    filled(tmp_path)
    store = TokenStore(tmp_path, 2)
    assert store.find(KEYS).tolist() == [0, 1, -1]
    found = store.take(np.array([1, 0]))
    np.testing.assert_array_equal(found.vectors, np.array([[0, 20], [0, 10], [3, 4]]))
    assert found.vectors.dtype == np.float32
    assert found.ends.tolist() == [2, 6, 4]
    assert found.texts.tolist() == [0, 0, 1]


def test_rows_get_their_tokens_in_units_of_their_own_texts(tmp_path):
    store = filled(tmp_path)
    targets = TokenTargets(store, np.array([-1, 1, 0]))
    every, scale = np.array([[3.0, 4.0], [0.0, 20.0], [0.0, 10.0]]), (5 + 15) / 2  # lengths of the texts' means
    assert targets.scale == pytest.approx(scale)
    rows = targets(np.array([0, 2, 0, 1]))
    assert rows.texts.tolist() == [1, 3, 3]
    np.testing.assert_allclose(rows.vectors, every / scale)
    # Whatever else is stored, and in whatever order.
    store.append([b"d" * 16], [np.full((3, 2), 900, np.float16)], [np.array([1, 2, 3])])
    assert TokenTargets(store, np.array([-1, 1, 0])).scale == targets.scale
    assert TokenTargets(store, np.array([0, -1])).scale == 5


def test_a_text_without_tokens_has_none_and_texts_without_any_are_refused(tmp_path):
    store = filled(tmp_path)
    store.append([KEYS[2]], [np.empty((0, 2), np.float16)], [np.empty(0, np.int64)])
    targets = TokenTargets(store, np.array([2, 0]))
    assert targets.scale == 5
    assert targets(np.array([0, 1])).texts.tolist() == [1]
    for places in ([2], [-1], []):
        with pytest.raises(ModelError, match="no text with tokens"):
            TokenTargets(store, np.array(places, dtype=np.int64))


def test_texts_of_many_shards_are_read_with_few_open_and_checked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "OPEN_SHARDS", 4)
    hashed = []
    monkeypatch.setattr(shards, "file_sha256", lambda path: hashed.append(path.name) or file_sha256(path))
    store = TokenStore(tmp_path, 1)
    for i in range(5):
        store.append([bytes([i]) * 16], [np.full((i + 1, 1), i, np.float16)], [np.arange(1, i + 2)])
    written = len(hashed)
    for _ in range(3):
        found = store.take(np.array([4, 0, 3, 0, 1]))
        assert found.texts.tolist() == [0] * 5 + [1] + [2] * 4 + [3] + [4] * 2
        assert found.vectors[:, 0].tolist() == [4] * 5 + [0] + [3] * 4 + [0] + [1] * 2
    assert store._mapped.cache_info().currsize == 2
    assert len(hashed) == written + 4 * 4  # files of the four shards that were read


def test_a_shard_without_its_marker_never_happened(tmp_path):
    filled(tmp_path)
    next(tmp_path.glob("*.json")).unlink()
    assert len(TokenStore(tmp_path, 2)) == 0


@pytest.mark.parametrize("suffix", [".npy", ".ends.npy", ".counts.npy", ".keys"])
def test_altered_bytes_are_refused(tmp_path, suffix):
    store = filled(tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.name.split(".", 1)[1] == suffix.removeprefix("."))
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CacheError, match=r"(changed since they were written|damaged shard of token vectors).*; delete"):
        TokenStore(tmp_path, 2).take(np.array([0]))
    with pytest.raises(CacheError, match="delete"):  # damaged while it was open
        store.take(np.array([0]))


def test_shards_of_another_size_are_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(CacheError, match="expected"):
        TokenStore(tmp_path, 3)
    marker = next(tmp_path.glob("*.json"))
    marker.write_text(json.dumps({"texts": 2}))
    with pytest.raises(CacheError, match="damaged"):
        TokenStore(tmp_path, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_stored(tmp_path, value):
    with pytest.raises(NonFiniteError, match="expected finite"):
        TokenStore(tmp_path, 1).append(KEYS[:1], [np.array([[value]], np.float16)], [np.array([1])])
    assert not list(tmp_path.iterdir())
