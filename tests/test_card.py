from __future__ import annotations

import re
import struct
import tomllib

import pytest
from tiny import refused_before_int8, sample_manifest, verdict

from leafembed.reports_vocabulary import Retokenised, VocabularyReport
from leafembed.ship.card import render_card
from leafembed.ship.curves import plot_curves


@pytest.fixture
def manifest():
    return sample_manifest()


def _body(card):
    return card.split("---\n", 2)[2].lstrip()


def test_a_passed_card_opens_with_its_name(manifest):
    assert _body(render_card(manifest)).startswith("# leaf-small\n")
    assert "refused" not in render_card(manifest)


def test_a_refused_card_opens_with_the_refusal_and_every_failed_check(manifest):
    body = _body(render_card({**manifest, "verdict": verdict(retention=0.8123)}))
    assert body.startswith("> [!WARNING]\n> **The gate refused this model.")
    assert body.index("> - mean retention is 0.8123, must be at least 0.9000") < body.index("# leaf-small")
    assert "1 of 2 checks failed" in body
    assert "INT8 drop" not in body[: body.index("# leaf-small")]


def test_the_stored_outcome_does_not_hide_a_failed_check(manifest):
    manifest["verdict"]["checks"][0]["value"] = 0.5
    assert manifest["verdict"]["passed"] is True
    assert "The gate refused this model" in render_card(manifest)


def test_a_model_refused_before_int8_has_a_card_without_int8():
    card = render_card(refused_before_int8())
    assert "> - mean retention is 0.8123" in card
    assert "Retention is student / teacher" in card
    assert all(heading not in card for heading in ("## Speed", "### INT8", "## Use", "| int8 |"))


def test_targets_that_were_not_measured_are_listed_with_the_reason(manifest):
    assert "### Not measured" not in render_card(manifest)
    manifest["recipe"].setdefault("eval", {})["unmeasured"] = {"STS22 of 0.50": "no data | here"}
    card = render_card(manifest)
    assert "- STS22 of 0.50: no data" in card[card.index("### Not measured") : card.index("## Training")]


def test_overlap_with_training_text_is_shown_by_evaluation_set(manifest):
    card = render_card(manifest)
    assert "| sts/stsb_multi_mt.dev | dev | 1,500 | 2 | 1 | 0.20% | 6 |" in card
    manifest["recipe"]["eval"] = {"dev": ["agreement"], "decontaminate": ["sts/*"]}
    assert "| sts/stsb_multi_mt.dev | kept out | 1,500 |" in render_card(manifest)
    assert "| retrieval/miracl | test | 500 | 0 | 0 | 0.00% | 0 |" in card
    manifest["contamination"] = []
    assert "### Overlap" not in render_card(manifest)


def test_what_the_teacher_was_trained_on_is_named_or_said_to_be_unknown(manifest):
    card = render_card(manifest)
    assert "as far as it is published: MIRACL (source:\na paper)" in card
    assert "- retrieval/miracl and MIRACL: the same data set (source: its name)" in card
    manifest["teacher_data"]["shared"] = []
    card = render_card(manifest)
    assert "The teacher may have seen it" not in card
    assert "No evaluation set here is known to be one of these" in card
    manifest["teacher_data"] = None
    assert "What the teacher was trained on is not known here" in render_card(manifest)


def test_what_the_teachers_own_text_touches_is_counted_where_that_text_is_here(manifest):
    assert "as far as it is here" not in render_card(manifest)
    touched = {"task": "retrieval/miracl", "items": 500, "exact": 20, "ngram": 5, "rows_exact": 31, "rows_ngram": 9}
    manifest["teacher_overlap"] = {"sources": ["miracl_train.jsonl.gz"], "sets": [{**touched, "share": 0.05}]}
    card = render_card(manifest)
    assert "as far as it is here (miracl_train.jsonl.gz)" in card
    assert "| retrieval/miracl | test | 500 | 20 | 5 | 5.00% | 40 |" in card
    manifest["teacher_overlap"]["sets"][0]["share"] = 0.04
    with pytest.raises(ValueError, match=r"got share 0\.04, the counts give 0\.05"):
        render_card(manifest)


def test_behaviour_is_shown_for_student_and_int8(manifest):
    card = render_card(manifest)
    assert "| student | 0.99998 | 0.0600 | 0.1000 |\n| INT8 | 0.99970 | 0.0610 | 0.1000 |" in card
    manifest["behaviour"] = {}
    assert "### Behaviour" not in render_card(manifest)


ALARM = {"name": "stall", "step": 1500, "message": "the loss fell | the score did not", "fatal": False, "facts": {}}


def test_alarms_of_a_run_are_near_the_top(manifest):
    assert "## Alarms" not in render_card(manifest)
    manifest["training"]["alarms"] = [ALARM]
    manifest["files"] = {"model.bin": {"bytes": 1, "sha256": ""}}
    card = render_card(manifest)
    assert "| stall | 1,500 | the loss fell \\| the score did not |" in card
    places = [card.index(heading) for heading in ("# leaf-small", "## Use", "## Alarms", "## Results")]
    assert places == sorted(places)


