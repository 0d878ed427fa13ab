from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from tiny import refused_before_int8, sample_manifest

from leafembed.reports import EvalReport
from leafembed.ship import plots
from leafembed.ship.card import render_card
from leafembed.ship.plots import CURVES, PLOTS, RATES, SCORES, draw_plots, plots_of
from leafembed.ship.score_plot import plot_rates, series_of


@pytest.fixture
def manifest():
    return sample_manifest()


def test_a_card_shows_each_plot_that_is_drawn(manifest, tmp_path):
    assert plots_of(manifest) == PLOTS
    draw_plots(manifest, tmp_path)
    card = render_card(manifest)
    for name in PLOTS:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert all(150 < side < 2500 for side in struct.unpack(">II", content[16:24]))
        assert card.count(f"]({name})") == 1


def test_plots_depend_on_the_manifest_alone(manifest, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_plots(manifest, tmp_path / name)
    for name in PLOTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_plot_without_numbers_is_neither_drawn_nor_shown(manifest, tmp_path):
    manifest["speed"] = []
    manifest["training"]["history"] = []
    draw_plots(manifest, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SCORES]
    assert f"]({CURVES})" not in render_card(manifest)
    assert f"]({RATES})" not in render_card(manifest)


def test_a_student_refused_before_int8_has_its_scores_drawn():
    assert SCORES in plots_of(refused_before_int8())
    assert RATES not in plots_of(refused_before_int8())


def test_the_plot_of_rates_has_every_exit_and_the_size_of_each(manifest, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "plot_rates", lambda points, path: drawn.update(points))
    timed = next(entry for entry in manifest["speed"] if entry["name"] == "student, INT8")
    manifest["speed"].append({**timed, "name": "student, INT8, exit 3", "texts_per_second": 2e3})
    whole, report = manifest["student"]["dim"], manifest["reports"]["int8"]
    manifest["points"] = [{"exit": exit, "dim": dim, "report": report} for exit in (None, 3) for dim in (whole, 8)]
    draw_plots(manifest, tmp_path)
    assert list(drawn) == [entry["name"] for entry in manifest["speed"] if entry["name"] != "teacher, INT8"]
    assert drawn["student, INT8, exit 3"].rate == 2e3
    assert {name: one.megabytes for name, one in drawn.items()} == {
        entry["name"]: entry["size_mb"] for entry in manifest["speed"] if entry["name"] in drawn
    }
    plot_rates(drawn, tmp_path / "with.png")
    plot_rates({name: replace(one, megabytes=0.0) for name, one in drawn.items()}, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_only_a_mean_over_several_tasks_has_no_interval(manifest):
    data = manifest["reports"]["teacher"]
    for result in data["results"]:
        result["interval"] = (result["main_score"] - 0.01, result["main_score"] + 0.01)
    report = EvalReport.from_dict(data)
    series = series_of("teacher", report)
    tasks = {}
    for result in report.results:
        tasks.setdefault((result.type, result.lang), []).append(result)
    assert series.languages.keys() == tasks.keys()
    for key, (score, interval) in series.languages.items():
        assert score == pytest.approx(sum(r.main_score for r in tasks[key]) / len(tasks[key]))
        assert (interval is None) == (len(tasks[key]) > 1)
