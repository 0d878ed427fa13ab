"""The benchmark of everyone: processes of their own, what fails is said, page and plot from the numbers alone."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import write_rows
from tiny import WORDS, make_model_folder, sample_manifest

from leafembed import bench
from leafembed.bench import MIXES, Plan, length_mixes, measure, require_data
from leafembed.bench_page import DATA, PAGE, PLOT, bench_page, write_bench
from leafembed.bench_worker import Worker, open_entrant
from leafembed.cli import main
from leafembed.contenders import Entrant, Lineup, line_up
from leafembed.errors import BundleError, ModelError
from leafembed.recipe import BenchmarkConfig, QuantizeConfig
from leafembed.ship.bundle import write_bundle
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.engine import ProductWeights, group_size_of, product_weights
from leafembed.ship.folder import EncoderConfig
from leafembed.ship.pareto_plot import Dot, front
from leafembed.ship.peaks import matmul_peaks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Evaluation data with the files that length mixes are made of."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def words(n):
        return " ".join(rng.choice(WORDS[3:9], n))

    rows = [{"sentence1": words(6), "sentence2": words(6), "score": i % 5, "lang": "en"} for i in range(30)]
    write_rows(root / "sts/sts17_en.test.jsonl.gz", rows)
    folder = root / "retrieval/xquad_en"
    write_rows(folder / "queries.jsonl.gz", [{"id": f"q{i}", "text": words(4), "lang": "en"} for i in range(12)])
    write_rows(folder / "corpus.jsonl.gz", [{"id": f"d{i}", "text": words(40)} for i in range(80)])
    return root


@pytest.fixture(scope="module")
def result(tmp_path_factory, data):
    """One tiny bundle, and one whose graph is damaged."""
    root = tmp_path_factory.mktemp("bench")
    good, bad = make_model_folder(root / "good", max_seq_length=64), make_model_folder(root / "bad")
    (bad / "model.xml").write_text("{", encoding="utf-8")
    entrants = [
        Entrant("good", "student", "bundle", str(good), files=(str(good / "model.bin"),)),
        Entrant("bad", "peer", "bundle", str(bad)),
    ]
    plan = Plan(data=data, tasks=("sts/*",), texts=16, repeats=3, threads=1)
    measured = measure(Lineup(entrants, {"absent": "not installed"}), plan)
    return measured | {"model_bytes": (good / "model.bin").stat().st_size}


def test_mixes_are_of_the_lengths_that_they_say(data):
    mixes = length_mixes(data, 64)
    assert list(mixes) == list(MIXES)
    assert [len(texts) for texts in mixes.values()] == [12, 60, 8, 2]
    lengths = [np.mean([len(text) for text in texts]) for texts in mixes.values()]
    assert lengths == sorted(lengths)


def test_data_that_is_missing_is_said_before_anyone_is_set_up(data, tmp_path, monkeypatch, capsys):
    require_data(Plan(data=data, tasks=("sts/*",)))
    monkeypatch.setattr("leafembed.ship.bundle.open_bundle", lambda *_, **__: None)
    monkeypatch.setattr("leafembed.contenders.line_up", lambda *_, **__: pytest.fail("set up"))
    for root, tasks in ((tmp_path, "sts/*"), (data, "none/*")):
        argv = ["benchmark", str(tmp_path), "--out", str(tmp_path / "out"), "--data", str(root), "--tasks", tasks]
        assert main(argv) == 1
        assert str(root) in capsys.readouterr().err


def test_everything_is_measured_of_who_runs_and_the_reason_said_of_who_does_not(result):
    (good,) = result["contenders"]
    assert set(result["missing"]) == {"absent", "bad"}
    assert "OpenVINO cannot open it" in result["missing"]["bad"]
    assert "Exception from" not in result["missing"]["bad"]  # where in its source it stood helps nobody
    assert set(good["rates"]) == set(MIXES)
    for rate in good["rates"].values():
        slowest, fastest = rate["spread"]
        assert 0 < slowest <= rate["texts_per_second"] <= fastest
    assert good["tokens"]["queries"] == 12 * 5  # [CLS] and four words
    sentences = good["rates"]["sentences"]
    assert sentences["tokens_per_second"] / sentences["texts_per_second"] == pytest.approx(7)
    assert len(good["cold_starts_s"]) == 5
    least, most = good["latency_ms"]["p50_spread"]
    assert 0 < least <= most
    assert good["latency_ms"]["p50"] <= good["latency_ms"]["p95"] <= good["latency_ms"]["p99"]
    assert good["peak_memory_mb"] > 20
    assert -1 <= good["quality"]["mean"] <= 1
    assert list(good["quality"]["types"]) == ["STS"]
    assert good["megabytes"] == result["model_bytes"] / 1e6
    assert good["token_weights"] == good["text_weights"] == 0  # a mean of rows
    assert good["peak_share"] is None
    assert result["peaks"]["fp32"] > 0
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("fails_at", ["open", "score", "time"])
def test_who_fails_in_the_rounds_is_named_and_the_others_go_on(data, monkeypatch, fails_at):
    ended = []

    class Stub:
        def __init__(self, entrant, threads):
            self.name = entrant.name
            self.fail("open")

        def fail(self, command):
            if self.name == "frail" and command == fails_at:
                raise bench._WorkerError(f"broke at {command}")

        def ask(self, command, argument):
            self.fail(command)
            return 1.5 if command == "time" else {"mean": 0.5}

        def end(self):
            ended.append(self.name)

    monkeypatch.setattr(bench, "_Process", Stub)
    missing = {"absent": "not installed"}
    entrants = [Entrant(name, "peer", "torch", "") for name in ("frail", "sound")]
    found = bench._interleaved(entrants, {"queries": ["a"], "sentences": ["b"]}, Plan(data=data, repeats=2), 1, missing)
    assert missing == {"absent": "not installed", "frail": f"broke at {fails_at}"}
    assert found == {"sound": {"quality": {"mean": 0.5}, "seconds": {"queries": [1.5, 1.5], "sentences": [1.5, 1.5]}}}
    assert sorted(ended) == (["sound"] if fails_at == "open" else ["frail", "sound"])


def test_a_process_that_says_much_does_not_stop(tmp_path, monkeypatch):
    chatty = tmp_path / "chatty"
    chatty.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stderr.write('x' * 200_000)\nprint('\"ready\"', flush=True)\n"
        "sys.stdin.readline()\nsys.exit('at last')\n"
    )
    chatty.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(chatty))
    with bench._Process(Entrant("chatty", "peer", "torch", ""), 1) as process:
        with pytest.raises(bench._WorkerError, match="at last"):
            process.ask("time", ["a"])


def test_page_and_plot_are_made_of_the_numbers(result, tmp_path):
    write_bench(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([DATA, PAGE, PLOT])
    stored = json.loads((tmp_path / DATA).read_text(encoding="utf-8"))
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert page == bench_page(stored)
    assert "- absent: not installed" in page
    assert "## Tokens read of a text" in page
    assert f"| good | {stored['contenders'][0]['quality']['mean']:.4f} |" in page
    content = (tmp_path / PLOT).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert all(300 < side < 2000 for side in struct.unpack(">II", content[16:24]))


def test_the_front_is_whom_nobody_beats_in_both():
    places = {"slow, good": (10, 0.9), "beaten": (20, 0.7), "middle": (30, 0.8), "fast": (90, 0.5), "worse": (80, 0.4)}
    dots = [Dot(name, "peer", rate, quality, 1) for name, (rate, quality) in places.items()]
    assert [dot.label for dot in front(dots)] == ["slow, good", "middle", "fast"]


def test_who_cannot_take_part_is_named_with_the_reason(tmp_path):
    manifest = sample_manifest()
    bundle = write_bundle(tmp_path / "bundle", make_model_folder(tmp_path / "model"), manifest)
    found = line_up(bundle, teacher=str(tmp_path / "nowhere"), student=None, work=tmp_path / "work", peers=False)
    assert [(one.name, one.kind, one.exit) for one in found.entrants] == [("student, INT8", "bundle", None)]
    assert found.entrants[0].megabytes > 0
    assert "no such folder" in found.missing["teacher"]
    assert "name it with --student" in found.missing["student, torch fp32"]


def _manifest(**folders):
    """A manifest that knows the models of folders, given as ``teacher`` or ``student``, as its own."""
    from leafembed.learn.models import fingerprint_folder

    manifest = sample_manifest()
    for name, folder in folders.items():
        reports = (name, "int8") if name == "student" else (name,)
        for model in (manifest[name], *(manifest["reports"][report]["model"] for report in reports)):
            model["fingerprint"] = fingerprint_folder(folder)
    return manifest


def test_a_student_beside_the_bundle_must_be_the_bundles(tmp_path):
    from families import bert

    student = bert(tmp_path / "student")
    manifest = _manifest(student=student)
    model = make_model_folder(tmp_path / "model", fingerprint=manifest["student"]["fingerprint"])
    bundle, name = write_bundle(tmp_path / "bundle", model, manifest), "student, torch fp32"
    options = {"teacher": str(tmp_path / "nowhere"), "work": tmp_path / "work", "peers": False}
    for given in (None, student):
        found = line_up(bundle, student=given, **options)
        assert [one.path for one in found.entrants if one.name == name] == [str(student)]
    (student / "config.json").write_text((student / "config.json").read_text() + "\n")  # trained since
    found = line_up(bundle, student=None, **options)
    assert "got a model with fingerprint" in found.missing[name]
    assert name not in [one.name for one in found.entrants]
    with pytest.raises(ModelError, match=rf"^--student {student}: got .*, expected .*; give the folder"):
        line_up(bundle, student=student, **options)


def test_a_teacher_must_be_the_bundles_and_is_quantised_as_its_student(tmp_path):
    from families import bert

    teacher = bert(tmp_path / "teacher@2")
    manifest = _manifest(teacher=teacher)
    model = make_model_folder(tmp_path / "model", group_size=32)
    bundle = write_bundle(tmp_path / "bundle", model, manifest)
    options = {"student": None, "work": tmp_path / "work", "peers": False}
    found = line_up(bundle, teacher=str(teacher), **options)
    (int8,) = [one for one in found.entrants if one.name == "teacher, INT8"]
    assert EncoderConfig.read(Path(int8.path)).group_size == 32  # not the default
    (teacher / "config.json").write_text((teacher / "config.json").read_text() + "\n")
    with pytest.raises(ModelError, match=rf"^--teacher {teacher}: got .*, expected .*; give the folder"):
        line_up(bundle, teacher=str(teacher), **options)
    manifest["recipe"]["teacher"] = {"model": str(teacher), "revision": None}
    bundle = write_bundle(tmp_path / "unnamed", model, manifest)
    found = line_up(bundle, teacher=None, **options)
    assert "got a model with fingerprint" in found.missing["teacher"]
    assert {one.group for one in found.entrants} == {"student"}


def test_a_teacher_at_a_url_has_no_files_to_compare(tmp_path):
    manifest = sample_manifest()
    manifest["recipe"]["teacher"] = {"model": "http://127.0.0.1:1/v1"}
    bundle = write_bundle(tmp_path / "bundle", make_model_folder(tmp_path / "model"), manifest)
    options = {"student": None, "work": tmp_path / "work", "peers": False}
    assert "is a server" in line_up(bundle, teacher=None, **options).missing["teacher"]
    with pytest.raises(ModelError, match=r"^--teacher there: .* is a server"):
        line_up(bundle, teacher="there", **options)


def test_the_cards_teacher_is_quantised_as_its_student(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from families import bert

    from leafembed import steps
    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.learn.teacher import TorchEncoder

    folder = bert(tmp_path / "bert")
    model = load_sentence_transformer(folder)
    encoder = TorchEncoder(model, describe(model, folder, name="tiny"), precision="fp32")
    learned = SimpleNamespace(teacher=SimpleNamespace(torch=encoder), teacher_dir=folder, validation=lambda n: ["en1"])
    recipe = SimpleNamespace(
        teacher=SimpleNamespace(prompt_name=None),
        benchmark=BenchmarkConfig(),
        quantize=QuantizeConfig(),
        cache_dir=tmp_path,
    )
    line = SimpleNamespace(recipe=recipe, learned=learned, folder=tmp_path)
    make_model_folder(tmp_path / "int8", group_size=32)  # as a race of engines has chosen
    monkeypatch.setattr(steps, "race", lambda entries, *_, **__: entries)
    entries = steps.timed(line, encoder, BundleEncoder(tmp_path / "int8", threads=1))
    assert [(entry.name, EncoderConfig.read(entry.int8_folder).group_size) for entry in entries] == [
        ("teacher", 32), ("student", 32)]  # fmt: skip


def test_calibrated_scales_are_no_groups(tmp_path):
    from families import bert

    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.ship.quantize import quantize, quantize_static

    model = load_sentence_transformer(bert(tmp_path / "bert"))
    ref, ids = describe(model, tmp_path / "bert", name="tiny"), np.array([[2, 5, 6, 3]])
    quantize(model, tmp_path / "floats", ref=ref, group_size=0)
    quantize_static(model, tmp_path / "static", ref=ref,
                    calibration=[{"input_ids": ids, "attention_mask": np.ones_like(ids)}])  # fmt: skip
    assert [group_size_of(tmp_path / name, otherwise=64) for name in ("floats", "static")] == [0, 64]


def test_a_static_model_that_is_named_must_be_one(tmp_path):
    from families import bert

    teacher = bert(tmp_path / "teacher")
    (tmp_path / "static").mkdir()
    manifest = _manifest(teacher=teacher)
    bundle = write_bundle(tmp_path / "bundle", make_model_folder(tmp_path / "model"), manifest)
    options = {"teacher": str(teacher), "student": None, "work": tmp_path / "work", "static": tmp_path / "static"}
    found = line_up(bundle, **options)
    assert "got no model.safetensors" in found.missing["model2vec of the teacher"]
    (tmp_path / "static" / "model.safetensors").write_bytes(b"1234")
    (named,) = [one for one in line_up(bundle, **options).entrants if one.name == "model2vec of the teacher"]
    assert (named.kind, named.path, named.megabytes) == ("model2vec", str(tmp_path / "static"), 4e-6)


def test_weights_in_products_are_counted_as_stored(tmp_path):
    from families import bert

    from leafembed.learn.models import describe, load_sentence_transformer
    from leafembed.ship.quantize import quantize

    folder = bert(tmp_path / "bert", heads=[(32, 16), (16, 32)])
    model = load_sentence_transformer(folder)
    quantize(model, tmp_path / "int8", ref=describe(model, folder, name="tiny"), group_size=32, exits=(1,))
    config, layer, head = EncoderConfig.read(tmp_path / "int8"), 4 * 32 * 32 + 2 * 32 * 64, 2 * 32 * 16
    assert product_weights(tmp_path / "int8" / "model.xml", config, None) == ProductWeights(3 * layer, head)
    assert product_weights(tmp_path / "int8" / "model.xml", config, 1) == ProductWeights(layer, head)
    entrant = asdict(Entrant("torch", "student", "torch", str(folder)))
    facts = Worker(open_entrant(entrant, 1), entrant).facts({"role": "STS", "texts": ["en1"]})
    assert facts["token_weights"] == 3 * layer
    assert facts["text_weights"] == head + 32 * 32  # torch runs BERT's pooler too, for nothing


def test_what_runs_once_a_text_is_no_share_of_each_token():
    rate = {"texts_per_second": 10.0, "tokens_per_second": 200.0}
    rates = {"fast": rate, "slow": {"texts_per_second": 50.0, "tokens_per_second": 100.0}}
    found = {"token_weights": 3_000_000, "text_weights": 1_000_000}
    assert bench._share(rates, found, 10.0) == pytest.approx(2 * (3e6 * 200 + 1e6 * 10) / 1e9 / 10)
    assert bench._share({"a": {**rate, "tokens_per_second": None}}, found, 10.0) is None
    assert bench._share(rates, {"token_weights": 0, "text_weights": 0}, 10.0) is None


def test_peaks_are_measured():
    assert set(matmul_peaks(1, repeats=1)) == {"fp32", "int8"}


def test_a_bundle_is_opened_as_users_open_it(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", make_model_folder(tmp_path / "model"), sample_manifest(kept=0.5))
    entrant = asdict(Entrant("student", "student", "bundle", str(bundle)))
    assert open_entrant(entrant, 1).manifest["name"] == "leaf-small"  # refused by the gate, and measured all the same
    (bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="was altered"):
        open_entrant(entrant, 1)
