"""Sources of training text: formats, languages, cleaning, what cannot be used, and the hub."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import write_rows
from corpora import corpus, lines, texts

from leafembed.errors import DataError
from leafembed.learn.sources import Record
from leafembed.recipe_text import Source
from leafembed.text import clean_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows = [{"text": text, "lang": "deu"} for text in lines(60)]
    if ".txt" in name:
        data = "\r\n".join(["", *lines(60), "  "]).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    elif name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        write_rows(tmp_path / name, rows)
    found = corpus(tmp_path, Source(path=name, lang="de"))
    assert sorted(texts([*found.train, *found.validation])) == sorted(lines(60))
    assert found.languages == {"de": 44}
    assert found.counts == {f"read from {name}": 60, "train": 44, "validation": 16}


def test_a_glob_reads_every_file_and_an_absolute_path_ignores_root(text_folder):
    (text_folder / "other.txt").write_text("\n".join(lines(20, "andere")), encoding="utf-8")
    assert corpus(text_folder, Source(path="*.txt")).counts["read from *.txt"] == 120
    absolute = corpus(
        text_folder / "nowhere",
        Source(path=str(text_folder / "other.txt")),
        Source(path=str(text_folder / "plain.txt")),
    )
    assert len(absolute.train) + len(absolute.validation) == 120


def test_a_language_comes_from_the_source_else_the_row_else_is_unknown(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": text, "lang": "DEU"} for text in lines(60)])
    write_rows(tmp_path / "b.jsonl", [{"text": text} for text in lines(60, "b")])
    assert set(corpus(tmp_path, Source(path="a.jsonl")).languages) == {"de"}
    assert set(corpus(tmp_path, Source(path="a.jsonl", lang="fr-CA")).languages) == {"fr"}
    assert set(corpus(tmp_path, Source(path="b.jsonl")).languages) == {"und"}


def test_text_is_composed_stripped_of_controls_and_cut():
    assert clean_text("  cafe\u0301\t\x00 au\n\ufefflait ") == "caf\u00e9 au lait"


def test_long_texts_are_cut(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"{i} " + "x" * 100 for i in range(60)), encoding="utf-8")
    assert {len(text) for text in texts(corpus(tmp_path, Source(path="a.txt"), max_chars=20).train)} == {20}


def test_a_pair_counts_as_the_language_of_its_positive():
    assert Record(("a", "b", "c"), ("en", "sw", "sw"), (None,) * 3).balance_lang == "sw"
    assert Record(("a",), ("en",), (None,)).balance_lang == "en"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.txt: the source is empty"),
        (b"\n \n\n", r"a\.txt: the source is empty"),
        (b"good line\nbad \xff line\n", r"a\.txt:2: invalid UTF-8 at byte 4"),
        (b"good line\n" + b"x" * 1_000_000, r"a\.txt:2: line longer than 262144 bytes"),
        (b"one line\ntwo lines\n", r"too small: got 0 training texts beside 2 .*validation_rows"),
    ],
)
def test_text_that_cannot_be_used_is_an_error_that_says_where(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        corpus(tmp_path, Source(path="a.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"body": "some text", "id": 3}', r"a\.jsonl:1: no text in column 'text', found body, id"),
        ('{"text": "some text"}\n{"text": null}', r"a\.jsonl:2: no text in column 'text'"),
        ('{"text": "some text"}\n{"text": 3}', r"a\.jsonl:2: no text in column 'text'"),
        ('{"text": "some text"}\n{"text": ', r"a\.jsonl:2: malformed JSON"),
        ('{"text": "some text"}\n{"text": "half \\ud83d pair"}', r"a\.jsonl:2: .*surrogate"),
        ("", r"a\.jsonl: the file is empty"),
    ],
)
def test_rows_that_hold_no_text_are_errors_that_say_where(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        corpus(tmp_path, Source(path="a.jsonl"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(path="missing-*.txt"), r"no file matches .*missing-\*\.txt; set data\.root"),
        (Source(path="a.csv"), r"got a \.csv file, expected one of \.txt, \.jsonl, \.parquet"),
        (Source(), "needs a path or a hub"),
        (Source(hub="org/name"), r"org/name: got revision '', expected a 40-digit commit"),
        (Source(hub="org/name", revision="main"), r"got revision 'main', expected a 40-digit commit"),
    ],
)
def test_sources_that_lead_nowhere_are_errors(tmp_path, source, message):
    (tmp_path / "a.csv").write_text("text\nhello", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        corpus(tmp_path, source)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_truncated_file_is_an_error(tmp_path, name):
    write_rows(tmp_path / "a.jsonl.gz", [{"text": text} for text in lines(50)])
    (tmp_path / name).write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(DataError, match=name):
        corpus(tmp_path, Source(path=name))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as it takes to fetch one data set."""

    def __init__(self, files, *args):
        self.files = files
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/datasets/org/name"):
            files = [
                {"type": "file", "path": n, "rfilename": n, "size": len(b), "oid": "0"} for n, b in self.files.items()
            ]
            listing = {"id": "org/name", "sha": COMMIT, "siblings": files}
            self.answer(json.dumps(files if "/tree/" in path else listing).encode())
        elif path == f"/datasets/org/name/resolve/{COMMIT}/{name}" and name in self.files:
            self.answer(self.files[name])
        else:
            self.send_error(404)

    def answer(self, body):
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_hub_dataset_is_fetched_at_its_commit(tmp_path):
    body = "".join(json.dumps({"text": text}) + "\n" for text in lines(60)).encode()
    handler = functools.partial(Hub, {"rows.jsonl": body, "evil.py": b"raise SystemExit(9)"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = (
            "from pathlib import Path; from leafembed.learn.data import prepare_corpus\n"
            "from leafembed.recipe_text import DataConfig, Source\n"
            f"source = Source(hub='org/name', revision='{COMMIT}', files='*.jsonl')\n"
            "config = DataConfig(sources=(source,), validation_rows=16)\n"
            "print(len(prepare_corpus(config, Path('kept'), seed=0, prompt_name=None).train))"
        )
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0",
                       "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path),
                       "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        server.shutdown()
    assert done.stdout.strip() == "44", done.stderr
    assert not list(tmp_path.rglob("evil.py"))
