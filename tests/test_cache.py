from __future__ import annotations

import errno

import numpy as np
import pytest

from leafembed.errors import CacheError, NonFiniteError
from leafembed.learn import shards
from leafembed.learn.cache import VectorStore

DIM = 8


def unit(n, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def keys(*texts, prompt=""):
    return [VectorStore.key(text, prompt) for text in texts]


@pytest.fixture
def store(tmp_path):
    store = VectorStore(tmp_path / "store", DIM)
    store.append(keys("a", "b", "c"), unit(3))
    store.append(keys("d", "e"), unit(2, seed=1))
    return store


def only(store, suffix):
    return sorted(store.folder.glob(f"*{suffix}"))


def test_vectors_come_back_in_the_order_asked_for_across_shards_and_after_reopening(store):
    both = np.concatenate([unit(3), unit(2, seed=1)])
    for opened in (store, VectorStore(store.folder, DIM)):
        assert len(opened) == 5
        positions = opened.positions(keys("e", "a", "d", "c", "a"))
        assert np.array_equal(opened.take(positions), both[[4, 0, 3, 2, 0]])


def test_no_positions_give_no_vectors(store):
    assert store.take(store.positions([])).shape == (0, DIM)


def test_a_changed_text_or_prompt_is_a_miss(store):
    assert keys("a")[0] in store
    assert keys("a ")[0] not in store
    assert keys("A")[0] not in store
    assert keys("a", prompt="query: ")[0] not in store
    with pytest.raises(KeyError):
        store.positions(keys("a", "new"))


def test_text_cannot_pass_for_prompt():
    assert VectorStore.key("b", "a") != VectorStore.key("ab", "")
    assert VectorStore.key("\ud800", "") != VectorStore.key("\ud801", "")


def test_an_unfinished_shard_never_happened(store):
    only(store, ".json")[-1].unlink()
    again = VectorStore(store.folder, DIM)
    assert len(again) == 3
    assert keys("d")[0] not in again
    again.append(keys("d", "e"), unit(2, seed=1))
    third = VectorStore(store.folder, DIM)
    assert np.array_equal(third.take(third.positions(keys("e"))), unit(2, seed=1)[1:])


def test_nothing_is_left_but_three_files_a_shard(store):
    assert [path.suffix for path in sorted(store.folder.iterdir())] == [".json", ".keys", ".npy"] * 2


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        *((suffix, damage) for suffix in (".npy", ".keys") for damage in ("truncated", "garbage", "missing")),
        *((".json", damage) for damage in ("truncated", "garbage")),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it_and_what_to_do(store, suffix, damage):
    path = only(store, suffix)[0]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "truncated" else b"garbage")
    with pytest.raises(CacheError, match=rf"{only(store, '.json')[0].stem}.*delete the files"):
        VectorStore(store.folder, DIM)


def test_one_flipped_bit_is_noticed(store):
    path = only(store, ".npy")[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = VectorStore(store.folder, DIM)
    assert np.array_equal(again.take(again.positions(keys("d", "e"))), unit(2, seed=1))
    with pytest.raises(CacheError, match="changed since they were written"):
        again.take(again.positions(keys("b")))


def test_a_store_of_another_length_is_an_error(store):
    with pytest.raises(CacheError, match=r"\(3, 8\).*expected \(3, 9\)"):
        VectorStore(store.folder, DIM + 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_only_finite_unit_vectors_are_stored(tmp_path, value):
    vectors = unit(3)
    vectors[1, 0] = value
    store = VectorStore(tmp_path / "store", DIM)
    with pytest.raises(NonFiniteError, match="row 1 of 3"):
        store.append(keys("a", "b", "c"), vectors)
    assert not (tmp_path / "store").exists()
    assert len(store) == 0


def test_two_writers_do_not_overwrite_each_other(tmp_path):
    one, two = VectorStore(tmp_path, DIM), VectorStore(tmp_path, DIM)
    one.append(keys("a"), unit(1))
    two.append(keys("b"), unit(1, seed=1))
    assert len(VectorStore(tmp_path, DIM)) == 2


def test_keys_are_found_whatever_is_new_and_whatever_is_merged(tmp_path, monkeypatch):
    from leafembed.learn import cache

    monkeypatch.setattr(cache, "_RECENT", 7)
    store, wanted, vectors = VectorStore(tmp_path, DIM), [], []
    for i in range(12):
        names = keys(*(f"{i}-{j}" for j in range(3)))
        store.append(names, unit(3, seed=i))
        wanted += names
        vectors.append(unit(3, seed=i))
        assert all(name in store for name in wanted)
        assert len(store) == len(wanted)
    order = np.random.default_rng(0).permutation(len(wanted))
    for opened in (store, VectorStore(tmp_path, DIM)):
        found = opened.find([wanted[i] for i in order] + keys("absent"))
        assert found[-1] == -1
        assert np.array_equal(opened.take(found[:-1]), np.concatenate(vectors)[order])


def test_keys_that_end_in_zero_bytes_are_keys(tmp_path):
    names = [bytes([i]) + bytes(15) for i in range(1, 5)] + [bytes(16)]
    store = VectorStore(tmp_path, DIM)
    store.append(names, unit(5))
    for opened in (store, VectorStore(tmp_path, DIM)):
        assert opened.positions(names[::-1]).tolist() == [4, 3, 2, 1, 0]
        assert b"\1" + bytes(14) + b"\1" not in opened


def test_the_same_key_stored_twice_is_one(tmp_path):
    one, two = VectorStore(tmp_path, DIM), VectorStore(tmp_path, DIM)
    one.append(keys("a", "b"), unit(2))
    two.append(keys("b", "c"), unit(2, seed=1))
    again = VectorStore(tmp_path, DIM)
    assert len(again) == 3
    assert again.take(again.positions(keys("b", "c", "a"))).shape == (3, DIM)


def test_few_files_are_held_open(tmp_path, monkeypatch):
    from leafembed.learn import cache

    monkeypatch.setattr(cache, "OPEN_SHARDS", 2)
    store = VectorStore(tmp_path, DIM)
    for i in range(6):
        store.append(keys(f"{i}"), unit(1, seed=i))
    wanted = store.positions(keys(*"530214"))
    assert np.array_equal(store.take(wanted), np.concatenate([unit(1, seed=int(i)) for i in "530214"]))
    assert store._mapped.cache_info().currsize == 2


def test_the_index_is_compact(tmp_path):
    store = VectorStore(tmp_path, 1)
    names = np.random.default_rng(0).bytes(16 * 50_000)
    store.append([names[i : i + 16] for i in range(0, len(names), 16)], np.ones((50_000, 1), dtype=np.float32))
    again = VectorStore(tmp_path, 1)
    assert again._keys.nbytes + again._where.nbytes == 24 * 50_000  # 48 MB for 2 million vectors
    assert not again._recent


def test_a_full_disk_leaves_nothing_half_written_and_what_was_there(store, monkeypatch):
    before = sorted(store.folder.iterdir())
    save = np.save

    def full(file, array, **options):
        save(file, array, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.np, "save", full)
    with pytest.raises(CacheError, match=r"No space left.*expected room for a shard; .*cache_dir"):
        store.append(keys("x"), unit(1))
    assert sorted(store.folder.iterdir()) == before
    monkeypatch.undo()
    store.append(keys("x"), unit(1))
    assert len(VectorStore(store.folder, DIM)) == len(store)
