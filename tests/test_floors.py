from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from leafembed.judge import floors
from leafembed.judge.floors import BagOfWords, RandomEncoder
from leafembed.types import check_vectors

TEXTS = ["one", "two", "", "日本語", "one"]


def test_vectors_depend_on_text_and_seed_alone() -> None:
    encoder = RandomEncoder(64, seed=3)
    vectors = check_vectors(encoder.encode(TEXTS), n=5, what="random")
    assert (vectors[0] == vectors[4]).all()
    assert len(np.unique(vectors, axis=0)) == 4
    assert (encoder.encode(TEXTS[::-1])[::-1] == vectors).all()
    assert (encoder.encode(TEXTS, prompt_name="query") == vectors).all()
    assert not np.allclose(RandomEncoder(64, seed=4).encode(TEXTS), vectors)
    assert (encoder.ref.name, encoder.ref.dim) == ("floor: random", 64)


def test_another_process_gives_the_same_vectors() -> None:
    code = "from leafembed.judge.floors import RandomEncoder as R; print(R(8, 3).encode(['one']).tobytes().hex())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == RandomEncoder(8, 3).encode(["one"]).tobytes().hex()


def test_vectors_point_everywhere() -> None:
    vectors = RandomEncoder(64).encode([str(i) for i in range(2000)])
    cosines = (vectors @ vectors.T)[np.triu_indices(2000, 1)]
    assert abs(cosines.mean()) < 0.002
    assert abs(cosines.std() - 64**-0.5) < 0.005
    assert RandomEncoder(64).encode([]).shape == (0, 64)


def test_a_bag_of_words_by_hand() -> None:
    encoder = BagOfWords().fitted(frozenset(["red red blue", "red green", "grey"]))
    vectors = check_vectors(encoder.encode(["Red, red BLUE!", "red", "blue", "green"]), n=4, what="bag")
    red, blue = 1 + math.log(4 / 3), 1 + math.log(4 / 2)
    long = math.hypot((1 + math.log(2)) * red, blue)
    assert (vectors @ vectors[0]).tolist() == pytest.approx(
        [1, (1 + math.log(2)) * red / long, blue / long, 0], abs=1e-6
    )
    assert (encoder.encode(["red"], prompt_name="query") == vectors[1]).all()


def test_words_are_found_in_every_script() -> None:
    assert floors._words("Don't PANIC, user@host!") == ["don", "t", "panic", "user", "host"]
    assert floors._words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]  # with its vowel signs
    assert floors._words("東京都に。") == ["東京", "京都", "都に"]
    assert floors._words("水 ภาษา") == ["水", "ภา", "าษ", "ษา"]
    assert floors._words("?!") == ["?!"]


def test_more_words_than_places_change_cosines_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.choice(2_000, 12, replace=False)) for _ in range(400)]
    exact = BagOfWords().fitted(frozenset(texts)).encode(texts)
    monkeypatch.setattr(floors, "_MOST_WORDS", 512)
    folded = check_vectors(BagOfWords().fitted(frozenset(texts)).encode(texts), n=400, what="bag")
    assert exact.shape[1] > 1_500
    assert folded.shape[1] == 512
    error = (folded @ folded.T - exact @ exact.T)[np.triu_indices(400, 1)]
    assert abs(error.mean()) < 0.001
    assert error.std() < 1.5 * 512**-0.5


def test_a_text_of_unknown_words_has_a_direction_all_the_same() -> None:
    encoder = BagOfWords().fitted(frozenset(["red blue"]))
    check_vectors(encoder.encode(["green", ""]), n=2, what="bag")
