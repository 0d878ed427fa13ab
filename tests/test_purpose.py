from __future__ import annotations

import pytest
from tiny import judge, refused_before_int8, sample_manifest, verdict

from leafembed.reports import EvalReport
from leafembed.ship.card import render_card
from leafembed.ship.purpose import purpose_section


@pytest.fixture
def manifest():
    return sample_manifest()


def _limits(manifest):
    return " ".join(purpose_section(manifest)["limits"])


def test_uses_are_the_types_that_were_measured_with_their_languages(manifest):
    report = EvalReport.from_dict(manifest["reports"]["int8"])
    uses = purpose_section(manifest)["uses"]
    assert [use.split(",")[0] for use in uses] == list(report.by_type())
    (sts,) = (use for use in uses if use.startswith("STS, "))
    assert f"{report.by_type()['STS']:.3f} of the teacher's" in sts
    assert all(result.lang in sts for result in report.results if result.type == "STS")


def test_a_refused_model_is_for_nothing(manifest):
    refused = {**manifest, "verdict": verdict(retention=0.8)}
    assert purpose_section(refused)["uses"] == []
    assert "## What it is for" not in render_card(refused)
    assert "## Limits" in render_card(refused)


def test_types_and_languages_without_a_number_are_named(manifest):
    limits = _limits(manifest)
    assert "Clustering" in limits
    assert "STS (" not in limits.split("Not measured")[1].split(".")[0]
    judged = {result["lang"] for result in manifest["reports"]["int8"]["results"]}
    (unjudged,) = (line for line in purpose_section(manifest)["limits"] if line.startswith("Trained on but"))
    assert all((f" {lang}" in unjudged) == (lang not in judged) for lang in ("de", "en", "no"))
    assert "und" not in unjudged


def test_languages_with_most_text_are_named_first(manifest):
    manifest["corpus"]["languages"] = {f"l{i}": i for i in range(1, 31)}
    (unjudged,) = (line for line in purpose_section(manifest)["limits"] if line.startswith("Trained on but"))
    assert "30 languages, among them l30, l29," in unjudged
    assert "l18" not in unjudged


def test_a_judged_language_without_text_is_named(manifest):
    manifest["corpus"]["languages"] = {"en": 20000}
    assert "Measured but no training text in de" in _limits(manifest)


def test_a_variant_of_a_language_is_that_language_and_no_pair(manifest):
    for report in manifest["reports"].values():
        report["results"] = [{**one, "lang": "en_ext"} for one in report["results"] if one["lang"] == "en"]
    (sts, *_) = purpose_section(manifest)["uses"]
    assert sts.endswith("; in en_ext")
    assert "no training text" not in _limits(manifest)
    assert 'language: ["en"]' in render_card(manifest)


def test_the_length_limit_is_said_where_there_is_one(manifest):
    assert "first 512 tokens" in _limits(manifest)
    manifest["student"]["max_seq_length"] = None
    assert "tokens is ignored" not in _limits(manifest)


def test_a_run_that_stopped_has_neither():
    manifest = refused_before_int8()
    del manifest["reports"]["student"]
    assert purpose_section(manifest) == {"uses": [], "limits": [], "softer": []}


def test_what_a_floor_does_better_is_said_beside_the_use():
    manifest = sample_manifest()
    uses = purpose_section(manifest)["uses"]
    assert not any("alone scores" in use for use in uses)
    for result in manifest["reports"]["floor: bag of words"]["results"]:
        if result["type"] == "Retrieval":
            result["main_score"] = result["scores"]["ndcg_at_10"] = 0.6
    (retrieval,) = [use for use in purpose_section(manifest)["uses"] if use.startswith("Retrieval")]
    assert retrieval.endswith(". Bag of words alone scores 0.600")


def test_rules_that_ask_for_less_than_usual_are_on_the_card():
    manifest = sample_manifest()
    assert "whose rules ask for less" not in render_card(manifest)
    manifest["recipe"]["gate"] |= {"min_mean_retention": 0.8, "beat_floors": False, "max_int8_drop": 0.005}
    judge(manifest)
    card = render_card(manifest)
    assert (
        "Measured, and passed by the gate, whose rules ask for less than usual: min_mean_retention = 0.8, by default "
        "0.9; beat_floors = false, by default true. What was not measured" in card
    )


def test_asking_for_more_rows_than_usual_is_a_softer_rule():
    manifest = sample_manifest()
    for rows, said in ((20, []), (50, []), (51, ["eval.min_rows = 51, by default 50"])):
        manifest["recipe"]["eval"] = {"min_rows": rows}
        assert purpose_section(manifest)["softer"] == said
    assert "whose rules ask for less than usual: eval.min_rows = 51, by default 50. What" in render_card(manifest)


def test_short_texts_to_learn_from_are_a_limit(manifest):
    assert "Learned from texts" not in _limits(manifest)  # an old recipe does not say
    manifest["student"]["max_seq_length"] = 256
    for most, said in ((400, True), (20_000, False)):
        manifest["recipe"]["data"] = {"max_chars": most}
        assert ("Learned from texts of at most 400 characters" in _limits(manifest)) is said


def test_languages_with_little_text_are_not_counted_as_taught(manifest):
    manifest["corpus"]["languages"] = {"en": 5_000, "de": 100, "pl": 99, "und": 300}
    assert "trained on text in 3 languages, 2 of them with 100 texts or more." in render_card(manifest)
    manifest["corpus"]["languages"] = {"en": 5_000, "de": 100}
    assert "trained on text in 2 languages.\n" in render_card(manifest)
