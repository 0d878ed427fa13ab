from __future__ import annotations

import numpy as np
import pytest

from leafembed.errors import RecipeError
from leafembed.learn import batches as planning
from leafembed.learn.batches import plan_batches, plan_pass
from leafembed.learn.links import Links, pairs_in, triplets_in
from leafembed.recipe_learn import Phase, TrainConfig
from leafembed.types import Row

LENGTHS = (np.arange(100, dtype=np.int32) * 7) % 37 + 3


def plan(lengths=LENGTHS, links=None, *, seed=0, limit=None, processes=1, **settings):
    config = TrainConfig(**{"batch_size": 8} | settings)
    return plan_batches(lengths, links, config=config, limit=limit, seed=seed, processes=processes)


def batches(found):
    return [found[i][0].tolist() for i in range(len(found))]


def test_one_epoch_holds_every_text_once_and_texts_of_like_length():
    found = batches(plan())
    assert sorted(row for batch in found for row in batch) == list(range(100))
    assert len(found) == 13
    assert max(max(LENGTHS[batch]) - min(LENGTHS[batch]) for batch in found) <= 4


def test_the_plan_depends_on_the_seed_alone():
    assert batches(plan()) == batches(plan())
    assert batches(plan()) != batches(plan(seed=1))


def test_every_epoch_has_its_own_order():
    found = batches(plan(epochs=2))
    first, second = found[:13], found[13:]
    assert len(second) == 13
    assert sorted(row for batch in second for row in batch) == list(range(100))
    assert first != second


def test_the_order_within_a_pass_is_not_by_length():
    means = [np.mean(LENGTHS[batch]) for batch in batches(plan())]
    assert means != sorted(means)


def test_max_steps_decides_and_each_step_has_its_batches():
    found = plan(max_steps=5, gradient_accumulation=3, processes=2)
    assert (found.steps, len(found), found.batches_per_step) == (5, 30, 6)
    assert found.texts_until(5) == len(found.rows) == 30 * 8 - 2 * 4  # a pass ends with a batch of 4
    assert found.texts_until(0) == found.tokens_until(0) == 0
    assert found.tokens_until(5) == sum(LENGTHS[found.rows])


def test_epochs_and_accumulation():
    assert plan(epochs=1, gradient_accumulation=4).steps == 4  # 13 batches
    assert plan(epochs=0.5).steps == 7


def test_batch_tokens_bound_what_is_padded():
    found = batches(plan(batch_tokens=60))
    assert sorted(row for batch in found for row in batch) == list(range(100))
    assert all(len(batch) * max(LENGTHS[batch]) <= 60 and len(batch) <= 8 for batch in found)
    assert min(len(batch) for batch in found) < 8


def test_batch_tokens_count_after_the_cut_and_must_hold_one_text():
    found = batches(plan(batch_tokens=64, max_seq_length=8))
    assert all(len(batch) * min(8, max(LENGTHS[batch])) <= 64 for batch in found)
    assert len(found) == 13
    with pytest.raises(RecipeError, match=r"train.batch_tokens: got 20, expected at least the 39 tokens"):
        plan(batch_tokens=20)


def test_a_curriculum_has_its_share_of_the_steps_and_each_batch_its_limit():
    phases = (Phase(tokens=8, share=0.25), Phase(tokens=16, share=0.25), Phase(tokens=64, share=0.5))
    found = plan(max_steps=20, curriculum=phases, batch_tokens=64)
    assert [found[i][1] for i in range(20)] == [8] * 5 + [16] * 5 + [64] * 10
    for i in range(20):
        rows, limit = found[i]
        assert len(rows) * min(limit, LENGTHS[rows].max()) <= 64
    assert found.tokens_until(5) == sum(np.minimum(LENGTHS[found.rows[: found.texts_until(5)]], 8))


def test_a_new_phase_goes_on_within_the_pass():
    phases = (Phase(tokens=8, share=0.5), Phase(tokens=64, share=0.5))
    found = plan(epochs=1, curriculum=phases, batch_tokens=64)
    seen = found.rows.tolist()
    first_pass = seen[:100]
    assert sorted(first_pass) == list(range(100))
    assert abs(len(seen) - 100) <= 30  # steps come whole, and a pass is counted by an estimate


def test_the_student_s_own_limit_is_never_exceeded():
    assert plan(max_steps=2, limit=16).limits.tolist() == [16, 16]


def test_validation_batches_hold_each_row_once_sorted_by_length():
    found = plan_pass(LENGTHS, 16, TrainConfig(batch_size=8, batch_tokens=100))
    assert sorted(row for batch in found for row in batch) == list(range(100))
    assert [LENGTHS[row] for batch in found for row in batch] == sorted(LENGTHS)