def test_the_card_of_a_run_that_stopped_opens_with_the_diagnosis():
    manifest = refused_before_int8()
    del manifest["reports"]["student"]
    fatal = {**ALARM, "name": "below floor", "fatal": True}
    diagnosis = "The run stopped itself. Cause: random weights."
    manifest["training"] |= {"alarms": [fatal], "diagnosis": diagnosis, "best_step": None}
    body = _body(render_card(manifest))
    assert body.startswith(
        "> [!WARNING]\n> **Training stopped itself. There is no model.**\n>\n> The run stopped itself."
    )
    assert body.index("> - mean retention is 0.8123") < body.index("# leaf-small")
    assert "The gate refused" not in body
    assert "| below floor (fatal) | 1,500 |" in body
    assert "Training ended before a student could be scored." in body
    results = body.partition("## Results")[2].partition("### Gate")[0]
    assert "retention" not in results.lower()
    assert next(row for row in results.splitlines() if row.startswith("| STS |")).count("|") == 7  # teacher and floors
    assert "best step, by dev score: n/a" in body


def test_scores_and_retention_are_those_of_the_reports(manifest):
    card = render_card(manifest)
    sts = (0.8213 + 0.7921) / 2
    row = next(row for row in card.splitlines() if row.startswith("| STS |"))
    assert row.startswith(f"| STS | {sts * 0.953:.4f} | 0.953 | {sts * 0.954:.4f} | {sts:.4f} | {sts * 0.02:.4f} |")
    assert "| task type | INT8 | retention | student | teacher | floor: random |" in card
    assert f"| STS | {sts * 0.954:.4f} | {sts * 0.953:.4f} | +{sts * 0.001:.4f} |" in card


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda m: m["reports"]["int8"]["results"][2].update(main_score=0.1234), "0.1234"),
        (lambda m: m["int8"].update(cosine_min=0.87654), "0.87654"),
        (lambda m: m["contamination"][1].update(ngram=33, share=33 / 500), "6.60%"),
        (lambda m: m["behaviour"]["int8"].update(tail=0.07654), "0.0765"),
        (lambda m: m["speed"][2].update(texts_per_second=16.8), "16.8"),
        (lambda m: m["sizes"]["parts"][0].update(parameters=123456789), "123,456,789"),
        (lambda m: m["corpus"].update(train_rows=31337), "31,337"),
        (lambda m: m["training"].update(best_step=1234), "1,234"),
        (lambda m: m["training"].update(planned_steps=9876), "4,000 of 9,876 planned"),
        (lambda m: m["training"].update(best_metric="STS"), "best step, by STS"),
        (lambda m: m["training"]["averaged"].update(kept=True), "3,500, 4,000: kept, 0.7981 against 0.8012"),
        (lambda m: m["training"]["targets"][0].update(reached=False), "0.3417, at most 1: NOT REACHED"),
        (lambda m: m["machine"].update(cpu="Other CPU"), "Other CPU"),
        (lambda m: m["recipe"].update(seed=424242), "seed = 424242"),
        (lambda m: m["student"].update(max_seq_length=777), "777 tokens"),
    ],
)
def test_a_changed_value_in_the_manifest_shows_on_the_card(manifest, change, shown):
    assert shown not in render_card(manifest)
    change(manifest)
    assert shown in render_card(manifest)


def test_speed_ratios_are_to_each_teacher_row(manifest):
    card = render_card(manifest)
    row = next(row for row in card.splitlines() if row.startswith("| student, INT8 |"))
    assert f"| {96.3 / 8.4:.3f} | {96.3 / 21.7:.3f} |" in row


def test_the_recipe_on_the_card_is_toml_of_the_same_recipe(manifest):
    block = re.search(r"```toml\n(.*?)\n```", render_card(manifest), re.DOTALL)
    assert tomllib.loads(block[1]) == manifest["recipe"]


def test_many_rows_are_folded_and_many_languages_cut(manifest):
    manifest["verdict"] = verdict()
    assert "rows)</summary>" not in render_card(manifest)
    for report in manifest["reports"].values():
        report["results"] += [{**report["results"][0], "lang": f"x{i}"} for i in range(9)]
    manifest["corpus"]["languages"] = {f"l{chr(97 + i)}": 100 - i for i in range(25)}
    card = render_card(manifest)
    assert "<summary>By task and language (13 rows)</summary>" in card
    assert "lt 81, and 5 more" in card


def test_text_from_outside_cannot_break_a_table_or_bring_html(manifest):
    manifest["corpus"]["sources"][0]["origin"] = "a|b\nc<script>"
    assert "| a\\|b c&lt;script> |" in render_card(manifest)


def test_a_source_s_files_are_known_by_their_hashes(manifest):
    assert "sha256 begins |" not in render_card(manifest).split("### Text")[1]
    manifest["corpus"]["sources"][0]["sha256"] = f"{'a' * 64} {'b' * 64}"
    text = render_card(manifest).split("### Text")[1]
    assert "| sha256 begins |" in text
    assert f"| {'a' * 16} {'b' * 16} |" in text


