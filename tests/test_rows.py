from __future__ import annotations

import numpy as np
import pytest

from leafembed.errors import DataError
from leafembed.learn import rows as module
from leafembed.learn.rows import Rows, write_rows
from leafembed.types import Corpus, Row

ROWS = tuple(
    Row(
        f"text {i} \u00e9\U0001f600",
        ["en", "de", "sw"][i % 3],
        "query" if i % 2 else None,
        i - 1 if i % 4 == 1 else None,
        5 if i == 2 else None,
        i - 1 if i % 4 == 1 else None,
    )
    for i in range(53)
)


@pytest.fixture(params=["file", "memory"])
def rows(request, tmp_path, monkeypatch):
    """The same rows from a file of several batches and from memory."""
    monkeypatch.setattr(module, "BATCH_ROWS", 10)
    if request.param == "memory":
        return Rows.of(ROWS)
    write_rows(tmp_path / "rows.arrow", iter(ROWS))
    return Rows.open(tmp_path / "rows.arrow")


def test_rows_are_a_sequence_like_the_tuple_they_were(rows):
    assert len(rows) == 53
    assert tuple(rows) == ROWS
    assert [rows[i] for i in (0, 9, 10, 52, -1, -53)] == [ROWS[i] for i in (0, 9, 10, 52, -1, -53)]
    for part in (
        slice(8, 23),
        slice(None, 5),
        slice(50, 99),
        slice(30, 30),
        slice(None, None, 7),
        slice(None, None, -1),
    ):
        assert tuple(rows[part]) == ROWS[part]
    assert rows[20:40].texts([0, 19]) == [ROWS[20].text, ROWS[39].text]
    assert ROWS[7] in rows
    assert rows.index(ROWS[31]) == 31
    for index in (53, -54):
        with pytest.raises(IndexError):
            rows[index]


def test_no_rows_are_a_sequence_too(tmp_path):
    write_rows(tmp_path / "none.arrow", ())
    for rows in (Rows.open(tmp_path / "none.arrow"), Rows.of(())):
        assert (len(rows), list(rows), rows.texts([])) == (0, [], [])
        assert len(rows.column("lang")) == len(rows.column("pair")) == len(rows.lengths()) == 0


def test_texts_come_in_the_order_asked_for(rows):
    wanted = [52, 0, 11, 11, 9, 30]
    assert rows.texts(wanted) == rows.texts(np.array(wanted)) == [ROWS[i].text for i in wanted]
    for beyond in ([53], [-1, 2]):
        with pytest.raises(IndexError, match="expected 0 to 52"):
            rows.texts(beyond)


def test_columns_and_lengths(rows):
    assert rows.column("lang").tolist() == [row.lang for row in ROWS]
    assert rows.column("prompt_name").tolist() == [row.prompt_name for row in ROWS]
    for name in module.POINTERS:
        column = rows.column(name)
        assert column.dtype == np.int64
        assert column.tolist() == [-1 if getattr(row, name) is None else getattr(row, name) for row in ROWS]
    assert rows.lengths().tolist() == [len(row.text) for row in ROWS]
    with pytest.raises(ValueError, match="got column 'text', expected one of lang, prompt_name"):
        rows.column("text")


def test_pointers_are_replaced_in_a_copy(rows):
    values = np.full(53, -1)
    values[3] = 44
    changed = rows.with_pointers("negative", values)
    assert (changed[3].negative, changed[2].negative, rows[2].negative) == (44, None, 5)
    assert changed.column("pair").tolist() == rows.column("pair").tolist()
    assert changed != rows
    assert changed.with_pointers("negative", rows.column("negative")) == rows
    with pytest.raises(ValueError, match=r"got 'negative' \(2,\), expected .*\(53,\)"):
        rows.with_pointers("negative", values[:2])


def test_a_corpus_counts_languages_of_rows_and_of_tuples_alike(rows):
    assert Corpus(rows, rows[:3], {}, "f").languages == Corpus(ROWS, ROWS[:3], {}, "f").languages == {
        "de": 18, "en": 18, "sw": 17}  # fmt: skip
    assert Rows.of(rows) is rows


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, damage):
    path = tmp_path / "rows.arrow"
    write_rows(path, ROWS)
    content = {"missing": None, "truncated": path.read_bytes()[:-100], "garbage": b"garbage"}[damage]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.arrow: damaged corpus .*delete .* and run again"):
        Rows.open(path)
