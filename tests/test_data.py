from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows

from leafembed.errors import DataError
from leafembed.evidence import Contamination
from leafembed.learn.data import prepare_corpus
from leafembed.learn.overlap import JudgedSet
from leafembed.learn.sources import Record
from leafembed.recipe_learn import DataConfig, Source
from leafembed.text import clean_text, normalise_text, text_hash

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lines(n, word="word"):
    return [f"{word} number {i}" for i in range(n)]


def corpus(root, *sources, seed=0, prompt_name=None, judged=(), **config):
    config = DataConfig(root=root, sources=sources, **({"validation_rows": 16} | config))
    kept = root / "kept"
    texts = frozenset(map(normalise_text, judged))
    sets = {"sts/judged": JudgedSet(frozenset((text,) for text in texts), texts)} if texts else {}
    return prepare_corpus(config, kept, seed=seed, prompt_name=prompt_name, judged=sets)


def texts(rows):
    return [row.text for row in rows]


@pytest.fixture
def plain(tmp_path):
    (tmp_path / "plain.txt").write_text("\n".join(lines(100)), encoding="utf-8")
    return tmp_path


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


def test_a_glob_reads_every_file_and_an_absolute_path_ignores_root(plain):
    (plain / "other.txt").write_text("\n".join(lines(20, "andere")), encoding="utf-8")
    assert corpus(plain, Source(path="*.txt")).counts["read from *.txt"] == 120
    absolute = corpus(plain / "nowhere", Source(path=str(plain / "other.txt")), Source(path=str(plain / "plain.txt")))
    assert len(absolute.train) + len(absolute.validation) == 120


