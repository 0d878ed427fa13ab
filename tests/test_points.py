"""Exits and dimensions of a bundle: scored in a run, shown on its card, chosen from on a machine."""

import json
import shutil

import numpy as np
import pytest
from families import gemma, toy_recipe
from scipy.stats import spearmanr
from served import serving
from tiny import judge, make_model_folder, sample_manifest, write_sealed

import leafembed
from leafembed.choosing import _best, choose
from leafembed.cli import main
from leafembed.errors import BundleError, Error
from leafembed.judge.evaluate import evaluate
from leafembed.judge.mteb_model import MtebModel
from leafembed.judge.mteb_run import run_mteb
from leafembed.judge.tasks import load_tasks
from leafembed.judge.views import View
from leafembed.learn.exits import Exits
from leafembed.learn.models import load_sentence_transformer
from leafembed.pipeline import run
from leafembed.recipe_io import recipe_from_dict
from leafembed.serve.specs import About, ModelSpec
from leafembed.ship.bundle import write_bundle
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.parts import read_points


@pytest.fixture(scope="module")
def ended(tmp_path_factory, eval_data):
    """A run whose student has three layers, exits after the first two, and vectors of 16 of 32 values."""
    root = tmp_path_factory.mktemp("points")
    recipe = toy_recipe(
        root,
        gemma(root / "teacher"),
        eval_data,
        student={"layers": [0, 1, 5], "exits": [1, 2], "dims": [16]},
        quantize={"engines": ["group-0", "bf16", "static"]},
    )
    return run(recipe_from_dict(recipe), root / "run")


@pytest.fixture(scope="module")
def bundle(ended):
    return ended.folder


def test_every_exit_and_dimension_is_scored_and_timed(ended, eval_data):
    points = read_points(ended.manifest, "here")
    assert [(point["exit"], point["dim"]) for point in points] == [
        *((None, 32), (None, 16), (2, 32), (2, 16), (1, 32), (1, 16)),
    ]
    encoder, tasks = leafembed.load(ended.folder, threads=1), load_tasks(eval_data, ["retrieval/toy_en"], min_rows=8)
    for point in points:
        part = View(encoder, dim=point["dim"], exit=point["exit"])
        assert point["mean"] == pytest.approx(evaluate(part, tasks).mean, abs=0.02)  # INT8 rounds by the batch
    assert points[0]["mean"] == pytest.approx(ended.manifest["reports"]["int8"]["results"][0]["main_score"], abs=1e-6)
    assert [point["under"] for point in points] == [None] * 6  # the recipe asks for no floor
    assert all(point.keys() == {"exit", "dim", "weights_mb", "report"} for point in ended.manifest["points"])
    weights = [point["weights_mb"] for point in points[::2]]
    assert weights[0] > weights[1] > weights[2] > 0
    timed = [entry["name"] for entry in ended.manifest["speed"]]
    assert timed[-3:] == ["student, INT8", "student, INT8, exit 2", "student, INT8, exit 1"]


def test_engines_are_measured_and_what_ships_is_the_chosen_one(ended):
    int8 = ended.manifest["int8"]
    candidates = {one["name"]: one for one in int8["candidates"]}
    # An engine need not have a kernel for so narrow a model: oneDNN's of bf16 on AMX wants wider ones.
    assert [*candidates, *int8["unmeasured"]] in (
        ["group-128", "group-0", "bf16", "static"],
        ["group-128", "group-0", "static", "bf16"],
    )
    assert set(int8["unmeasured"]) <= {"bf16"}
    assert [one["outcome"].startswith("chosen") for one in int8["candidates"]].count(True) == 1
    assert candidates[int8["chosen"]]["outcome"].startswith("chosen")
    if "bf16" in candidates:
        assert candidates["bf16"]["outcome"] == "rejected: vectors would depend on the machine"
    assert all(one["texts_per_second"] > 0 and one["mb"] > 0 for one in candidates.values())
    assert candidates["group-0"]["cosine_mean"] > 0.99
    assert candidates["group-0"]["cosine_mean"] != candidates["static"]["cosine_mean"]
    settings = json.loads((ended.folder / "encoder.json").read_text(encoding="utf-8"))
    assert settings["group_size"] == {"group-128": 128}.get(int8["chosen"], 0)
    card = (ended.folder / "README.md").read_text(encoding="utf-8")
    assert "### Engines" in card
    assert "| group-0 |" in card


def test_exits_of_the_bundle_are_those_that_were_trained(ended):
    model = load_sentence_transformer(ended.folder.parent / "student")
    texts = ["en1 en2 en3", "en4", "de5 en6 en7 en8"]
    exits = Exits(model, (1, 2))
    with exits.watching() as caught:
        output = model(model.preprocess(texts))
    encoder = leafembed.load(ended.folder, threads=1)
    for exit, vectors in zip((1, 2), exits.vectors(caught, output), strict=True):
        want = vectors.detach().numpy()
        want /= np.linalg.norm(want, axis=1, keepdims=True)
        assert np.sum(want * encoder.encode(texts, exit=exit), axis=1).min() > 0.98


