"""What leaf export writes gives the student's own vectors, and what must not be exported is not."""

from __future__ import annotations

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from families import bert, gemma_headless, qwen, toy_recipe, toy_texts, xlm_roberta
from tiny import as_if_of, sample_manifest, write_sealed

from leafembed import exporting
from leafembed.cli import main
from leafembed.errors import BundleError, DataError, GateFailedError, MissingExtraError, ModelError
from leafembed.exporting import export, find_source
from leafembed.learn.factors import factorise_table, write_factors
from leafembed.learn.models import describe, fingerprint_folder, load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.learn.teacher import TorchEncoder
from leafembed.opening import locate, open_model
from leafembed.pipeline import run
from leafembed.recipe_io import recipe_from_dict
from leafembed.recipe_learn import StudentConfig
from leafembed.reports import Check, GateResult
from leafembed.ship import onnx_format
from leafembed.ship.export_page import Exported, render_page
from leafembed.ship.folder import PROMPTS
from leafembed.ship.onnx_format import FP32, INT8, encode_onnx
from leafembed.ship.plots import PLOTS
from leafembed.steps import RESOLVED
from leafembed.types import ModelRef

ONNX = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", FP32, INT8}
PT = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "model_fp32.pt", "model_quantized.pt"}
TEXTS = toy_texts(20, words=(1, 30))
# Two texts of which one is far longer than a sliding window of 8; one longer than any tiny model reads; none; odd.
HARD = [["en1 en2", " ".join(f"en{i}" for i in range(60))], [" ".join(["en1 de7"] * 190), "de3"], ["", "x \u4f60 7"]]


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def torch_vectors(student, texts):
    model = load_sentence_transformer(student)
    return TorchEncoder(model, describe(model, student, name="s"), precision="fp32").encode(texts)


def static(folder):
    teacher = load_sentence_transformer(gemma_headless(folder.with_name("teacher")))
    sample = Sample(TEXTS, teacher.encode(TEXTS))
    return init_student(StudentConfig(init="static", prompts="teacher"), teacher, sample, folder)