def test_a_language_comes_from_the_source_else_the_row_else_is_unknown(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": text, "lang": "DEU"} for text in lines(60)])
    write_rows(tmp_path / "b.jsonl", [{"text": text} for text in lines(60, "b")])
    assert set(corpus(tmp_path, Source(path="a.jsonl")).languages) == {"de"}
    assert set(corpus(tmp_path, Source(path="a.jsonl", lang="fr-CA")).languages) == {"fr"}
    assert set(corpus(tmp_path, Source(path="b.jsonl")).languages) == {"und"}


def test_pairs_and_negatives_point_at_each_other_and_stay_on_one_side(tmp_path):
    rows = [
        {"q": f"question {i}", "a": f"Antwort {i}", "n": f"falsch {i}", "lang": "en", "other": "deu"} for i in range(60)
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    source = Source(path="a.jsonl", text="q", positive="a", negative="n", positive_lang="other", prompt_name="query",
                    positive_prompt_name="document")  # fmt: skip
    found = corpus(tmp_path, source)
    for side in (found.train, found.validation):
        assert len(side) % 3 == 0
        for i in range(0, len(side), 3):
            question, answer, negative = side[i : i + 3]
            number = question.text.split()[1]
            assert (answer.text, negative.text) == (f"Antwort {number}", f"falsch {number}")
            assert (question.pair, answer.pair, negative.pair) == (None, i, None)
            assert (question.negative, answer.negative, negative.negative) == (i + 2, None, None)
            assert [row.lang for row in side[i : i + 3]] == ["en", "de", "de"]
            assert [row.prompt_name for row in side[i : i + 3]] == ["query", "document", "document"]
    assert len(found.train) + len(found.validation) == 180


def test_the_prompt_of_the_recipe_holds_where_a_source_names_none(plain):
    assert {row.prompt_name for row in corpus(plain, Source(path="plain.txt"), prompt_name="STS").train} == {"STS"}
    named = corpus(plain, Source(path="plain.txt", prompt_name="query"), prompt_name="STS")
    assert {row.prompt_name for row in named.train} == {"query"}


def test_duplicates_short_texts_and_other_languages_are_dropped_and_counted(tmp_path):
    rows = [{"text": text, "lang": "en"} for text in lines(60)]
    rows += [
        {"text": "WORD  Number 3 ", "lang": "en"},
        {"text": "ab", "lang": "en"},
        {"text": "hola que tal", "lang": "es"},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    found = corpus(tmp_path, Source(path="a.jsonl"), languages=("eng",))
    assert found.counts["dropped: duplicate"] == 1
    assert found.counts["dropped: too short"] == 1
    assert found.counts["dropped: language not asked for"] == 1
    assert sorted(map(normalise_text, texts([*found.train, *found.validation]))) == sorted(lines(60))


def test_evaluation_texts_are_dropped_with_their_pair_and_counted(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": f"question {i}", "a": f"answer {i}"} for i in range(60)])
    source = Source(path="a.jsonl", positive="a")
    found = corpus(tmp_path, source, judged=["Question 5", "ANSWER  7", "word"])
    assert found.counts["dropped: equals an evaluation text"] == 2
    assert found.contamination == (Contamination("sts/judged", 3, exact=2, ngram=0, rows_exact=2, rows_ngram=0),)
    assert not {"question 5", "answer 5", "question 7", "answer 7"} & set(texts([*found.train, *found.validation]))


def test_a_text_held_out_is_in_no_training_pair(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": f"shared {i % 30}", "a": f"answer {i}"} for i in range(120)])
    found = corpus(tmp_path, Source(path="a.jsonl", positive="a"))
    assert not set(texts(found.train)) & set(texts(found.validation))


def test_text_is_composed_stripped_of_controls_and_cut():
    assert clean_text("  cafe\u0301\t\x00 au\n\ufefflait ") == "caf\u00e9 au lait"


def test_long_texts_are_cut(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"{i} " + "x" * 100 for i in range(60)), encoding="utf-8")
    assert {len(text) for text in texts(corpus(tmp_path, Source(path="a.txt"), max_chars=20).train)} == {20}


def test_a_pair_counts_as_the_language_of_its_positive():
    assert Record(("a", "b", "c"), ("en", "sw", "sw"), (None,) * 3).balance_lang == "sw"
    assert Record(("a",), ("en",), (None,)).balance_lang == "en"


def test_a_text_beside_itself_is_drawn_as_any_other(tmp_path):
    """Lines that nobody translated are pairs of equal texts, which must not all have the same chance."""
    pairs = [{"text": line, "pair": line if i % 2 else f"the other {i}"} for i, line in enumerate(lines(600))]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    for seed in range(3):
        found = corpus(tmp_path, Source(path="pairs.jsonl", positive="pair"), seed=seed, max_rows=300)
        equal = [row for row in found.train if row.pair is not None and row.text.startswith("word")]
        assert 120 < len(equal) < 190  # a half of 300 pairs


def test_max_rows_limits_a_source_and_the_corpus(plain):
    (plain / "other.txt").write_text("\n".join(lines(100, "andere")), encoding="utf-8")
    found = corpus(plain, Source(path="plain.txt", max_rows=30), Source(path="other.txt"))
    assert len(found.train) + len(found.validation) == 130
    assert len(corpus(plain, Source(path="plain.txt"), max_rows=40).train) == 40


def test_the_same_seed_gives_the_same_corpus_and_another_another(plain):
    one, two, three = (corpus(plain, Source(path="plain.txt"), seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.fingerprint != three.fingerprint
    assert sorted(texts([*one.train, *one.validation])) == sorted(texts([*three.train, *three.validation]))


def test_one_changed_text_changes_the_fingerprint(plain):
    before = corpus(plain, Source(path="plain.txt")).fingerprint
    content = (plain / "plain.txt").read_text(encoding="utf-8")
    (plain / "plain.txt").write_text(content.replace("number 57", "number 570"), encoding="utf-8")
    assert corpus(plain, Source(path="plain.txt")).fingerprint != before


def test_where_text_came_from_is_kept(plain):
    found = corpus(plain, Source(path="plain.txt", licence="CC0-1.0", origin="a friend"))
    assert found.sources == ({"path": "plain.txt", "licence": "CC0-1.0", "origin": "a friend"},)


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
            "from leafembed.recipe_learn import DataConfig, Source\n"
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


def both(found):
    return [*found.train, *found.validation]


def test_a_second_run_of_the_same_finds_the_corpus_and_a_changed_file_does_not(plain, capsys):
    first = corpus(plain, Source(path="plain.txt"))
    (folder,) = (plain / "kept").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["stage.json", "train.arrow", "validation.arrow"]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (plain / "plain.txt").rename(plain / "renamed.txt")
    (plain / "renamed.txt").rename(plain / "plain.txt")
    (plain / "plain.txt").touch()
    assert corpus(plain, Source(path="plain.txt")) == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for change in ({"seed": 1}, {"prompt_name": "STS"}, {"max_rows": 40}, {"judged": ("word number 3",)}):
        corpus(plain, Source(path="plain.txt"), **change)
    corpus(plain, Source(path="plain.txt", lang="en"))
    (plain / "plain.txt").write_text("\n".join(lines(101)), encoding="utf-8")
    assert len(both(corpus(plain, Source(path="plain.txt")))) == 101
    assert len(list((plain / "kept").iterdir())) == 7


def test_an_interrupted_build_is_built_again(plain, monkeypatch):
    from leafembed.learn import data

    def cut_off(path, rows):
        if path.name == "validation.arrow":
            raise KeyboardInterrupt
        return write(path, rows)

    write = data.write_rows
    monkeypatch.setattr(data, "write_rows", cut_off)
    with pytest.raises(KeyboardInterrupt):
        corpus(plain, Source(path="plain.txt"))
    monkeypatch.undo()
    found = corpus(plain, Source(path="plain.txt"))
    assert sorted(texts(both(found))) == sorted(lines(100))
    assert len(list((plain / "kept").iterdir())) == 1


def test_a_translation_may_learn_the_vector_of_its_text(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"q": f"text {i}", "a": f"Text {i}!", "n": f"falsch {i}"} for i in range(60)])
    source = Source(
        path="a.jsonl", text="q", positive="a", negative="n", positive_target="text", roles=("query", "STS")
    )
    found = corpus(tmp_path, source, validation_rows=20)
    for side in (found.train, found.validation):
        for i in range(0, len(side), 5):
            block = side[i : i + 5]
            assert [row.pair for row in block] == [None, i, None, None, None]
            assert [row.target for row in block] == [None, i, None, None, None]
            assert [row.negative for row in block] == [i + 2, None, None, None, None]
            assert [row.prompt_name for row in block] == [None, None, None, "query", "STS"]
            assert block[0].text == block[3].text == block[4].text
    own = corpus(tmp_path, dataclasses.replace(source, positive_target="own"), validation_rows=20)
    assert sorted(texts(both(own))) == sorted(texts(both(found)))
    assert own.fingerprint != found.fingerprint
    assert {row.target for row in both(own)} == {None}


def test_roles_of_one_text_stay_on_one_side_and_are_no_duplicates(plain):
    found = corpus(plain, Source(path="plain.txt", prompt_name="STS", roles=("query", "document")), validation_rows=31)
    assert not set(texts(found.train)) & set(texts(found.validation))
    assert len(both(found)) == 300
    assert len(found.validation) == 33
    assert {(row.text, row.prompt_name) for row in both(found)} == {
        (text, role) for text in lines(100) for role in ("STS", "query", "document")
    }
    assert found.counts["train"] == len(found.train) == 267


def test_weights_leave_out_and_prefer(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(600)), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines(600, "other")), encoding="utf-8")
    (tmp_path / "long.txt").write_text("\n".join(f"long {i} " + "x" * 600 for i in range(600)), encoding="utf-8")
    a, b, long = (Source(path=f"{name}.txt", lang="en") for name in ("a", "b", "long"))

    def share(found, word):
        return sum(row.text.startswith(word) for row in both(found)) / len(both(found))

    gone = corpus(tmp_path, a, dataclasses.replace(b, weight=0))
    assert share(gone, "word") == 1
    assert [source["path"] for source in gone.sources] == ["a.txt"]
    thrice = corpus(tmp_path, dataclasses.replace(a, weight=3), b, max_rows=200)
    assert 0.65 < share(thrice, "word") < 0.83
    assert 0.4 < share(corpus(tmp_path, a, b, max_rows=200), "word") < 0.6
    assert share(corpus(tmp_path, a, long, max_rows=200, length_weights={"long": 9.0}), "long") > 0.8
    short = corpus(tmp_path, a, long, length_weights={"long": 0.0})
    assert (share(short, "long"), short.counts["left out: weight 0"]) == (0, 600)


def test_languages_get_their_factor(tmp_path):
    for lang in ("en", "de", "fr"):
        (tmp_path / f"{lang}.txt").write_text("\n".join(lines(400, lang)), encoding="utf-8")
    sources = [Source(path=f"{lang}.txt", lang=lang) for lang in ("en", "de", "fr")]
    found = corpus(tmp_path, *sources, max_rows=184, language_weights={"de": 3.0, "fr": 0.0})
    counts = {lang: sum(row.lang == lang for row in both(found)) for lang in ("en", "de", "fr")}
    assert counts == {"en": 50, "de": 150, "fr": 0}


MEASURE = """
import re, pyarrow, pyarrow.ipc
from pathlib import Path
from leafembed.learn.data import prepare_corpus
from leafembed.recipe_learn import DataConfig, Source

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config = DataConfig(root=Path("."), sources=(Source(path="rows.txt"),))
before = peak()
found = prepare_corpus(config, Path("kept"), seed=0, prompt_name=None)
print(len(found.train), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to read a process's peak memory")
def test_memory_stays_below_the_size_of_the_text(tmp_path):
    body = "word" * 1500  # 6,000 characters a row: 120 MB of text
    with (tmp_path / "rows.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{i} {body}\n" for i in range(20_000))
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    rows, grown = map(int, done.stdout.split())
    assert rows == 19_000
    assert grown < 100e6  # a third of it are pyarrow's own pages


def test_a_record_more_or_a_larger_draw_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(400)), encoding="utf-8")
    base = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=100, validation_rows=20)
    more = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=200, validation_rows=20)
    (tmp_path / "a.txt").write_text("a line that was not there before\n" + "\n".join(lines(400)), encoding="utf-8")
    moved = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=100, validation_rows=20)
    assert set(texts(base.train)) < set(texts(more.train)) | set(texts(more.validation))
    assert not set(texts(base.train)) & set(texts(more.validation))  # what was learned from is never held out later
    assert len(set(texts(base.train)) & set(texts(moved.train))) >= 98


def test_text_that_is_known_already_is_not_enough_to_hold_out(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(200)), encoding="utf-8")
    source = Source(path="a.txt", lang="en")
    config = DataConfig(root=tmp_path, sources=(source,), validation_rows=40)
    known = np.array([text_hash(normalise_text(line)) for line in lines(200)[:190]], dtype=np.uint64)
    with pytest.raises(DataError, match="got 10 texts to hold out that the student has not learned from before"):
        prepare_corpus(config, tmp_path / "corpora", seed=0, prompt_name=None, learned=known)
    enough = prepare_corpus(config, tmp_path / "corpora", seed=0, prompt_name=None, learned=known[:150])
    assert len(enough.validation) == 40
