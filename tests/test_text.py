from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from conftest import write_rows

from leafembed.errors import DataError
from leafembed.text import normalise_lang, normalise_text, read_lines, read_objects, read_rows, stream_texts


def test_texts_that_differ_in_case_space_or_composition_are_the_same() -> None:
    assert normalise_text("  Caf\u00e9\t LATTE\n") == normalise_text("cafe\u0301 latte") == "caf\u00e9 latte"
    assert normalise_text("STRASSE") == normalise_text("Straße")
    assert normalise_text("one") != normalise_text("two")


@pytest.mark.parametrize(
    ("tag", "short"),
    [
        ("deu", "de"),
        ("ger", "de"),
        ("eng_Latn", "en"),
        ("zh-CN", "zh"),
        ("zh-TW", "zh"),
        ("cmn_Hant", "zh"),
        ("EN", "en"),
        ("EN-ext", "en"),
        ("jp", "ja"),
        ("zsm", "ms"),
        ("gsw", "gsw"),
        (" De ", "de"),
        ("", "und"),
        (None, "und"),
        ("und", "und"),
    ],
)
def test_language_tags(tag: str | None, short: str) -> None:
    assert normalise_lang(tag) == short
    assert normalise_lang(short) == short


def test_lines_are_numbered_and_lose_their_end_and_byte_order_mark(tmp_path: Path) -> None:
    raw = "\ufeffeins\r\n\nzwei\u2028drei\nvier".encode()
    for name, content in (("a.txt", raw), ("a.txt.gz", gzip.compress(raw))):
        path = tmp_path / name
        path.write_bytes(content)
        assert list(read_lines(path)) == [(1, "eins"), (2, ""), (3, "zwei\u2028drei"), (4, "vier")]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 10 + b"\r\n" + b"y" * 10 + b"\n" + b"z" * 11)
    lines = read_lines(path, max_line_bytes=10)
    assert [next(lines)[0], next(lines)[0]] == [1, 2]
    with pytest.raises(DataError, match=r"a\.txt:3: line longer than 10 bytes"):
        next(lines)


def test_invalid_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nab\xffcd\n")
    with pytest.raises(DataError, match=r"a\.txt:2: invalid UTF-8 at byte 2; expected UTF-8 text, convert with iconv"):
        list(read_lines(path))


def test_truncated_or_corrupt_gzip_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    whole = gzip.compress(b"some text that is long enough to be cut\n" * 50)
    flipped = bytearray(whole)
    flipped[20] ^= 0xFF
    for content in (whole[:-12], b"not gzip at all", bytes(flipped)):
        path = tmp_path / "a.txt.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.txt\.gz: cannot be read after line"):
            list(read_lines(path))
    with pytest.raises(DataError, match="No such file"):
        list(read_lines(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": 1', r":2: malformed JSON"),
        ('{"a": 1}\n\n', r":2: malformed JSON"),
        ("[1]\n", r":1: got a JSON list, expected one object a line"),
        ("[" * 100_000, r":1: malformed JSON"),
        ("", r"the file is empty"),
    ],
)
def test_lines_that_are_no_objects_are_errors(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_objects(path))


def test_rows_hold_the_named_columns_converted(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl.gz", [{"t": " ä ", "id": 7, "n": 3, "more": []}, {"t": "b", "id": "x", "n": 0.5}]
    )
    rows = read_rows(path, texts=("t",), names=("id",), numbers=("n",), optional=("title",))
    assert rows == [{"t": " ä ", "id": "7", "n": 3.0, "title": ""}, {"t": "b", "id": "x", "n": 0.5, "title": ""}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"t": "a", "id": "b"}', r":1: got the keys \['id', 't'\], expected \['n'\] too"),
        ('{"t": " ", "id": "b", "n": 1}', r":1: got t = ' ', expected text that is not blank"),
        ('{"t": null, "id": "b", "n": 1}', r"got t = 'None'"),
        ('{"t": 5, "id": "b", "n": 1}', r"got t = '5', expected text"),
        ('{"t": "\\ud800", "id": "b", "n": 1}', r"surrogate"),
        ('{"t": "a", "id": true, "n": 1}', r"got id = 'True'"),
        ('{"t": "a", "id": "b", "n": NaN}', r"got n = 'nan', expected a finite number"),
        ('{"t": "a", "id": "b", "n": 1e999}', r"got n = 'inf'"),
        ('{"t": "a", "id": "b", "n": "1"}', r"got n = '1', expected a finite number"),
        ('{"t": "a", "id": "b", "n": 1' + "0" * 400 + "}", r"got n = "),
    ],
)
def test_rows_with_a_wrong_value_are_errors(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(row, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(path, texts=("t",), names=("id",), numbers=("n",))


def test_a_blank_text_of_json_lines_is_read_as_one_and_none_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n{"text": " "}\n{"text": null}\n', encoding="utf-8")
    texts = stream_texts(path)
    assert [next(texts), next(texts), next(texts)] == ["a", "", " "]
    with pytest.raises(DataError, match=r":4: got text = 'None', expected text"):
        next(texts)


@pytest.mark.parametrize(("name", "said"), [("none.txt", "No such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_opened_is_said_plainly(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"{said}.*; expected a file that can be read"):
        next(read_lines(tmp_path / name))
