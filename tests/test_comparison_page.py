from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from test_compare import HARD, judged, shifted

from leafembed import comparison_page
from leafembed.comparison_page import PAGE, PLOT, RESULTS, comparison_data, write_comparison
from leafembed.reports import EvalReport
from leafembed.ship.score_plot import MOST_LANGUAGES, _rows


@pytest.fixture
def models():
    return [judged("teacher", shifted(0.1)), judged("student", shifted(0.05, 0.05)), judged("floor", HARD)]


def rows(page, heading):
    section = page.partition(f"## {heading}")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


def test_a_comparison_leaves_three_files(models, tmp_path):
    data = write_comparison(models, tmp_path / "out", reference=models[0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PAGE, PLOT, RESULTS}
    read = json.loads((tmp_path / "out" / RESULTS).read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(data))
    assert EvalReport.from_dict({k: read["models"][1][k] for k in ("model", "results", "too_few", "intervals")}) == (
        models[1].report
    )
    assert read["reference"] == "teacher"
    assert set(read["retention"]) == {"student", "floor"}
    assert len(read["pairs"]) == 3


def test_results_are_written_last(models, tmp_path, monkeypatch):
    write_comparison(models, tmp_path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(comparison_page, "plot_scores", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_comparison(models[:2], tmp_path)
    assert not (tmp_path / RESULTS).exists()


def test_the_page_has_scores_pairs_languages_and_tasks(models, tmp_path):
    write_comparison(models, tmp_path, reference=models[0])
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert page.startswith("# 3 models on 2 tasks\n")
    first = next(line for line in page.splitlines() if line.startswith("| teacher |"))
    low, high = models[0].report.intervals["STS"]
    assert first.startswith(f"| teacher | {models[0].scores['STS']:.4f} [{low:.3f}, {high:.3f}] |")
    assert first.endswith("| reference |")
    assert f"]({PLOT})" in page
    assert [line.split(" | ")[:2] for line in rows(page, "Is A better than B?")] == [
        ["| teacher", "student"],
        ["| teacher", "floor"],
        ["| student", "floor"],
    ]
    assert [line.split(" | ")[:2] for line in rows(page, "By language")] == [
        ["| STS", "de"],
        ["| STS", "fr"],
        ["| Retrieval", "de"],
    ]
    assert len(rows(page, "By task")) == 3
    assert "the plot shows those with most items" not in page


def test_without_a_reference_nothing_is_retained(models):
    assert comparison_data(models)["retention"] == {}
    assert comparison_data(models)["reference"] is None


def test_what_cannot_be_retained_is_said(models, tmp_path):
    nothing = judged("nothing", {key: np.zeros(len(values)) for key, values in HARD.items()})
    write_comparison([nothing, models[0]], tmp_path, reference=nothing)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert next(line for line in page.splitlines() if line.startswith("| teacher |")).endswith("| n/a |")


def test_one_model_has_a_page_without_pairs(models, tmp_path):
    write_comparison(models[:1], tmp_path)
    assert "Is A better" not in (tmp_path / PAGE).read_text(encoding="utf-8")


def many_languages(n):
    rng = np.random.default_rng(0)
    return judged("model", {("Bitext/a", f"l{i:02d}"): rng.random(50 + i) for i in range(n)})


def test_many_languages_are_folded_and_the_largest_drawn(tmp_path):
    model = many_languages(40)
    write_comparison([model], tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "<summary>40 rows</summary>" in page
    assert "the plot shows those with most items" in page
    assert _rows(model.report, "Bitext") == ["all", *(f"l{i:02d}" for i in range(40 - MOST_LANGUAGES, 40))]


@pytest.mark.parametrize("n", [1, 12])
def test_the_plot_is_a_picture_that_depends_on_the_scores_alone(tmp_path, n):
    models = [judged(f"model {i}", shifted(0.02 * i)) for i in range(n)]
    for name in ("one", "two"):
        write_comparison(models, tmp_path / name)
    content = (tmp_path / "one" / PLOT).read_bytes()
    assert content == (tmp_path / "two" / PLOT).read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert 500 < width < 1500
    assert 150 < height < 1500