def test_a_server_serves_them_beside_each_other(bundle):
    texts = ["en1 en2 en3", "de5"]
    specs = [ModelSpec.parse(f"leaf={bundle}"), ModelSpec.parse(f"early={bundle}@exit=1@dim=16")]
    with serving(specs, allow_failed=True) as served:
        for name, want in (
            ("leaf", leafembed.load(bundle).encode(texts)),
            ("early", leafembed.load(bundle, exit=1).encode(texts, dim=16)),
        ):
            got = np.array(served.ask("/api/embed", {"model": name, "input": texts})[1]["embeddings"])
            assert got.shape == want.shape
            assert np.sum(got * want, axis=1).min() > 0.999  # INT8 rounds by the batch
        whole, early = (served.ask(f"/ui/card/{name}")[1] for name in ("leaf", "early"))
        assert (whole["exit"], early["exit"], early["dim"]) == (None, 1, 16)
        assert whole["exits"] == early["exits"][::-1]
        assert whole["exits"] == [{"exit": None, "name": "leaf"}, {"exit": 1, "name": "early"}]


def test_the_card_has_the_table(bundle):
    card = (bundle / "README.md").read_text(encoding="utf-8")
    section = card.partition("## Early exits and dimensions")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| all layers") or line.startswith("| exit")]
    assert [row.split("|")[1].strip() for row in rows] == ["all layers"] * 2 + ["exit 2"] * 2 + ["exit 1"] * 2