@pytest.fixture(scope="module", params=[gemma_headless, bert, qwen], ids=lambda build: build.__name__)
def exported(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    student = request.param(root / "student")
    return student, root / "onnx", export(student, root / "onnx", format="onnx", texts=TEXTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A student that nothing else is known of."""
    return bert(tmp_path_factory.mktemp("plain") / "student", num_hidden_layers=1)


@pytest.fixture
def wrong_vectors(monkeypatch):
    """A writer whose INT8 file gives the vectors of other texts."""

    def write(model, folder, reading, factors, batches):
        vectors = model.encode([text for texts in batches for text in texts], normalize_embeddings=True)
        (folder / "good").write_bytes(b"1")
        yield exporting._File("good", False, vectors)
        (folder / "bad").write_bytes(b"1")
        yield exporting._File("bad", True, vectors[::-1])

    monkeypatch.setattr(exporting, "FORMATS", {"onnx": write})


def test_an_onnx_folder_holds_what_transformers_js_looks_for(exported):
    student, folder, result = exported
    prompts = load_sentence_transformer(student).prompts
    assert files_of(folder) == ONNX | ({PROMPTS} if any(prompts.values()) else set())
    assert result["passed"] is None
    assert [file["file"] for file in result["files"]] == [FP32, INT8]
    assert result["texts"] == len(TEXTS) + 1
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == load_sentence_transformer(student).max_seq_length
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] in {"gemma3_text", "bert", "qwen3"}


@pytest.mark.parametrize("batch", HARD, ids=["beyond the window", "longer than it reads", "hardly a text"])
def test_onnx_gives_the_vectors_of_the_student(exported, batch):
    student, folder, _ = exported
    own = torch_vectors(student, batch)
    assert np.allclose(encode_onnx(folder, FP32, [batch]), own, atol=1e-5)
    assert np.sum(encode_onnx(folder, INT8, [batch]) * own, axis=1).min() > 0.998


def test_what_is_exported_is_judged_as_the_student_is(exported, tmp_path):
    student, folder, _ = exported
    own, encoder = (open_model(locate(str(path)), cache_dir=tmp_path).encoder for path in (student, folder))
    assert {name: text for name, text in encoder.ref.prompts.items() if text} == {
        name: text for name, text in own.ref.prompts.items() if text
    }
    assert encoder.ref.max_seq_length == own.ref.max_seq_length
    for name in (None, *encoder.ref.prompts):
        vectors = [each.encode(HARD[0], prompt_name=name) for each in (own, encoder)]
        assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.999  # the student runs in bf16 where torch has it


def test_int8_is_int8(exported):
    import onnx

    _, folder, result = exported
    exact, rounded = (onnx.load(folder / name).graph for name in (FP32, INT8))
    kinds = [[node.op_type for node in graph.node] for graph in (exact, rounded)]
    assert "MatMulNBits" in kinds[1]
    assert "MatMulNBits" not in kinds[0]
    rows = max(tensor.dims[0] for tensor in exact.initializer if len(tensor.dims) == 2)
    types = {tensor.data_type for tensor in rounded.initializer if list(tensor.dims) == [rows, 32]}
    assert types == {onnx.TensorProto.INT8}  # the token table
    assert result["files"][1]["cosine_mean"] < 1 - 1e-7


def test_a_text_that_was_cut_without_its_last_token_gets_it_back(exported):
    """transformers.js keeps the first tokens of a text that is too long, and so loses the token it must end with."""
    import onnxruntime
    from tokenizers import Tokenizer

    student, folder, _ = exported
    tokenizer, long = Tokenizer.from_file(str(folder / "tokenizer.json")), HARD[1][0]
    limit = tokenizer.truncation["max_length"]
    right = tokenizer.encode(long).ids
    tokenizer.no_truncation()
    cut = tokenizer.encode(long).ids[:limit]
    assert cut[:-1] == right[:-1]
    assert cut[-1] != right[-1]
    session = onnxruntime.InferenceSession(str(folder / FP32))
    for ids in (cut, right):
        (vector,) = session.run(None, {"input_ids": [ids], "attention_mask": [[1] * limit]})[0]
        assert np.allclose(vector, torch_vectors(student, [long])[0], atol=1e-5)


def test_a_text_of_one_token_has_a_vector(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported[1] / FP32))
    (vector,) = session.run(None, {"input_ids": [[3]], "attention_mask": [[1]]})[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_python_of_its_page_runs(exported, monkeypatch):
    page = (exported[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(exported[1])
    names = {}
    exec(code, names)
    own = torch_vectors(exported[0], ["Hello world", "Machine learning"])
    assert np.sum(names["embeddings"] * own, axis=1).min() > 0.998


@pytest.mark.parametrize(("format", "expected"), [("onnx", ONNX), ("pt", PT)])
def test_a_static_table_can_be_exported(tmp_path, format, expected):
    student = static(tmp_path / "student")
    result = export(student, tmp_path / "out", format=format, texts=TEXTS)
    assert files_of(tmp_path / "out") == expected | {PROMPTS}
    assert [file["cosine_min"] > 0.999 for file in result["files"]] == [True, True]
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "texts of any length" in page
    assert '"task: search \\| query: "' in page


def test_factors_are_stored_and_not_their_product(tmp_path):
    import onnx

    model = load_sentence_transformer(gemma_headless(tmp_path / "gemma"))
    factors = factorise_table(model, 8, TEXTS)
    model.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    write_factors(tmp_path / "student", factors)
    export(tmp_path / "student", tmp_path / "onnx", format="onnx", texts=TEXTS)
    shapes = [list(tensor.dims) for tensor in onnx.load(tmp_path / "onnx" / FP32).graph.initializer]
    assert [len(factors.rows), 8] in shapes
    assert [len(factors.rows), 32] not in shapes


def test_weights_that_a_protobuf_cannot_hold_lie_beside_the_model(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(onnx_format, "LARGEST", 100_000)
    export(plain, tmp_path / "out", format="onnx", texts=TEXTS)
    assert files_of(tmp_path / "out") == ONNX | {f"{FP32}_data"}
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": 1}}


def test_vectors_that_are_not_the_students_are_refused_and_nothing_is_left(tmp_path, plain, wrong_vectors):
    with pytest.raises(ModelError, match=r"bad: the mean cosine .* expected at least 0.999; nothing was exported"):
        export(plain, tmp_path / "out", format="onnx", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_text_is_enough_in_fp32(tmp_path):
    (tmp_path / "m").write_bytes(b"1")
    own = np.eye(500, dtype=np.float32)
    wrong = own.copy()
    wrong[7] = own[8]
    with pytest.raises(ModelError, match="the least cosine"):
        exporting._compared(tmp_path, exporting._File("m", False, wrong), own)
    assert exporting._compared(tmp_path, exporting._File("m", False, own), own)["cosine_min"] == 1


def test_without_the_extra_the_error_names_it(tmp_path, plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"leafembed\[onnx\]"):
        export(plain, tmp_path / "out", format="onnx", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_why(tmp_path, plain):
    with pytest.raises(DataError, match="--texts"):
        export(plain, tmp_path / "out", format="onnx", texts=["", " "])
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        export(plain, tmp_path / "there", format="onnx", texts=TEXTS)
    with pytest.raises(ModelError, match="expected a student or a run"):
        export(tmp_path / "there", tmp_path / "out", format="onnx", texts=TEXTS)
    (tmp_path / "there" / "model.xml").write_text("", encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"bundle holds OpenVINO INT8 and nothing else.* give the run's student folder"
    ):
        export(tmp_path / "there", tmp_path / "out", format="pt", texts=TEXTS)
    with pytest.raises(DataError, match="makes no token"):
        export(plain, tmp_path / "out", format="pt", texts=["\u200b", "\x07"])  # what BERT's normaliser drops


def test_the_long_text_is_cut_only_where_the_model_cuts_it(exported, monkeypatch):
    from tokenizers import Tokenizer

    folder = exported[1]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    limit = tokenizer.truncation["max_length"]
    long, cut = exporting._long_text(folder, TEXTS, limit=limit)
    assert cut
    assert tokenizer.encode(long).overflowing
    monkeypatch.setattr(exporting, "LONGEST", 40)
    long, cut = exporting._long_text(folder, TEXTS, limit=limit)
    assert not cut
    assert 40 <= len(tokenizer.encode(long).ids) <= 42
    assert len(tokenizer.encode(exporting._long_text(folder, ["en1"], limit=limit)[0]).ids) >= 40


def run_folder(root, *, judged="bundle", retention=0.953, fingerprint=None):
    """A run's folder: a student, and the card and manifest of its verdict."""
    student = bert(root / "student", num_hidden_layers=1)
    (root / RESOLVED).write_text("", encoding="utf-8")
    manifest = sample_manifest(kept=retention)
    manifest["student"] |= {"licence": "gemma"}
    as_if_of(manifest, fingerprint or fingerprint_folder(student))
    (root / judged).mkdir()
    write_sealed(root / judged, manifest)
    (root / judged / "README.md").write_text("the card", encoding="utf-8")
    (root / judged / "curves.png").write_bytes(b"the plot")
    return root


@pytest.mark.parametrize("which", [".", "student"])
@pytest.mark.parametrize("judged", ["bundle", "refused"])
def test_a_refused_student_is_not_exported_by_whatever_name(tmp_path, which, judged):
    folder = run_folder(tmp_path / "run", judged=judged, retention=0.5)
    with pytest.raises(GateFailedError, match="mean retention"):
        export(folder / which, tmp_path / "out", format="pt", texts=TEXTS)
    assert not (tmp_path / "out").exists()


def test_a_refused_student_can_be_exported_and_its_page_says_so_first(tmp_path):
    folder = run_folder(tmp_path / "run", retention=0.5)
    result = export(folder, tmp_path / "out", format="pt", texts=TEXTS, allow_failed=True)
    assert result["passed"] is False
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert page.index("Do not use it") < page.index("# leaf-small")
    assert "mean retention is 0.5000" in page


def test_card_and_licence_come_along(tmp_path):
    folder = run_folder(tmp_path / "run")
    assert export(folder, tmp_path / "out", format="pt", texts=TEXTS)["passed"] is True
    assert files_of(tmp_path / "out") == PT | {"CARD.md", "NOTICE", "curves.png"}
    assert (tmp_path / "out" / "CARD.md").read_text(encoding="utf-8") == "the card"
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Gemma Terms of Use" in page
    assert "The gate passed" in page
    assert 'license: "gemma"' in page
    assert page.index("Unsafe by design") < page.index("# leaf-small")


def test_a_run_is_known_by_the_manifest_that_it_wrote(tmp_path, eval_data):
    teacher = bert(tmp_path / "teacher", num_hidden_layers=2)
    recipe = toy_recipe(tmp_path, teacher, eval_data, teacher={"licence": "gemma"}, student={"layers": [0]})
    outcome = run(recipe_from_dict(recipe), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out", format="pt", texts=TEXTS)["passed"] is True
    assert files_of(tmp_path / "out") == PT | {"CARD.md", "NOTICE", *PLOTS}
    assert (tmp_path / "out" / "CARD.md").read_bytes() == (outcome.folder / "README.md").read_bytes()
    assert "# toy\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ModelError, match=r"give .*run/student"):
        export(outcome.folder, tmp_path / "other", format="onnx", texts=TEXTS)
    assert find_source(tmp_path / "run" / "untrained-student").manifest is None


def test_a_verdict_that_was_edited_is_not_taken(tmp_path):
    folder = run_folder(tmp_path / "run", retention=0.5)
    file = folder / "bundle" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    as_if_of(manifest, "f" * 16)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="was edited after it was written"):
        export(folder, tmp_path / "out", format="pt", texts=TEXTS)


def test_a_verdict_on_another_student_does_not_count(tmp_path):
    folder = run_folder(tmp_path / "run", retention=0.5, fingerprint="f" * 16)
    assert find_source(folder).manifest is None
    (folder / "bundle" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="not readable as JSON"):
        find_source(folder)


def test_a_bundle_of_a_run_names_its_student(tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / "bundle" / "model.xml").write_text("", encoding="utf-8")
    with pytest.raises(ModelError, match=f"give {folder.resolve() / 'student'}"):
        find_source(folder / "bundle")


def test_the_command_prints_what_it_measured(tmp_path, plain, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    assert main(["export", str(plain), str(tmp_path / "out"), "--format", "pt", "--texts", str(texts)]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if ".pt" in line]
    assert [row[0] for row in rows] == ["model_fp32.pt", "model_quantized.pt"]
    assert all(float(mean) >= float(least) > 0.99 for *_, mean, least in rows)
    assert f"over {len(TEXTS) + 1} texts" in out
    assert "pickles" in err
    assert "no gate has judged" in err
    assert main(["export", str(plain), str(tmp_path / "2"), "--format", "pt", "--texts", str(texts), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["cosine_min"] > 0.9999


def test_refusals_have_their_exit_status(tmp_path, wrong_vectors, plain, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    options = [str(tmp_path / "out"), "--format", "onnx", "--texts", str(texts)]
    assert main(["export", str(plain), *options]) == 1
    assert main(["export", str(run_folder(tmp_path / "run", retention=0.5)), *options]) == 3
    assert not (tmp_path / "out").exists()
    assert "nothing was exported" in capsys.readouterr().err


def test_the_page_shows_prompts_and_unstated_licences():
    ref = ModelRef("m", 8, prompts={"query": "query: | "})
    files = [{"file": "a", "mb": 1.5, "cosine_mean": 0.99991, "cosine_min": 0.9995}]
    page = Exported("onnx", ref, 128, files, 3, cut=True)
    text = render_page(page)
    assert "| a | 1.50 | 0.99991 | 0.99950 |" in text
    assert "The student's files state none" in text
    assert '"query: \\| "' in text
    bare = dataclasses.replace(page, ref=dataclasses.replace(ref, prompts={"query": "", "document": ""}))
    assert "Prompts" not in render_page(bare)
    assert "No gate has judged it" in text
    failed = GateResult((Check("x", 0.1, 0.9),))
    assert "x is 0.1000" in render_page(dataclasses.replace(page, verdict=failed, stage="student"))
    assert "license_name" in render_page(dataclasses.replace(page, ref=dataclasses.replace(ref, licence="A and B")))


def test_other_families_read_no_more_than_their_positions(tmp_path):
    student = xlm_roberta(tmp_path / "student")
    result = export(student, tmp_path / "out", format="pt", texts=TEXTS)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == 128  # 130 positions, which start after the padding id 1
    assert result["files"][0]["cosine_min"] > 0.9999
