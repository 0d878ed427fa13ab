"""Shared by the tests: an encoder without a model, text, evaluation data in every format, and a short training run."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from leafembed.types import FloatArray, ModelRef

if TYPE_CHECKING:
    from training_runs import Start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=60.0, help="how long test_serve_soak.py keeps a server busy")


class HashEncoder:
    """A bag of hashed words: texts that share words are near each other, in every process the same."""

    def __init__(self, dim: int = 128, name: str = "hash") -> None:
        self.ref = ModelRef(name, dim)
        self.prompts_seen: list[str | None] = []

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        self.prompts_seen.append(prompt_name)
        vectors = np.zeros((len(texts), self.ref.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            for word in text.casefold().split() or [""]:
                vectors[i] += self._word(word)
        unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def encode_together(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        return self.encode(texts, prompt_name=prompt_name)

    def _word(self, word: str) -> FloatArray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(self.ref.dim).astype(np.float32)


@pytest.fixture
def hash_encoder() -> HashEncoder:
    return HashEncoder()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line, compressed when the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(plain) if path.suffix == ".gz" else plain)
    return path


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder whose ``plain.txt`` holds the 100 ``lines`` of ``corpora``."""
    from corpora import lines

    (tmp_path / "plain.txt").write_text("\n".join(lines(100)), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def toy_start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """What the runs of ``training_runs`` start from; nothing changes it."""
    from training_runs import prepare

    return prepare(tmp_path_factory.mktemp("toy_start"))


@pytest.fixture(scope="session")
def toy_run(toy_start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run from ``toy_start``: its folder, which nothing changes, and what it reported."""
    from training_runs import go

    root = tmp_path_factory.mktemp("toy_run")
    return root, go(toy_start, root)[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of ``datasets``, which asks no hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks that word overlap solves: sts/toy.{dev,test}, retrieval/toy_{en,de}, and toy of every other type."""
    root, rng = tmp_path_factory.mktemp("eval"), np.random.default_rng(0)
    for split, n in (("dev", 40), ("test", 60)):
        write_rows(root / f"sts/toy.{split}.jsonl", [_sts(rng, lang) for lang in ("en", "de") for _ in range(n)])
    bitext = []
    for _ in range(40):
        words = _words(rng, "en", 6)
        bitext.append({"sentence1": " ".join(words), "sentence2": " ".join([*words[1:], "x"]), "lang_pair": "deu-eng"})
    write_rows(root / "bitext/toy.jsonl.gz", bitext)
    topics = [_words(rng, "en", 12) for _ in range(4)]
    rows = [
        {"text": " ".join(rng.choice(topics[i % 4], 5)) + f" {split}{i}", "label": f"topic{i % 4}", "lang": "EN"}
        | {"split": split}
        for split in ("train", "dev", "test")
        for i in range(60)
    ]
    write_rows(root / "classification/toy.jsonl", rows)
    for lang in ("en", "de"):
        _write_retrieval(root / f"retrieval/toy_{lang}", rng, lang)
    write_rows(
        root / "clustering/toy.jsonl",
        [{key: row[key] for key in ("text", "label", "lang")} for row in rows if row["split"] == "test"],
    )
    write_rows(
        root / "pair/toy.jsonl",
        [_pair(rng, lang, i % 2) | {"split": split} for lang, split in _SPLITS for i in range(40)],
    )
    write_rows(root / "reranking/toy.jsonl.gz", [_candidates(rng) for _ in range(20)])
    return root


_SPLITS = (("en", "dev"), ("de", "dev"), ("de", "test"))
"""As some published sets do, this one has labels for one language only in its test split."""


def _words(rng: np.random.Generator, lang: str, n: int) -> list[str]:
    return [f"{lang}{i}" for i in rng.choice(500, n, replace=False)]


def _sts(rng: np.random.Generator, lang: str) -> dict[str, Any]:
    words, shared = _words(rng, lang, 16), int(rng.integers(9))
    other = words[:shared] + words[8 : 16 - shared]
    return {"sentence1": " ".join(words[:8]), "sentence2": " ".join(other), "score": shared / 8, "lang": lang}


def _pair(rng: np.random.Generator, lang: str, label: int) -> dict[str, Any]:
    words = _words(rng, lang, 12)
    other = [*words[:5], words[6]] if label else [*words[:1], *words[7:]]
    return {"sentence1": " ".join(words[:6]), "sentence2": " ".join(other), "label": label, "lang": lang}


def _candidates(rng: np.random.Generator) -> dict[str, Any]:
    words = _words(rng, "en", 40)
    texts = [" ".join([words[i % 4], *words[4 * i : 4 * i + 4]]) for i in range(1, 8)]
    good = [" ".join(words[:3]), " ".join(words[1:4])]
    return {"query": " ".join(words[:4]), "positive": good, "negative": texts, "lang": "en"}


def _write_retrieval(folder: Path, rng: np.random.Generator, lang: str) -> None:
    documents = [_words(rng, lang, 12) for _ in range(30)]
    corpus = [{"id": f"d{i}", "title": words[0], "text": " ".join(words[1:])} for i, words in enumerate(documents)]
    queries = [{"id": f"q{i}", "text": " ".join(words[2:7]), "lang": lang} for i, words in enumerate(documents)]
    write_rows(folder / "corpus.jsonl.gz", corpus)
    write_rows(folder / "queries.jsonl", queries)
    write_rows(folder / "qrels.jsonl", [{"qid": f"q{i}", "did": f"d{i}", "score": 1} for i in range(30)])


@pytest.fixture
def leaf(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, list[str]]]:
    """Run a command and return its exit status, stdout and the lines of stderr."""

    from leafembed.cli import main

    def run(*argv: Any) -> tuple[Any, str, list[str]]:
        status: Any
        try:
            status = main([str(arg) for arg in argv])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return run
