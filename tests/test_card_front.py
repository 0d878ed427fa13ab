"""What a hub reads of a card: its front matter."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard
from tiny import TASKS, refused_before_int8, sample_manifest, verdict

from leafembed.ship.card import render_card


@pytest.fixture
def manifest():
    return sample_manifest()


def _front(card):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n", 2)[1])


@pytest.mark.parametrize(
    ("licence", "shown", "name"),
    [
        ("gemma", "gemma", None),
        ("Gemma Terms of Use", "gemma", None),
        ("Apache-2.0", "apache-2.0", None),
        (None, "other", None),
        ("CC BY-NC 4.0, research", "other", "CC BY-NC 4.0, research"),
        ("nvidia-open-model-license", "other", "nvidia-open-model-license"),
    ],
)
def test_front_matter_states_the_licence(manifest, licence, shown, name):
    manifest["teacher"]["licence"] = manifest["student"]["licence"] = licence
    card = render_card(manifest)
    front = _front(card)
    assert (front["license"], front.get("license_name")) == (shown, name)
    assert ("ai.google.dev/gemma/terms" in card) == (shown == "gemma")
    assert ("Model Derivative" in card) == (shown == "gemma")


def test_a_hub_reads_the_scores_of_what_ships(manifest):
    data = ModelCard(render_card(manifest)).data
    assert data.model_name == "leaf-small"
    found = {(each.task_type, each.dataset_type, each.dataset_config): each.metric_value for each in data.eval_results}
    assert found == {(kind, task, lang): score * 0.953 for task, kind, lang, _, score in TASKS}
    assert data.eval_results[0].dataset_split == "test"


@pytest.mark.parametrize("refused", [refused_before_int8(), sample_manifest(verdict=verdict(retention=0.5))])
def test_a_refused_model_shows_no_scores_to_a_hub(refused):
    assert "model-index" not in _front(render_card(refused))


def test_front_matter_is_what_a_hub_reads(manifest):
    for report in manifest["reports"].values():
        report["results"][1]["lang"] = "no"
    front = _front(render_card(manifest))
    # What was measured, of "deu-eng" both; "no" as text. Norwegian, undetermined and more was trained.
    assert front["language"] == ["de", "en", "no"]
    assert front["base_model"] == "google/embeddinggemma-300m"
    assert front["pipeline_tag"] == "feature-extraction"
    manifest["teacher"]["name"] = "./models/teacher"
    assert "base_model" not in _front(render_card(manifest))