def test_choose_times_them_and_says_how_to_load(bundle, capsys, tmp_path):
    (tmp_path / "texts").write_text("en1 en2\nen3\n", encoding="utf-8")
    assert main(["choose", str(bundle), "--min-rate", "0.001", "--texts", str(tmp_path / "texts"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chosen"] == max(result["points"], key=lambda point: (point["retention"], -point["dim"]))
    assert all(point["texts_per_second"] > 0 for point in result["points"])
    assert main(["choose", str(bundle), "--min-rate", "0.001", "--texts", str(tmp_path / "texts")]) == 0
    assert "leafembed.load(" in capsys.readouterr().out


def _set(report, score):
    for result in report["results"]:
        result["scores"][result["metric"]] = result["main_score"] = score


@pytest.fixture
def held(bundle, tmp_path):
    """The bundle by rules with floors, all at .01: exit 1 at 16 dimensions does not beat them."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["recipe"]["gate"]["beat_floors"] = True
    for name, report in manifest["reports"].items():
        if name.startswith("floor"):
            _set(report, 0.01)
    _set(next(p for p in manifest["points"] if (p["exit"], p["dim"]) == (1, 16))["report"], 0.005)
    judge(manifest)
    write_sealed(folder, manifest)
    return folder


def test_what_is_under_a_floor_is_not_chosen(held):
    result = choose(held, ["en1"], min_rate=1e-3)
    assert [(point["exit"], point["dim"]) for point in result["points"]] == [
        *((None, 32), (None, 16), (2, 32), (2, 16), (1, 32)),
    ]
    assert len(choose(held, ["en1"], min_rate=1e-3, allow_failed=True)["points"]) == 6


def test_where_no_part_beats_the_floors_the_whole_is_left(held):
    manifest = json.loads((held / "manifest.json").read_text(encoding="utf-8"))
    for point in manifest["points"]:
        _set(point["report"], 0.005)
    write_sealed(held, manifest)
    assert choose(held, ["en1"], min_rate=1e-3)["chosen"]["dim"] == 32
    with pytest.raises(Error, match=r"got a retention of at most 0\.\d+"):
        choose(held, ["en1"], min_retention=1.0)


def test_a_part_under_a_floor_is_neither_loaded_nor_served(held, tmp_path, capsys):
    assert leafembed.load(held, exit=1).dim == 32
    for dim in (16, 20):
        with pytest.raises(BundleError, match=rf"got exit 1 at {dim} dimensions, which does not beat floor: random, "):
            leafembed.load(held, exit=1, dim=dim)
    with pytest.raises(BundleError, match="got exit 1 at 9 dimensions, which was not held against the floors"):
        leafembed.load(held, exit=1, dim=9)
    spec = ModelSpec.parse(f"leaf={held}@exit=1@dim=16")
    with pytest.raises(BundleError, match="--model leaf: got exit 1 at 16 dimensions"):
        About.read(spec, allow_failed=False)
    assert leafembed.load(held, exit=1, dim=16, allow_failed=True).dim == 16
    assert About.read(spec, allow_failed=True).config.dim == 32
    words = ["encode", str(held), str(tmp_path / "texts"), "--exit", "1"]
    (tmp_path / "texts").write_text("en1\n", encoding="utf-8")
    assert [main([*words, *more]) for more in ([], ["--truncate-dim", "16"])] == [0, 1]
    assert main([*words, "--truncate-dim", "16", "--allow-failed"]) == 0
    assert main([*words, "--truncate-dim", "99"]) == 2
    assert "--truncate-dim: got 99, expected 1 to 32" in capsys.readouterr().err
    early = ModelSpec.parse(f"leaf={held}@exit=1")
    for allow_failed, status in ((False, 400), (True, 200)):
        with serving([early], allow_failed=allow_failed) as served:
            ask = {"model": "leaf", "input": "en1"}
            assert served.ask("/v1/embeddings", ask)[0] == 200
            got, answer, *_ = served.ask("/v1/embeddings", ask | {"dimensions": 16})
            assert got == status
            assert allow_failed or "does not beat floor: random" in answer["error"]["message"]
            got, answer, *_ = served.ask("/api/embed", ask | {"dimensions": 16})
            assert got == status
            assert allow_failed or "does not beat floor: random" in answer["error"]


def point(exit, dim, retention, rate):
    return {"exit": exit, "dim": dim, "retention": retention, "texts_per_second": rate}


POINTS = [point(None, 32, 0.98, 100), point(None, 16, 0.95, 100), point(2, 32, 0.96, 300), point(2, 16, 0.90, 300)]


@pytest.mark.parametrize(
    ("retention", "rate", "expected"),
    [
        (0.97, None, 0),
        (0.95, None, 2),
        (0.90, None, 3),
        (None, 50, 0),
        (None, 200, 2),
        (0.92, 200, 2),
    ],
)
def test_the_cheapest_that_is_good_enough(retention, rate, expected):
    assert _best(POINTS, retention, rate) is POINTS[expected]


def test_what_cannot_be_met_says_what_can(bundle, tmp_path):
    with pytest.raises(Error, match=r"got a retention of at most 0\.980 \(100 texts/s\) and at most 300 texts/s"):
        _best(POINTS, 0.99, None)
    with pytest.raises(Error, match="got no condition"):
        choose(bundle, ["a"])


def test_rates_are_of_texts_with_the_prompt_of_the_recipe(tmp_path, monkeypatch, capsys):
    manifest = sample_manifest()
    manifest["recipe"]["teacher"]["prompt_name"] = "query"
    folder = write_bundle(tmp_path / "b", make_model_folder(tmp_path / "m", prompts={"query": "query : "}), manifest)
    point = {"exit": None, "dim": 8, "retention": 0.9, "weights_mb": 1.0, "why_not": ""}
    monkeypatch.setattr("leafembed.choosing.read_points", lambda *_: [dict(point)])
    read, encode = [], BundleEncoder.encode
    monkeypatch.setattr(
        BundleEncoder, "encode", lambda self, *a, **k: read.append(k.get("prompt_name")) or encode(self, *a, **k)
    )
    assert choose(folder, ["red"], min_rate=1e-3)["prompt_name"] == "query"
    assert set(read) == {"query"}
    (tmp_path / "texts").write_text("red\n", encoding="utf-8")
    assert main(["choose", str(folder), "--min-rate", "0.001", "--texts", str(tmp_path / "texts")]) == 0
    assert "texts/s with the prompt 'query'" in capsys.readouterr().out


def test_a_bundle_with_one_point_has_nothing_to_choose_from(tmp_path):
    from served import make_bundle

    with pytest.raises(Error, match=r"nothing to choose from; train a student with student\.exits"):
        choose(make_bundle(tmp_path), ["red"], min_rate=1)


def test_mteb_scores_an_early_exit_as_it_is(bundle):
    from mteb.mocks import mock_tasks

    task = mock_tasks.MockSTSTask()
    task.load_data()
    rows = task.dataset["test"]
    encoder = leafembed.load(bundle, threads=1)
    cosines = {}
    for exit in (None, 1):
        one, other = (encoder.encode(list(rows[name]), exit=exit) for name in ("sentence1", "sentence2"))
        cosines[exit] = np.sum(one * other, axis=1)
        for part in (View(encoder, exit=exit), leafembed.load(bundle, threads=1, exit=exit)):
            (result,) = run_mteb(part, [mock_tasks.MockSTSTask()]).results
            assert result.main_score == pytest.approx(spearmanr(cosines[exit], rows["score"]).statistic, abs=1e-6)
            found = MtebModel(part).encode([{"text": list(rows["sentence1"])}], task_metadata=task.metadata)
            assert np.sum(found * one, axis=1).min() > 0.9999
    assert np.abs(cosines[None] - cosines[1]).max() > 1e-3
