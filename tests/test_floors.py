from __future__ import annotations

import subprocess
import sys

import numpy as np

from leafembed.judge.floors import RandomEncoder
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
