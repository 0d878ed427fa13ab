"""Vectors of a file: resumed after a kill, complete or absent, in three formats."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import WORDS, make_model_folder

from leafembed.encoding import _Hashed, encode_file, encode_out
from leafembed.errors import DataError, MissingExtraError
from leafembed.ship import encoder as encoder_module
from leafembed.ship import stream
from leafembed.ship.encoder import BundleEncoder

TEXTS = [" ".join(WORDS[3 + (i * k) % 6] for k in range(1, 4 + i % 3)) for i in range(23)]


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_TEXTS", 5)
    return BundleEncoder(make_model_folder(tmp_path / "model"), threads=1)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def break_after(monkeypatch, batches):
    """Let the engine fail after so many batches."""
    real = encoder_module.BundleEncoder.embed_tokens
    left = [batches]

    def embed_tokens(self, ids, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, ids, **options)

    monkeypatch.setattr(encoder_module.BundleEncoder, "embed_tokens", embed_tokens)
    return lambda: monkeypatch.setattr(encoder_module.BundleEncoder, "embed_tokens", real)


def read(path):
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".jsonl":
        return np.array([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], np.float32)
    from pyarrow import parquet

    return np.stack(parquet.read_table(path)["embedding"].to_numpy())


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".jsonl"])
def test_an_interrupted_file_goes_on_and_is_the_same(encoder, source, tmp_path, monkeypatch, capfd, suffix):
    target, partial = tmp_path / f"v{suffix}", tmp_path / f".v{suffix}.partial"
    repair = break_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, source, target, {}, identity="m")
    assert not target.exists()
    assert json.loads((partial / "state.json").read_text(encoding="utf-8"))["texts"] == 10
    repair()
    batches = []
    real = encoder_module.batches_by_length
    monkeypatch.setattr(
        encoder_module, "batches_by_length", lambda ids, *how: batches.append(len(ids)) or real(ids, *how)
    )
    assert encode_file(encoder, source, target, {}, identity="m") == (23, 8)
    assert batches == [5, 5, 3]  # the first ten were not embedded again
    assert "going on after 10 texts" in capfd.readouterr().err
    np.testing.assert_allclose(read(target), encoder.encode(TEXTS), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.jsonl", target.name]


@pytest.mark.parametrize("change", ["identity", "options", "texts", "fewer texts", "rows", "state"])
def test_what_was_begun_with_something_else_is_begun_anew(encoder, source, tmp_path, monkeypatch, change):
    target, partial = tmp_path / "v.npy", tmp_path / ".v.npy.partial"
    repair = break_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, source, target, {}, identity="m")
    repair()
    identity, options, lines = "m", {}, source.read_text(encoding="utf-8").splitlines(keepends=True)
    if change == "identity":
        identity = "other"
    elif change == "options":
        options = {"dim": 3}
    elif change == "texts":
        source.write_text("".join([json.dumps({"text": "three"}) + "\n", *lines[1:]]), encoding="utf-8")
    elif change == "fewer texts":
        source.write_text("".join(lines[:4]), encoding="utf-8")
    elif change == "rows":
        os.truncate(partial / "vectors", 200)
    else:
        (partial / "state.json").write_text("{", encoding="utf-8")
    encode_file(encoder, source, target, options, identity=identity)
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    np.testing.assert_allclose(read(target), encoder.encode(texts, **options), atol=1e-6)
    assert not partial.exists()


def test_a_second_call_for_the_same_file_is_refused_and_harms_nothing(encoder, source, tmp_path, monkeypatch):
    target, real, met = tmp_path / "v.npy", encoder_module.BundleEncoder.embed_tokens, []

    def embed_tokens(self, ids, **options):
        if not met:
            met.append(True)
            with pytest.raises(DataError, match=r"v\.npy: another leaf encode writes it"):
                encode_file(encoder, source, target, {}, identity="m")
        return real(self, ids, **options)

    monkeypatch.setattr(encoder_module.BundleEncoder, "embed_tokens", embed_tokens)
    assert encode_file(encoder, source, target, {}, identity="m") == (23, 8)
    assert met
    np.testing.assert_allclose(read(target), encoder.encode(TEXTS), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.jsonl", "v.npy"]


def test_rows_that_were_written_and_not_noted_do_not_count(encoder, source, tmp_path, monkeypatch):
    repair = break_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, source, tmp_path / "v.npy", {}, identity="m")
    repair()
    with (tmp_path / ".v.npy.partial" / "vectors").open("ab") as file:
        file.write(b"\xff" * 100)
    encode_file(encoder, source, tmp_path / "v.npy", {}, identity="m")
    np.testing.assert_allclose(read(tmp_path / "v.npy"), encoder.encode(TEXTS), atol=1e-6)


def test_a_killed_process_leaves_no_file_and_the_next_one_goes_on(tmp_path):
    source, target = tmp_path / "texts.txt.gz", tmp_path / "v.npy"
    source.write_bytes(gzip.compress("".join(f"{text}\n" for text in TEXTS * 3).encode()))
    make_model_folder(tmp_path / "model")
    code = """
        import sys, time
        from pathlib import Path
        from leafembed.encoding import encode_file
        from leafembed.ship import stream
        from leafembed.ship.encoder import BundleEncoder
        stream.WINDOW_TEXTS = 5
        real = BundleEncoder.embed_tokens
        def slow(self, ids, **options):
            time.sleep(0.05)
            return real(self, ids, **options)
        BundleEncoder.embed_tokens = slow
        root = Path(sys.argv[1])
        encode_file(BundleEncoder(root / "model", threads=1), root / "texts.txt.gz", root / "v.npy", {}, identity="m")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    process = subprocess.Popen(command)
    state, deadline = tmp_path / ".v.npy.partial" / "state.json", time.monotonic() + 60
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on after" in ended.stderr
    vectors = BundleEncoder(tmp_path / "model", threads=1).encode(TEXTS * 3)
    np.testing.assert_allclose(read(target), vectors, atol=1e-6)


