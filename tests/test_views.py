from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import HashEncoder
from tiny import make_model_folder

from leafembed.errors import ModelError, NonFiniteError
from leafembed.judge.views import View
from leafembed.ship.encoder import BundleEncoder
from leafembed.types import FloatArray

TEXTS = ["red green", "one two three", "grün", ""]


class Exiting(HashEncoder):
    """Names two early exits, each of which gives other vectors."""

    exits = (2, 4)

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, exit: int | None = None) -> FloatArray:
        return super().encode([f"{text} exit{exit}" for text in texts], prompt_name=prompt_name)


def test_fewer_dimensions_are_those_that_a_bundle_gives(tmp_path: Path) -> None:
    encoder = BundleEncoder(make_model_folder(tmp_path / "model", prompts={"query": "query: "}))
    view = View(encoder, dim=3)
    np.testing.assert_allclose(view.encode(TEXTS), encoder.encode(TEXTS, dim=3), atol=1e-6)
    np.testing.assert_allclose(
        view.encode(TEXTS, prompt_name="query"), encoder.encode(TEXTS, prompt_name="query", dim=3), atol=1e-6
    )
    assert (view.ref.name, view.ref.dim, view.ref.fingerprint) == ("tiny (dim 3)", 3, encoder.ref.fingerprint)
    assert view.part == {"embed_dim": 3}
    assert view.whole == encoder.ref


def test_all_dimensions_are_the_whole() -> None:
    encoder = HashEncoder(16)
    view = View(encoder, dim=16)
    np.testing.assert_allclose(view.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    assert (view.ref, view.part) == (encoder.ref, {})


def test_an_exit_is_passed_to_an_encoder_that_names_it() -> None:
    encoder = Exiting(16)
    view = View(encoder, dim=4, exit=2)
    whole = encoder.encode(TEXTS, exit=2)[:, :4]
    np.testing.assert_allclose(view.encode(TEXTS), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    assert view.ref.name == "hash (exit 2, dim 4)"
    assert view.part == {"exit": 2, "embed_dim": 4}
    np.testing.assert_allclose(View(encoder).encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(ModelError, match="exit of hash: got 2, expected none: it has no early exits"):
        View(HashEncoder(), exit=2)
    with pytest.raises(ModelError, match=r"exit of hash: got 3, expected one of \[2, 4\]"):
        View(Exiting(), exit=3)
    for dim in (0, 17):
        with pytest.raises(ModelError, match=f"dim of hash: got {dim}, expected 1 to 16"):
            View(HashEncoder(16), dim=dim)


def test_a_part_without_a_direction_is_refused() -> None:
    class Flat(HashEncoder):
        def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
            return np.eye(4, dtype=np.float32)[[3] * len(texts)]

    with pytest.raises(NonFiniteError, match=r"hash \(dim 2\): row 0 of 4 has length 0"):
        View(Flat(4), dim=2).encode(TEXTS)