def test_validation_pairs_share_a_batch():
    links = Links.of(rows_of(100, pairs=[(3, 80), (40, 41)], negatives=[(3, 7)]))
    found = plan_pass(LENGTHS, 16, TrainConfig(batch_size=8, batch_tokens=100), links)
    assert sorted(row for batch in found for row in batch) == list(range(100))
    assert any({3, 80, 7} <= set(batch) for batch in found)
    assert any({40, 41} <= set(batch) for batch in found)


def rows_of(n, pairs=(), negatives=()):
    rows = {i: {"text": f"t{i}", "lang": "en"} for i in range(n)}
    for anchor, positive in pairs:
        rows[positive]["pair"] = anchor
    for anchor, negative in negatives:
        rows[anchor]["negative"] = negative
    return [Row(**rows[i]) for i in range(n)]


# 0-1-2 mean the same, 3-4 are a pair, 5 is a hard negative of 0 and nothing else, 3 is one of 0's group too.
LINKED = rows_of(40, pairs=[(0, 1), (1, 2), (3, 4), (10, 11)], negatives=[(0, 5), (2, 3)])


def test_pairs_and_triplets_are_found_by_row_number_one_pair_of_a_group():
    links = Links.of(LINKED)
    assert pairs_in([4, 9, 3, 2, 1, 0], links) == ([2, 4], [0, 3])
    assert pairs_in([2, 0], links) == ([], [])  # 2 is a positive of 1, which is not there
    assert triplets_in([1, 5, 0, 2], links) == ([2], [0], [1])
    assert triplets_in([1, 0, 2], links) == ([], [], [])
    assert pairs_in([40, 0], links) == ([], [])  # a validation row


def test_a_second_pair_of_the_same_text_is_no_in_batch_negative():
    rows = rows_of(6, pairs=[(0, 1), (2, 3), (4, 5)])
    rows[2] = Row(" T0", "en")  # the English side again, for another translation
    links = Links.of(rows)
    assert pairs_in([0, 1, 2, 3, 4, 5], links) == ([0, 4], [1, 5])
    assert links.group[0] != links.group[2]  # they need not share a batch
    assert len(set(links.meaning[:4])) == 1
    assert links.meaning[4] not in links.meaning[:4]


def test_rows_that_mean_the_same_share_a_batch_with_their_hard_negatives():
    links = Links.of(LINKED)
    for found in (batches(plan(LENGTHS[:40], links, seed=seed)) for seed in range(5)):
        assert {row for batch in found for row in batch} == set(range(40))
        of = {row: [i for i, batch in enumerate(found) if row in batch] for row in range(40)}
        (home,) = of[0]
        assert {0, 1, 2, 3, 5} <= set(found[home])
        assert of[1] == of[2] == of[5] == [home]
        assert any({3, 4} <= set(batch) for batch in found)
        assert any({10, 11} <= set(batch) for batch in found)
        assert all(len(batch) <= 8 and len(set(batch)) == len(batch) for batch in found)


def test_without_links_rows_go_their_own_way():
    apart = [batches(plan(LENGTHS[:40], seed=seed)) for seed in range(5)]
    assert not all(any({0, 1, 2} <= set(batch) for batch in found) for found in apart)


def test_a_group_larger_than_a_batch_is_split():
    links = Links.of(rows_of(30, pairs=[(0, i) for i in range(1, 20)]))
    found = batches(plan(LENGTHS[:30], links, batch_size=8))
    assert sorted(row for batch in found for row in batch) == list(range(30))
    assert max(len(batch) for batch in found) == 8


def test_pairs_in_a_ring_are_one_group():
    links = Links.of(rows_of(3, pairs=[(0, 1), (1, 0)]))
    assert links.group[0] == links.group[1] != links.group[2]


def test_rows_are_packed_as_pieces_are():
    """The fast way for rows that move alone gives what the careful one gives for the same rows."""
    rng = np.random.default_rng(0)
    for batch_tokens in (None, 40, 100):
        config = TrainConfig(batch_size=8, batch_tokens=batch_tokens)
        lengths = rng.integers(1, 40, 200).tolist()
        pieces = planning._sorted([[i] for i in range(200)], lengths)
        careful, batch = [], []
        for piece in pieces:  # as the other way, one row after the other
            wide = min(lengths[piece[0]], 16)
            if batch and (len(batch) == 8 or (len(batch) + 1) * wide > (batch_tokens or 8 * 16)):
                careful.append(batch)
                batch = []
            batch = [*batch, piece]
        assert planning._pack(pieces, lengths, 16, config) == [*careful, batch]
