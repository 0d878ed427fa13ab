from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny import refused_before_int8, sample_manifest, write_sealed

from leafembed.cli import main
from leafembed.judge.disagree import disagreements
from leafembed.ship.report import render_report


def neighbours(text="<script>alert(1)</script> & more"):
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2)]
    teacher, student = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    return disagreements([text, *"bcdef"], ["en"] * 6, teacher, student, neighbours=2)


class Page(HTMLParser):
    """Visible text, tags and what the page would fetch."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.fetched, self._hidden = [], [], [], 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._hidden and data.strip():
            self.text.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def html():
    return render_report(sample_manifest(), neighbours())


def test_the_page_fetches_nothing(html):
    page = Page(html)
    assert page.fetched == []
    assert "link" not in page.tags
    assert html.count("plotly.js v") == 1  # the script once, for all plots


def test_every_score_is_in_the_table_as_text(html):
    text = Page(html).text
    manifest = sample_manifest()
    report, checks = manifest["reports"]["int8"], len(manifest["verdict"]["checks"])
    for result in report["results"]:
        assert f"{result['main_score']:.4f}" in text
    assert {f"PASSED: {checks} of {checks} checks", "leaf-small"} <= set(text)


def test_a_score_names_its_interval_and_a_language_with_too_few_rows_its_rows():
    manifest = sample_manifest()
    student, teacher = (manifest["reports"][name] for name in ("int8", "teacher"))
    student["results"][0]["interval"] = [0.1234, 0.5678]
    teacher["too_few"] = [{"task": "sts/x.test", "type": "STS", "lang": "yo", "n": 7}]
    html = render_report(manifest, None)
    assert html.count('title="95 % interval: 0.123 to 0.568"') == 1
    assert "Not scored: sts/x.test in yo, too few rows (7)." in Page(html).text


def test_a_renewed_verdict_says_so():
    added = {"time": "2026-11-28T12:00:00+00:00", "leafembed": "0.2.0", "passed_before": True, "added": ["a", "b"]}
    (said,) = (text for text in Page(render_report(sample_manifest(renewed=[added]), None)).text if "renewed" in text)
    assert said.startswith("The verdict was renewed 2026-11-28T12:00:00+00:00 with leafembed 0.2.0, by the stored")


def test_texts_are_escaped(html):
    assert "<script>alert(1)" not in html
    assert any("<script>alert(1)</script> & more" in piece for piece in Page(html).text)


def test_a_refused_run_opens_with_the_failed_checks():
    manifest = refused_before_int8()
    text, checks = Page(render_report(manifest, None)).text, manifest["verdict"]["checks"]
    failed = sum(not check["passed"] for check in checks)
    assert failed == 2
    assert text.index(f"REFUSED: {failed} of {len(checks)} checks failed") < text.index("Training")
    assert any(piece.startswith("mean retention is 0.8123, must be at least") for piece in text)


def test_a_stopped_run_has_its_diagnosis_and_alarms_and_no_plots_of_what_was_not_measured():
    manifest = refused_before_int8()
    del manifest["reports"]["student"]
    manifest["training"] |= {
        "diagnosis": "The run stopped itself.",
        "floor": 0.7,
        "alarms": [{"name": "below floor", "step": 500, "message": "got | less", "fatal": True, "facts": {}}],
    }
    html = render_report(manifest, None)
    text = Page(html).text
    assert {"REFUSED: training stopped itself", "The run stopped itself.", "below floor (fatal)"} <= set(text)
    assert 'id="speed"' not in html
    assert 'id="dev"' in html


def test_the_command_writes_the_page_of_a_run_atomically(tmp_path, capsys):
    (tmp_path / "run" / "refused").mkdir(parents=True)
    write_sealed(tmp_path / "run" / "refused", refused_before_int8())
    (tmp_path / "run" / "neighbours").mkdir()
    marker = json.dumps({"inputs": "x", "facts": neighbours("a text of ours")})
    (tmp_path / "run" / "neighbours" / "stage.json").write_text(marker, encoding="utf-8")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    assert "a text of ours" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_neither_a_run_nor_a_place_for_the_page_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "got neither bundle nor refusal, expected the folder of a run" in capsys.readouterr().err
    write_sealed(tmp_path, sample_manifest())
    assert main(["report", str(tmp_path)]) == 1
    assert re.search(r"got a bundle, .* name the page's place with --out", capsys.readouterr().err)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0


def test_no_page_of_an_edited_manifest(tmp_path, capsys):
    edited = sample_manifest()
    write_sealed(tmp_path, edited)
    edited["name"] = "another"
    (tmp_path / "manifest.json").write_text(json.dumps(edited), encoding="utf-8")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "was edited after it was written" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_no_page_says_passed_of_a_refused_model_whose_checks_were_edited(tmp_path, capsys):
    """With the seal computed anew: the verdict is had again from the scores, not read."""
    manifest = refused_before_int8()
    for check in manifest["verdict"]["checks"]:
        check.update(value=check["limit"], passed=True)
    manifest["verdict"]["passed"] = True
    (tmp_path / "refused").mkdir()
    write_sealed(tmp_path / "refused", manifest)
    assert main(["report", str(tmp_path)]) == 1
    assert "the scores and the recipe give" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
