from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import HashEncoder
from families import bert, qwen
from model2vec import StaticModel
from stub_server import serve
from test_onnx_folder import MODULES, put, write_graph, write_modules
from tiny import WORDS, make_model_folder, sample_manifest, save_tokenizer, token_table
from tokenizers import Tokenizer

from leafembed import opening
from leafembed.errors import GateFailedError, ModelError, RecipeError
from leafembed.judge.floors import BagOfWords, RandomEncoder
from leafembed.opening import FLOOR_SPECS, locate, open_model
from leafembed.ship.bundle import write_bundle
from leafembed.types import check_vectors

TEXTS = ["red blue", "one two three"]


def make_onnx(root):
    write_graph(root / "model.onnx")
    save_tokenizer(root / "tokenizer.json", WORDS)
    write_modules(root, MODULES, pooling_mode_mean_tokens=True)
    return root


def make_static(root):
    root.mkdir()
    save_tokenizer(root / "tokenizer.json", WORDS)
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    StaticModel(token_table(len(WORDS), 16), tokenizer, {"model_type": "model2vec"}).save_pretrained(root)
    return root


def make_bundle(root, **changes):
    model = make_model_folder(root.with_name(f"{root.name}-model"))
    return write_bundle(root, model, sample_manifest(**changes))


MAKERS = {
    "bundle": make_bundle,
    "model folder": make_model_folder,
    "model2vec": make_static,
    "onnx": make_onnx,
    "sentence-transformers": bert,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture
def opened(tmp_path):
    def open_named(spec, **options):
        return open_model(locate(str(spec), **options), cache_dir=tmp_path / "cache", **options)

    return open_named


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_folder_opens_as_an_encoder_that_is_known_again(folders, opened, kind):
    one = opened(folders[kind])
    vectors = check_vectors(one.encoder.encode(TEXTS), n=2, what=kind)
    assert vectors.shape[1] == one.encoder.ref.dim
    again = opened(folders[kind])
    assert again.key == one.key
    assert (again.encoder.encode(TEXTS) == vectors).all()
    assert again.encoder.computed == 0


def test_judging_what_ships_needs_no_torch(folders, tmp_path):
    code = (
        "import sys; from pathlib import Path; from leafembed.comparing import judge_all, read_tasks; "
        "from leafembed.opening import locate, open_model; "
        f"open_model(locate({str(folders['bundle'])!r}), cache_dir=Path({str(tmp_path)!r})).encoder.encode(['red']); "
        "print(*{'torch', 'transformers', 'sentence_transformers', 'model2vec', 'onnxruntime'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_models_and_files_that_differ_have_other_keys(folders, opened, tmp_path):
    keys = {kind: opened(folder).key for kind, folder in folders.items()}
    assert len(set(keys.values())) == len(keys)
    # A bundle is the model folder that it was made of, with a card.
    bundled = write_bundle(tmp_path / "bundled", folders["model folder"], sample_manifest())
    assert opened(bundled).key == keys["model folder"]
    assert opened(make_model_folder(tmp_path / "other", max_seq_length=5)).key != keys["model folder"]


def test_a_graph_is_named_by_its_file_and_torch_wins_a_folder_of_both(folders, opened, tmp_path):
    graph = folders["onnx"] / "model.onnx"
    assert opened(graph).encoder.ref.name == "model.onnx"
    both = shutil.copytree(folders["sentence-transformers"], tmp_path / "both")
    shutil.copy(graph, both)
    assert opened(both).key == opened(folders["sentence-transformers"]).key


def test_a_model_inside_a_package(folders, opened, tmp_path, monkeypatch):
    (tmp_path / "site" / "tiny_static").mkdir(parents=True)
    (tmp_path / "site" / "tiny_static" / "__init__.py").touch()
    shutil.copytree(folders["model2vec"], tmp_path / "site" / "tiny_static" / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    importlib.invalidate_caches()
    one = opened("package:tiny_static")
    assert one.encoder.ref.name == "package:tiny_static"
    assert one.key == opened(folders["model2vec"]).key


def test_floors_are_models_without_files(opened):
    random, words = (opened(name).encoder for name in FLOOR_SPECS)
    assert isinstance(random, RandomEncoder)
    assert isinstance(words, BagOfWords)
    assert len({opened(name).key for name in FLOOR_SPECS}) == 2


def test_servers_of_both_kinds_are_named_by_model_and_place(opened):
    with serve(HashEncoder(16)) as stub:
        openai, ollama = opened(f"tiny:latest@{stub.url}"), opened(f"tiny:latest@{stub.ollama}")
        expected = HashEncoder(16).encode(TEXTS)
        for one in (openai, ollama):
            assert np.allclose(one.encoder.encode(TEXTS), expected, atol=1e-6)
            assert one.encoder.ref.name == "tiny:latest"
        assert openai.key != ollama.key
        assert {request["model"] for request in stub.asked} == {"tiny:latest"}


def test_a_file_gives_prompts_and_a_key(folders, opened, tmp_path):
    (tmp_path / "key.txt").write_text("secret\n", encoding="utf-8")
    with serve(HashEncoder(16)) as stub:
        lines = [f'model = "{stub.url}"', 'served_model = "tiny"', 'api_key_file = "key.txt"',
                 'prompts = { query = "find: " }']  # fmt: skip
        (tmp_path / "served.toml").write_text("\n".join(lines), encoding="utf-8")
        served = opened(tmp_path / "served.toml").encoder
        served.encode(["red"], prompt_name="query")
        assert stub.texts[-1] == "find: red"
        assert stub.headers[-1]["authorization"] == "Bearer secret"
    for kind in ("model2vec", "onnx", "model folder", "sentence-transformers"):
        text = f'model = "{folders[kind]}"\nprompts = {{ query = "one two " }}'
        (tmp_path / "prompted.toml").write_text(text, encoding="utf-8")
        prompted, bare = opened(tmp_path / "prompted.toml"), opened(folders[kind])
        assert prompted.key != bare.key
        vectors = prompted.encoder.encode(["red"], prompt_name="query")
        assert np.allclose(vectors, bare.encoder.encode(["one two red"]), atol=2e-2), kind
        assert not np.allclose(vectors, bare.encoder.encode(["red"]), atol=2e-2), kind


def test_a_key_that_cannot_be_read_is_named_as_its_file_names_it(tmp_path, opened):
    text = 'model = "https://127.0.0.1/v1"\nserved_model = "tiny"\napi_key_file = "none.txt"'
    (tmp_path / "served.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^api_key_file: got .*none\.txt, which cannot be read"):
        opened(tmp_path / "served.toml")


class Exiting(HashEncoder):
    """Names an early exit, which gives other vectors."""

    exits = (2,)

    def encode(self, texts, *, prompt_name=None, exit=None):
        return super().encode([f"{text} exit{exit}" for text in texts], prompt_name=prompt_name)


def test_a_part_has_a_key_of_its_own_and_the_vectors_of_the_whole(folders, opened):
    folder = folders["bundle"]
    whole = opened(folder)
    vectors = whole.encoder.encode(TEXTS)[:, :3]
    part = opened(f"{folder}@dim=3")
    assert (part.encoder.ref.name, part.encoder.ref.dim, part.spec) == ("tiny (dim 3)", 3, f"{folder}@dim=3")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(part.encoder.encode(TEXTS), unit, atol=1e-6)
    assert part.encoder.encoder.computed == 0
    assert part.key != whole.key
    assert opened(f"{folder}@dim=4").key != part.key
    assert opened(f"{folder}@dim={whole.encoder.ref.dim}").key == whole.key
    with pytest.raises(ModelError, match="dim of tiny: got 99, expected 1 to 8"):
        locate(f"{folder}@dim=99")
    with pytest.raises(ModelError, match="exit of tiny: got 1, expected none: it has no early exits"):
        locate(f"{folder}@exit=1")


@pytest.mark.parametrize("part", ["dim=", "dim=0", "exit=-1", "exit=x"])
def test_a_part_that_is_no_number_is_refused_before_anything_is_opened(part):
    what, number = part.split("@")[0].split("=")
    with pytest.raises(
        ModelError, match=f"nowhere@{part}: got @{what}={number}, expected a whole number of at least 1"
    ):
        locate(f"nowhere@{part}")


def test_a_part_is_named_once():
    with pytest.raises(ModelError, match="got @dim=3 and @dim=4, expected one of them"):
        locate("nowhere@dim=3@exit=2@dim=4")


def test_a_file_may_name_its_model(folders, opened, tmp_path):
    (tmp_path / "model.toml").write_text(f'model = "{folders["bundle"]}"\nname = "org/leaf"', encoding="utf-8")
    assert opened(tmp_path / "model.toml").encoder.ref.name == "org/leaf"


def test_an_exit_does_not_take_the_vectors_of_the_whole(folders, opened, monkeypatch):
    folder = folders["bundle"]
    monkeypatch.setattr(opening, "open_bundle", lambda path, **_: Exiting(8, name="tiny"))
    monkeypatch.setattr(opening, "require_view", lambda *_, **__: None)  # its folder has no such exit
    whole = opened(folder)
    whole.encoder.encode(TEXTS)
    part = opened(f"{folder}@exit=2")
    np.testing.assert_allclose(part.encoder.encode(TEXTS), Exiting(8).encode(TEXTS, exit=2), atol=1e-6)
    keys = {opened(f"{folder}{part}").key for part in ("", "@exit=2", "@dim=3", "@exit=2@dim=3")}
    assert len(keys) == 4
    assert part.key == opened(f"{folder}@exit=2").key
    assert opened(f"{folder}@exit=2@dim=3").key == opened(f"{folder}@dim=3@exit=2").key


def test_a_floor_may_be_cut_unless_it_is_a_bag_of_words(opened):
    random, words = FLOOR_SPECS
    assert opened(f"{random}@dim=8").encoder.encode(TEXTS).shape == (2, 8)
    with pytest.raises(ModelError, match="floor:bag-of-words@dim=8: got a part to score, expected the whole"):
        locate(f"{words}@dim=8")


def test_prompts_of_the_files_are_used_unless_others_are_given(opened, tmp_path):
    folder = qwen(tmp_path / "qwen")
    assert opened(folder).encoder.ref.prompts["query"].startswith("Instruct")
    (tmp_path / "model.toml").write_text('model = "./qwen"\nprompts = { query = "q: " }', encoding="utf-8")
    assert dict(opened(tmp_path / "model.toml").encoder.ref.prompts) == {"query": "q: "}


def test_a_refused_bundle_is_found_before_anything_is_opened(tmp_path, opened):
    refused = make_bundle(tmp_path / "refused", kept=0.5)
    with pytest.raises(GateFailedError):
        locate(str(refused))
    assert opened(refused, allow_failed=True).encoder.ref.name == "tiny"


def test_what_is_no_model_is_said_at_once(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "half" / "modules.json", [])
    for folder in ("empty", "half"):
        with pytest.raises(ModelError, match="got no model that is known, expected one of: bundle, INT8 model folder"):
            locate(str(tmp_path / folder))
    with pytest.raises(ModelError, match="no such folder"):
        locate("./nowhere")
    with pytest.raises(ModelError, match=r"got revision None, expected .* in a command, write org/name@COMMIT"):
        locate("org/name")
    with pytest.raises(ModelError, match=r"expected NAME@URL") as caught:
        locate("https://user:secret@host/v1")
    assert "secret" not in str(caught.value)
    with pytest.raises(RecipeError, match="a URL that is not shown"):
        locate("name@https://host/v1?key=secret")
    (tmp_path / "a.toml").write_text('modle = "x"', encoding="utf-8")
    with pytest.raises(RecipeError, match="unknown key modle"):
        locate(str(tmp_path / "a.toml"))
    (tmp_path / "b.toml").write_text('model = "https://host/v1"', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"b\.toml: served_model: got ''"):
        locate(str(tmp_path / "b.toml"))
    (tmp_path / "c.toml").write_text(f'model = "{folders["onnx"]}"\nmax_seq_length = 64', encoding="utf-8")
    with pytest.raises(ModelError, match="got max_seq_length = 64, expected none: an ONNX folder or file has"):
        locate(str(tmp_path / "c.toml"))