def test_cut_texts_are_counted_over_all_windows_and_interruptions(encoder, tmp_path, monkeypatch, capfd):
    source = tmp_path / "texts.txt"
    source.write_text("red\n" * 4 + f"{'red ' * 20}\n" + "red\n" * 9 + f"{'red ' * 20}\n", encoding="utf-8")
    repair = break_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        encode_file(encoder, source, tmp_path / "v.npy", {}, identity="m")
    repair()
    encode_file(encoder, source, tmp_path / "v.npy", {}, identity="m")
    assert "2 of 15 texts were cut to 8 tokens" in capfd.readouterr().err
    encode_file(encoder, source, tmp_path / "v.npy", {"overlap": 1}, identity="m")
    assert "cut" not in capfd.readouterr().err
    assert len(list(encode_out(encoder, ["red " * 20], {}))) == 1
    assert "1 of 1 texts were cut to 8 tokens" in capfd.readouterr().err


def test_an_unknown_format_or_a_bad_line_leaves_nothing(encoder, tmp_path):
    source = tmp_path / "texts.txt"
    source.write_bytes(b"red\n\xff\n")
    with pytest.raises(DataError, match=r"ends in '\.csv', expected one of \.npy, \.parquet, \.jsonl"):
        encode_file(encoder, source, tmp_path / "v.csv", {}, identity="m")
    with pytest.raises(DataError, match=r"texts\.txt:2: invalid UTF-8"):
        encode_file(encoder, source, tmp_path / "v.npy", {}, identity="m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.txt"]


def test_what_writes_the_file_is_missed_before_anything_is_encoded(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(encoder, "encode_stream", None)
    with pytest.raises(MissingExtraError, match=r"needs pyarrow, which is not installed: pip install pyarrow$"):
        encode_file(encoder, tmp_path / "texts.txt", tmp_path / "v.parquet", {}, identity="m")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    """The peak of a process after 40,000 texts is not far above that after 8,000."""
    make_model_folder(tmp_path / "model", dim=256)
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from leafembed.ship.encoder import BundleEncoder
        from leafembed.ship.machine import peak_memory_mb
        encoder = BundleEncoder(Path(sys.argv[1]), threads=1)
        peaks = []
        for n in (8_192, 40_960):
            for part in encoder.encode_stream(f"red green {{i}}" for i in range(n)):
                pass
            peaks.append(peak_memory_mb())
        print(*peaks)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "model")]
    ballast = np.ones(200_000_000, np.uint8)  # what this process holds must not be taken for the other's
    first, second = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert first < ballast.nbytes / 1e6
    assert second - first < 25  # all vectors would be 42 MB, all texts and tokens as much again


def test_passing_over_what_is_done_keeps_nothing_of_it():
    passed, read_through = (_Hashed(iter(f"text {i}" for i in range(1_000))) for _ in range(2))
    assert passed.skip(900)[0] == 900
    for _ in zip(range(900), read_through, strict=False):
        pass
    assert passed.skip(0)[1] == read_through.digest_after(900)
    assert len(passed._digests) == 0
    assert next(iter(passed)) == "text 900"
    assert passed.digest_after(901)
    assert passed.skip(1_000)[0] == 99
