from __future__ import annotations

import numpy as np
import pytest

from leafembed.learn import negatives as module
from leafembed.learn.negatives import mine_negatives
from leafembed.learn.rows import Rows
from leafembed.types import Row

# A text at 0 degrees and its positive at 20 (cosine 0.940). With a margin of 5 % a negative has a cosine of at most
# 0.893: 26.8 degrees or more.
ANGLES = {"query": 0, "positive": 20, "near": 25, "far": 40, "farther": 60, "opposite": 170, "foreign": 30, "role": 28}


def pool(**changes):
    rows = [
        Row("query", "en", "query"),
        Row("positive", "en", "document", pair=0),
        *(Row(name, "en", "document") for name in ("near", "far", "farther", "opposite")),
        Row("foreign", "de", "document"),
        Row("role", "en", "query"),
    ]
    return Rows.of([changes.get(row.text, row) for row in rows])


def mine(rows, hardest=1, margin=0.05, seed=0, angles=ANGLES):
    def vectors(index):
        radians = np.radians([angles[text.casefold().strip()] for text in rows.texts(index)])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)

    return mine_negatives(rows, vectors, hardest=hardest, margin=margin, seed=seed)


def name(rows, found, i=0):
    return rows[int(found[i])].text if found[i] >= 0 else None


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0.05, "far"),
        (0.0, "near"),
        (0.03, "near"),
        (0.2, "farther"),
        (0.99, "opposite"),
        (1.99, "opposite"),
        (3.0, None),
    ],
)
def test_the_hardest_below_the_margin_by_hand(margin, expected):
    # Limits 0.893, 0.940, 0.911, 0.752, 0.009, -0.930, -1.879; cosines: near .906, far .766, farther .5, opposite -.985
    rows = pool()
    found = mine(rows, margin=margin)
    assert name(rows, found) == expected
    assert (np.delete(found, 0) == -1).all()


def test_below_a_positive_of_negative_cosine_the_margin_still_leaves_room():
    angles = ANGLES | {"positive": 120, "near": 118, "far": 121, "farther": 125, "opposite": 126}
    rows = pool()  # -0.5 less 5 % of 0.5: -0.525, 121.7 degrees
    assert name(rows, mine(rows, angles=angles)) == "farther"


def test_equal_texts_are_no_negatives():
    angles = ANGLES | {"near": 50}
    rows = pool(far=Row(" POSITIVE ", "en", "document"), farther=Row("Query", "en", "document"))
    assert name(rows, mine(rows, angles=angles | {"positive": 0}, margin=-1.0)) == "near"


def test_another_translation_of_the_same_text_is_no_negative():
    # "farther" translates a text that stands in the corpus twice, once as our query.
    rows = Rows.of([*pool(farther=Row("farther", "en", "document", pair=8)), Row("QUERY", "en", "query")])
    assert name(rows, mine(rows, margin=0.2)) == "opposite"
    assert name(pool(), mine(pool(), margin=0.2)) == "farther"


def test_a_given_negative_stays_and_every_pair_gets_its_own():
    rows = pool(query=Row("query", "en", "query", negative=5))
    assert mine(rows).tolist() == [5, *[-1] * 7]
    two = Rows.of([*pool(), Row("second", "en", "query"), Row("other", "en", "document", pair=8)])
    found = mine(two, angles=ANGLES | {"second": 60, "other": 62})
    assert (name(two, found), name(two, found, 8)) == ("far", "far")  # 60 - 40 = 20 degrees; farther lies at the text


def test_only_pairs_are_given_negatives():
    rows = Rows.of([row for row in pool() if row.pair is None])
    assert mine(rows).tolist() == [-1] * 7


def test_of_several_candidates_one_is_drawn_by_seed():
    rows = pool()
    names = [name(rows, mine(rows, hardest=2, seed=seed)) for seed in range(30)]
    assert set(names) == {"far", "farther"}
    assert names == [name(rows, mine(rows, hardest=2, seed=seed)) for seed in range(30)]
    assert {name(rows, mine(rows, hardest=99, margin=0.2, seed=seed)) for seed in range(30)} == {"farther", "opposite"}


def test_blocks_and_pools_do_not_change_what_is_found(monkeypatch):
    rng = np.random.default_rng(0)
    rows, angles = [], {}
    for i in range(60):
        rows += [Row(f"q{i}", "en", "query"), Row(f"p{i}", "en", "document", pair=2 * i)]
        angles |= {f"q{i}": rng.uniform(0, 360), f"p{i}": rng.uniform(0, 360)}
    rows = Rows.of(rows)
    whole = mine(rows, angles=angles)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert np.array_equal(mine(rows, angles=angles), whole)
    monkeypatch.setattr(module, "MAX_POOL", 20)
    found = mine(rows, angles=angles)
    assert len(set(found[found >= 0].tolist())) <= 20
    assert np.array_equal(found, mine(rows, angles=angles))
