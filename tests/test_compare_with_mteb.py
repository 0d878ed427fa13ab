"""Our scores are mteb's: tiny data of every type, through mteb's own task classes and through ours."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import HashEncoder, write_rows

from leafembed.judge import probes
from leafembed.judge.floors import RandomEncoder
from leafembed.judge.kinds import KINDS

ROOT = Path(__file__).parents[1]
IDS = {
    "sts/toy.test": "STS",
    "bitext/toy": "BitextMining",
    "classification/toy": "Classification",
    "classification/toy@dev": "Classification",
    "clustering/toy": "Clustering",
    "pair/toy": "PairClassification",
    "pair/toy@dev": "PairClassification",
    "reranking/toy": "Reranking",
    "retrieval/toy_en": "Retrieval",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_with_mteb", ROOT / "tools" / "compare_with_mteb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"asked the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_type_is_compared() -> None:
    assert set(IDS.values()) == {kind.type for kind, _ in KINDS.values()}


@pytest.mark.parametrize("encoder", [HashEncoder(16), RandomEncoder(16)], ids=["hash", "random"])
@pytest.mark.parametrize("id", IDS)
def test_scores_are_those_of_mteb(tool: ModuleType, eval_data: Path, id: str, encoder: HashEncoder) -> None:
    compared = tool.compare(encoder, eval_data, id)
    assert {item.type for item in compared} == {IDS[id]}
    assert [item.metric for item in compared if item.main]
    for item in compared:
        assert abs(item.difference) < 1e-4, (item.metric, item.lang)


def test_prompts_are_chosen_as_mteb_chooses(tool: ModuleType, eval_data: Path) -> None:
    class Prompted(HashEncoder):
        """Puts the prompt's words before the text, so that another prompt is another vector."""

        def encode(self, texts, *, prompt_name=None):  # type: ignore[no-untyped-def]
            prompt = self.ref.prompts[prompt_name] if prompt_name else ""
            return super().encode([prompt + text for text in texts], prompt_name=prompt_name)

    for names in (["query", "document"], ["Retrieval", "query"], ["Retrieval-query", "STS", "Clustering"]):
        encoder = Prompted(64)
        object.__setattr__(encoder.ref, "prompts", {name: f"{name} for search: " for name in names})
        for id in ("retrieval/toy_en", "reranking/toy", "sts/toy.test", "clustering/toy"):
            for item in tool.compare(encoder, eval_data, id):
                assert abs(item.difference) < 1e-4, (names, id, item.metric)


def test_other_draws_would_be_noticed(tool: ModuleType, eval_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SEED", 43)
    (mean, _) = tool.compare(RandomEncoder(16), eval_data, "clustering/toy")
    assert mean.metric == "v_measure"
    assert abs(mean.difference) > 1e-4


def test_more_texts_than_are_clustered_and_more_examples_than_are_drawn(tool: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [{"text": " ".join(f"w{i}" for i in rng.integers(9, size=4)) + f" {n}", "lang": "en"} for n in range(2_100)]
    labelled = [row | {"label": len(row["text"]) % 3} for row in texts]
    write_rows(tmp_path / "clustering/many.jsonl", labelled)
    splits = [row | {"split": "train" if i % 3 else "test"} for i, row in enumerate(labelled[:300])]
    write_rows(tmp_path / "classification/many.jsonl", splits)
    for id in ("clustering/many", "classification/many"):
        for item in tool.compare(HashEncoder(16), tmp_path, id):
            assert abs(item.difference) < 1e-4, (id, item.metric)


def test_the_page_is_what_was_measured(tool: ModuleType) -> None:
    folder = ROOT / "docs" / "results" / "mteb"
    facts = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    fields = tool.Compared.__dataclass_fields__
    compared = [tool.Compared(**{name: score[name] for name in fields}) for score in facts["scores"]]
    assert (folder / "README.md").read_text(encoding="utf-8") == tool.page(facts, compared)
    assert {item.type for item in compared} == set(IDS.values())
    assert all(abs(item.difference) <= tool.LIMIT == facts["limit"] for item in compared)
