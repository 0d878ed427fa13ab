from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from leafembed.errors import RecipeError
from leafembed.learn.draw import by_language, draw, first_seen, idle_weights, length_class, quotas, uniform
from leafembed.recipe_text import DataConfig, Source


@pytest.mark.parametrize(
    ("sizes", "total", "temperature", "factors", "expected"),
    [
        ({"en": 900, "de": 100}, 80, 2, {}, {"en": 60, "de": 20}),  # sqrt: 30 to 10
        ({"en": 900, "de": 100}, 80, 1, {}, {"en": 72, "de": 8}),  # 9 to 1
        # sqrt: 2 to 10 to 30. French gives all its 4 of a share of 5; the other 96 go 10 to 30.
        ({"en": 900, "de": 100, "fr": 4}, 100, 2, {}, {"en": 72, "de": 24, "fr": 4}),
        ({"en": 50, "de": 10}, 1000, 2, {}, {"en": 50, "de": 10}),
        ({"en": 900, "de": 100}, 80, 2, {"de": 3.0}, {"en": 40, "de": 40}),  # 30 to 3 times 10
        # 30 to 20 times 10: German gives its 100 of a share of 435, English the other 400.
        ({"en": 900, "de": 100}, 500, 2, {"de": 20.0}, {"en": 400, "de": 100}),
        ({"en": 900, "de": 100}, 80, 2, {"en": 0.0}, {"en": 0, "de": 80}),
        ({}, 10, 2, {}, {}),
    ],
)
def test_shares_of_languages_by_hand(sizes, total, temperature, factors, expected):
    assert quotas(sizes, total, temperature, factors) == expected


def test_all_are_drawn_whatever_the_rounding():
    sizes = {f"l{i}": 7 + 13 * i for i in range(200)}
    for total in (1, 10, 999, 20_000, sum(sizes.values())):
        assert sum(quotas(sizes, total, 2.0, {}).values()) == total


def drawn(weights, total, codes=None, langs=("en",), seed=0, **factors):
    codes = np.zeros(len(weights), dtype=np.int64) if codes is None else codes
    weights = np.array(weights, dtype=np.float64)
    chance = uniform(np.arange(len(weights), dtype=np.uint64), seed, 0)
    return draw(langs, codes, weights, total, temperature=2, factors=factors, chance=chance)


def test_nothing_is_drawn_twice_or_with_weight_0_and_the_order_is_that_of_reading():
    found = drawn([1.0, 0.0] * 50, 30)
    assert len(set(found.tolist())) == 30
    assert found.tolist() == sorted(found.tolist())
    assert not (found % 2).any()
    assert drawn([1.0, 0.0] * 50, 1000).tolist() == list(range(0, 100, 2))


def test_a_record_of_twice_the_weight_is_drawn_about_twice_as_often():
    counts = Counter((drawn([2.0, 1.0] * 5_000, 1_000, seed=seed) % 2 == 0).sum() for seed in range(5))
    assert all(600 < n < 730 for n in counts)  # two thirds, by hand, less a little since records run out


def test_equal_weights_draw_evenly():
    times = np.zeros(40)
    for seed in range(400):
        times[drawn([1.0] * 40, 10, seed=seed)] += 1
    assert abs(times - 100).max() < 45  # 100 expected, standard deviation 8.7


def test_source_weights_do_not_shift_languages():
    codes = np.repeat([0, 1], [900, 100])
    found = drawn(np.where(codes == 0, 0.01, 1.0), 80, codes, ("en", "de"))
    assert Counter(codes[found].tolist()) == {0: 60, 1: 20}


def test_the_draw_depends_on_the_seed_alone():
    assert drawn([1.0] * 100, 10, seed=3).tolist() == drawn([1.0] * 100, 10, seed=3).tolist()
    assert drawn([1.0] * 100, 10, seed=3).tolist() != drawn([1.0] * 100, 10, seed=4).tolist()


def test_a_larger_draw_holds_the_smaller_one():
    weights = np.random.default_rng(0).random(500)
    assert set(drawn(weights, 50).tolist()) < set(drawn(weights, 200).tolist())


def test_chance_is_even_and_its_uses_do_not_depend_on_each_other():
    hashes = np.arange(100_000, dtype=np.uint64)
    first, second = uniform(hashes, 0, 0), uniform(hashes, 0, 1)
    assert 0 < first.min() and first.max() < 1
    assert abs(np.histogram(first, 10, (0, 1))[0] - 10_000).max() < 400  # standard deviation 95
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.015
    assert np.array_equal(first[::-1], uniform(hashes[::-1], 0, 0))


def test_lengths_fall_into_three_classes():
    lengths = np.array([1, 99, 100, 499, 500, 9_000])
    assert length_class(lengths, {}).tolist() == [1] * 6
    assert length_class(lengths, {"short": 0.0, "long": 3.0}).tolist() == [0, 0, 1, 1, 3, 3]


def test_a_record_is_new_if_one_of_its_texts_is():
    hashes = np.array([1, 2, 2, 1, 2, 3, 4, 4], dtype=np.uint64)  # (1 2) (2 1) (2 3) (4 4)
    owners = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert first_seen(hashes, owners, 4).tolist() == [True, False, True, True]


def test_factors_go_by_the_short_tags_that_rows_have():
    assert by_language({"deu": 2.0, "zh-CN": 3.0, "en": 1.0}) == {"de": 2.0, "zh": 3.0, "en": 1.0}
    with pytest.raises(RecipeError, match=r"data\.language_weights: .*expected each of de once"):
        by_language({"deu": 2.0, "de": 3.0})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_rows": 40, "language_weights": {"deu": 2.0, "en": 2.0}}, []),
        ({"max_rows": 40, "language_weights": {"gr": 2.0, "fr": 0.0}}, ["there is no text in gr"]),
        ({"language_weights": {"de": 2.0}}, ["data.max_rows is not set"]),
        ({"length_weights": {"long": 0.5}}, ["data.max_rows is not set"]),
        ({"sources": (Source(path="a.txt", weight=3.0),)}, ["data.max_rows is not set"]),
        ({"language_weights": {"de": 0.0}}, []),  # leaves German out all the same
    ],
)
def test_weights_that_change_nothing_are_said(settings, said):
    found = idle_weights(DataConfig(**settings), {"de": 100, "en": 100})
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))