def test_prompts_are_listed(manifest):
    assert "It takes no prompts" not in render_card(manifest)  # there are no files to use
    manifest["files"] = {"model.bin": {"bytes": 1, "sha256": ""}}
    assert "It takes no prompts" in render_card(manifest)
    manifest["student"]["prompts"] = {"query": "", "STS": ""}
    assert "`prompt_name` may be\nquery, STS without changing anything." in render_card(manifest)
    manifest["student"]["prompts"] = {"query": "task: search | query: "}
    card = render_card(manifest)
    assert '| query | "task: search \\| query: " |' in card
    assert "It takes no prompts" not in card


def test_nothing_to_train_or_plot(manifest, tmp_path):
    manifest["training"]["history"] = []
    assert plot_curves([], 0, tmp_path / "curves.png") is False
    assert not (tmp_path / "curves.png").exists()
    assert "curves.png)" not in render_card(manifest)


@pytest.mark.parametrize("keep", [("loss",), ("dev",), ("loss", "distillation", "alignment", "dev", "dev_tasks")])
def test_plot_is_a_png_of_the_stated_size_and_the_same_each_time(manifest, tmp_path, keep):
    entries = manifest["training"]["history"]
    history = [{k: v for k, v in entry.items() if k in ("step", *keep)} for entry in entries]
    for name in ("a.png", "b.png"):
        assert plot_curves(history, 3500, tmp_path / name) is True
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert abs(width - 1000) < 10
    assert abs(height - 400) < 10


def test_a_pruned_vocabulary_is_shown_by_language(manifest):
    assert "### Vocabulary" not in render_card(manifest)
    entries = [Retokenised(f"x{i}", 100 - i, 50, 1000, 1100, 10, 22) for i in range(25)]
    manifest["vocabulary"] = VocabularyReport(262_145, 65_536, 47_213, tuple(entries)).to_dict()
    card = render_card(manifest)
    assert "262,145 tokens 65,536 were kept" in card
    assert "47,213 training texts" in card
    assert f"| all | 2,200 | {100 * 1250 / 2200:.2f} % | 1.100 | 1.00 % | 2.00 % |" in card
    assert "| x0 | 100 | 50.00 % | 1.100 | 1.00 % | 2.00 % |" in card
    assert "| x19 |" in card
    assert "| x20 |" not in card
    assert "5 more languages, with fewer texts each, are in the manifest" in card
    assert "on dev with all of its tokens" not in card
    manifest["vocabulary"] |= {"dev": [0.8314, 0.8126], "dev_tasks": ["sts/a.dev"]}
    costs = "scores 0.831 on dev with all of its tokens, and\n0.813 with those that were kept (`sts/a.dev`, a sample)"
    assert costs in render_card(manifest)
    manifest["vocabulary"]["languages"] = manifest["vocabulary"]["languages"][:2]
    assert "more languages, with fewer" not in render_card(manifest)


def test_scores_carry_their_intervals(manifest):
    assert "In brackets" not in render_card(manifest)
    for report in manifest["reports"].values():
        report["intervals"] = {kind: [0.1, 0.2] for kind in ("STS", "BitextMining", "Retrieval", "mean")}
        for result in report["results"]:
            result["interval"] = [result["main_score"] - 0.01234, result["main_score"] + 0.02]
    card = render_card(manifest)
    assert "In brackets: the 95 % interval" in card
    row = next(row for row in card.splitlines() if row.startswith("| sts/stsb_multi_mt.test | en |"))
    assert "| 0.8213 [0.809, 0.841] | " in row
    for kind in ("STS", "mean"):
        assert next(row for row in card.splitlines() if row.startswith(f"| {kind} |")).count(" [0.100, 0.200] |") == 7


def test_a_language_with_too_few_rows_says_so(manifest):
    few = {"task": "sts/stsb_multi_mt.test", "type": "STS", "lang": "sw", "n": 12}
    for report in manifest["reports"].values():
        report["too_few"] = [few]
    card = render_card(manifest)
    row = next(row for row in card.splitlines() if row.startswith("| sts/stsb_multi_mt.test | sw |"))
    assert row.count("| too few rows (12) ") == 7
    assert "A language with too few rows has no score" in card


def test_languages_that_lose_most_by_int8_are_named_with_their_drops(manifest):
    results = manifest["reports"]["int8"]["results"]
    before = {(r["task"], r["lang"]): r["main_score"] for r in manifest["reports"]["student"]["results"]}
    for place, result in enumerate(results):
        result["main_score"] = before[result["task"], result["lang"]] - 0.001 * (place + 1)
    drops = {}
    for place, result in enumerate(results):
        drops.setdefault(f"{result['type']} in {result['lang']}", []).append(0.001 * (place + 1))
    worst, drop = max(((lang, sum(some) / len(some)) for lang, some in drops.items()), key=lambda one: one[1])
    assert f"the largest drops: {worst} +{drop:.4f}" in render_card(manifest)
