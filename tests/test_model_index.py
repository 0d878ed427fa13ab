from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import report

from leafembed.errors import BundleError, ModelError
from leafembed.reports import TaskResult
from leafembed.ship.model_index import model_index, write_model_index
from leafembed.types import ModelRef

CARD = """---
license: mit
tags: [a, b]
---

# A model

Text.
"""


@pytest.fixture
def results() -> tuple[TaskResult, ...]:
    return report(ModelRef("quick", 8), 1.0).results


def read(card: Path) -> dict[tuple[str, str, str], float]:
    """As the hub's own library reads it."""
    loaded = ModelCard.load(card)
    return {(each.dataset_type, each.dataset_config, each.metric_type): each.metric_value
            for each in loaded.data.eval_results}  # fmt: skip


def test_a_new_card_holds_every_result(tmp_path: Path, results: tuple[TaskResult, ...]) -> None:
    card = tmp_path / "cards" / "README.md"
    write_model_index(card, model_index("quick", results, datasets={"bitext/tatoeba": "mteb/tatoeba-bitext-mining"}))
    loaded = ModelCard.load(card)
    assert loaded.data.model_name == "quick"
    first = loaded.data.eval_results[0]
    assert (first.task_type, first.dataset_name) == ("STS", "sts/stsb_multi_mt.test (en)")
    assert (first.dataset_split, first.dataset_revision) == ("test", "d" * 16)
    assert read(card) == {
        ("sts/stsb_multi_mt.test", "en", "cosine_spearman"): 0.8213,
        ("sts/stsb_multi_mt.test", "de", "cosine_spearman"): 0.7921,
        ("mteb/tatoeba-bitext-mining", "deu-eng", "accuracy"): 0.9441,
        ("retrieval/miracl", "en", "ndcg_at_10"): 0.5127,
    }
    assert [path.name for path in card.parent.iterdir()] == ["README.md"]


def test_a_card_keeps_its_text_and_other_results(tmp_path: Path, results: tuple[TaskResult, ...]) -> None:
    card = tmp_path / "README.md"
    card.write_text(CARD, encoding="utf-8")
    write_model_index(card, model_index("quick", results[:3]))
    write_model_index(card, model_index("quick", [replace(results[0], main_score=0.5), results[3]]))
    scores = read(card)
    assert len(scores) == 4
    assert scores["sts/stsb_multi_mt.test", "en", "cosine_spearman"] == 0.5
    loaded = ModelCard.load(card)
    assert (loaded.data.license, loaded.data.tags) == ("mit", ["a", "b"])
    assert loaded.text.strip() == "# A model\n\nText."


def test_data_is_named_as_a_hub_may_name_it(results: tuple[TaskResult, ...]) -> None:
    tasks = ("sts/a.test", "sts/a.test@cross", "pair/a@dev")
    (index,) = model_index("quick", [replace(results[0], task=task) for task in tasks])
    named = [(each["dataset"]["type"], each["dataset"]["split"], each["dataset"]["name"]) for each in index["results"]]
    assert named == [
        ("sts/a.test", "test", "sts/a.test (en)"),
        ("sts/a.test", "test", "sts/a.test@cross (en)"),
        ("pair/a", "dev", "pair/a@dev (en)"),
    ]


def test_the_card_of_a_bundle_is_left_alone(tmp_path: Path, results: tuple[TaskResult, ...]) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="the card of a bundle, which already lists its results"):
        write_model_index(tmp_path / "README.md", model_index("quick", results))
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("front", ["- a list", "model-index: [1]", "model-index: [{results: []}]", "a: [unclosed"])
def test_a_damaged_front_matter_is_an_error_and_stays(
    tmp_path: Path, results: tuple[TaskResult, ...], front: str
) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{front}\n---\ntext\n", encoding="utf-8")
    before = card.read_bytes()
    with pytest.raises(ModelError, match="its front matter is no model card's"):
        write_model_index(card, model_index("quick", results))
    assert card.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
