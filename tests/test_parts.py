from __future__ import annotations

import copy

import pytest
from tiny import sample_manifest

from leafembed.errors import BundleError
from leafembed.ship.parts import read_points, require_part, why_not

FLOOR = "floor: static table"


def of(manifest, report, share):
    """A report with each main score of another one times ``share``."""
    scaled = copy.deepcopy(manifest["reports"][report])
    for result in scaled["results"]:
        score = share * result["main_score"]
        result["scores"] = {**result["scores"], result["metric"]: score}
        result["main_score"] = score
    return scaled


@pytest.fixture
def manifest():
    """All layers and exit 1, each at 8 and 4 dimensions; exit 1 at 4 is worse than the static table."""
    made = sample_manifest()
    made["student"]["dim"] = 8
    kept = {(None, 8): 1.0, (None, 4): 0.99, (1, 8): 0.98}
    made["points"] = [
        {"exit": exit, "dim": dim, "weights_mb": 1.0, "report": of(made, "int8", kept[exit, dim])} for exit, dim in kept
    ] + [{"exit": 1, "dim": 4, "weights_mb": 1.0, "report": of(made, FLOOR, 0.9)}]
    for point in made["points"]:
        point["report"]["model"] = {**made["reports"]["int8"]["model"], "dim": point["dim"]}
    return made


def refused(manifest, exit, dim):
    return why_not(manifest, read_points(manifest, "here"), exit=exit, dim=dim)


def test_what_parts_are_worth_follows_from_their_scores(manifest):
    points = read_points(manifest, "here")
    assert [(point["exit"], point["dim"]) for point in points] == [(None, 8), (None, 4), (1, 8), (1, 4)]
    whole = sum(points[0]["types"].values()) / len(points[0]["types"])
    assert points[0]["mean"] == pytest.approx(whole)
    assert points[2]["mean"] == pytest.approx(0.98 * whole)
    assert points[2]["retention"] < points[0]["retention"]
    assert [point["why_not"] for point in points[:3]] == [""] * 3
    assert FLOOR in points[3]["under"]
    assert points[3]["why_not"].startswith("does not beat floor: ")


def test_a_part_under_a_floor_is_refused_and_dimensions_between_go_by_the_next_smaller_one(manifest):
    for exit, dim in ((None, None), (None, 8), (None, 4), (None, 7), (1, None), (1, 8)):
        require_part(manifest, "here", exit=exit, dim=dim)
    for dim in (4, 5, 7):
        with pytest.raises(BundleError, match=rf"here: got exit 1 at {dim} dimensions, which does not beat .*; take"):
            require_part(manifest, "here", exit=1, dim=dim)
    for exit in (None, 1):  # below the smallest that was scored nothing is known
        with pytest.raises(BundleError, match=r"at 3 dimensions, which was not held against the floors; take"):
            require_part(manifest, "here", exit=exit, dim=3)


def test_what_was_stored_of_a_part_besides_its_scores_is_not_believed(manifest):
    manifest["points"][3] |= {"under": [], "mean": 1.0, "why_not": ""}
    assert refused(manifest, 1, 4)
    manifest["points"][3]["report"]["results"][0]["main_score"] = 0.99
    with pytest.raises(BundleError, match="here: the scores of its parts are not readable"):
        refused(manifest, 1, 4)
    manifest["points"][3]["report"]["results"].pop()
    with pytest.raises(BundleError, match="here: the scores of its parts are not readable"):
        read_points(manifest, "here")


def test_scores_of_another_model_are_none(manifest):
    manifest["points"][3]["report"] = copy.deepcopy(manifest["reports"]["teacher"])
    with pytest.raises(BundleError, match=r"here: .*scores of exit 1 at 4 dimensions are of"):
        read_points(manifest, "here")


def test_a_bad_part_cannot_be_left_out(manifest):
    manifest["recipe"]["student"] = {"exits": [1], "dims": [4]}
    read_points(manifest, "here")
    del manifest["points"][3]
    with pytest.raises(BundleError, match=r"no scores of exit and dimension \[\(1, 4\)\], which the recipe trains"):
        refused(manifest, 1, 4)


def test_a_part_that_was_never_judged_is_refused_unless_no_floor_is_asked_for(manifest):
    manifest["points"] = manifest["points"][:2]
    assert refused(manifest, 1, 8) == "was not held against the floors"
    old = {"exit": 1, "dim": 8, "mean": 0.7, "retention": 0.9, "types": {"STS": 0.7}, "weights_mb": 1.0}
    manifest["points"].append(old)
    assert read_points(manifest, "here")[2]["under"] is None
    assert refused(manifest, 1, 8) == "was not held against the floors"
    manifest["recipe"]["gate"]["beat_floors"] = False
    assert refused(manifest, 1, 8) == ""
    del manifest["points"]
    assert read_points(manifest, "here") == []
    assert refused(manifest, 1, 8) == ""


def test_shorter_vectors_of_a_model_that_was_judged_whole_are_nobodys_promise(manifest):
    del manifest["points"]
    assert refused(manifest, None, 4) == ""
