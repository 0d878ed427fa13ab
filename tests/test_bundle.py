from __future__ import annotations

import json
import shutil

import pytest
from tiny import WORDS, make_model_folder, refused_before_int8, reseal, sample_manifest

from leafembed.errors import BundleError, GateFailedError
from leafembed.ship.bundle import open_bundle, read_manifest, refresh_card, verify, write_bundle, write_refusal
from leafembed.ship.card import render_card
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.plots import CURVES, PLOTS, SCORES

MODEL = {
    *("model.xml", "model.bin", "tokenizer.json", "encoder.json"),
    *("tokenizer_config.json", "config.json", "config_sentence_transformers.json"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundle") / "new" / "bundle", model, sample_manifest())


@pytest.fixture
def bundle(written, tmp_path):
    return shutil.copytree(written, tmp_path / "bundle")


def _edit(bundle, change, *, sealed=True):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    if sealed:
        reseal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_bundle_holds_exactly_these_files(written, model):
    assert set(_contents(written)) == MODEL | {"README.md", *PLOTS, "NOTICE", "manifest.json"}
    assert [path.name for path in written.parent.iterdir()] == ["bundle"]
    assert all((written / name).read_bytes() == (model / name).read_bytes() for name in MODEL)


def test_the_manifest_lists_every_other_file_and_the_size_of_all(written):
    manifest = verify(written)
    assert set(manifest["files"]) == set(_contents(written)) - {"manifest.json"}
    assert manifest["sizes"]["total_bytes"] == sum(map(len, _contents(written).values()))
    assert manifest["files"]["model.bin"]["bytes"] == (written / "model.bin").stat().st_size


def test_the_card_in_the_bundle_is_the_manifest_rendered(written):
    assert (written / "README.md").read_text(encoding="utf-8") == render_card(read_manifest(written))


def test_without_gemma_in_the_lineage_there_is_no_notice(model, tmp_path):
    manifest = sample_manifest()
    manifest["teacher"]["licence"] = manifest["student"]["licence"] = "Apache-2.0"
    assert not (write_bundle(tmp_path / "b", model, manifest) / "NOTICE").exists()


def test_an_opened_bundle_encodes_as_its_model_folder_does(written, model):
    encoder = open_bundle(written, threads=1)
    assert encoder.manifest["name"] == "leaf-small"
    assert (encoder.encode(["red", "blue"]) == BundleEncoder(model, threads=1).encode(["red", "blue"])).all()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("model.bin", "again or download"), ("README.md", "leaf card"), ("NOTICE", "again or download")],
)
def test_one_flipped_bit_is_refused(bundle, name, remedy):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(
        BundleError, match=f"{name} was altered: got sha256 .{{12}}, the manifest says .*{remedy}"
    ) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "curves.png"])
def test_a_missing_file_is_refused(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        verify(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=1), "got format 1, expected 2"),
        (lambda m: m.pop("format"), "got format None"),
        (lambda m: m.pop("teacher"), "lacks teacher"),
        (lambda m: m.update(files=[]), "not a table of hashes"),
        (lambda m: m["files"]["model.bin"].pop("sha256"), "not a table of hashes"),
        (lambda m: m["files"].pop("model.xml"), "lists no hash of model.xml"),
        (lambda m: m["files"].pop("config_sentence_transformers.json"), "lists no hash of config_sentence"),
        (lambda m: m["files"].update({"../x": {"sha256": "0"}}), "lists '../x'"),
        (lambda m: m["verdict"].pop("checks"), "verdict is not readable"),
        (lambda m: m["verdict"].update(checks=[]), "verdict is not readable"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(bundle, change, message):
    _edit(bundle, change)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_no_manifest_or_a_damaged_one_is_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        open_bundle(tmp_path / "nowhere")
    (bundle / "manifest.json").write_text('{"format": 1,', encoding="utf-8")
    with pytest.raises(BundleError, match="not readable as JSON"):
        open_bundle(bundle)


def test_a_refused_bundle_opens_only_when_asked_to(model, tmp_path):
    refused = write_bundle(tmp_path / "b", model, sample_manifest(kept=0.7))
    with pytest.raises(GateFailedError, match=r"refused the INT8 model: mean retention is 0\.7000") as caught:
        open_bundle(refused)
    assert not caught.value.result.passed
    assert open_bundle(refused, allow_failed=True, threads=1).encode(["red"]).shape == (1, 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["speed"][0].update(texts_per_second=1e6),
        lambda m: m["teacher"].update(licence="MIT"),
        lambda m: m["recipe"]["gate"].update(max_int8_drop=1.0),
        lambda m: m["reports"]["floor: random"]["results"][0].update(n=5),
        lambda m: m.update(seal="0" * 64),
        lambda m: m.pop("seal"),
    ],
)
def test_any_edit_breaks_the_seal(bundle, change):
    _edit(bundle, change, sealed=False)
    for use in (open_bundle, verify, refresh_card):
        with pytest.raises(BundleError, match="edited after it was written, its seal does not fit"):
            use(bundle)


def test_the_tokenizer_of_another_bundle_is_refused(bundle, tmp_path):
    other = make_model_folder(tmp_path / "other", vocab=[*WORDS[:3], *reversed(WORDS[3:])])
    shutil.copyfile(other / "tokenizer.json", bundle / "tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json was altered"):
        open_bundle(bundle)


def test_the_weights_of_another_bundle_are_refused(bundle, tmp_path):
    other = make_model_folder(tmp_path / "other", vocab=[*WORDS, "more"])
    shutil.copyfile(other / "model.bin", bundle / "model.bin")
    with pytest.raises(BundleError, match=r"model\.bin was altered"):
        open_bundle(bundle)


def test_a_failed_write_leaves_the_old_bundle_and_the_next_one_replaces_it(model, bundle):
    before = _contents(bundle)
    with pytest.raises(KeyError):
        write_bundle(bundle, model, sample_manifest(drop=("training",)))
    assert _contents(bundle) == before
    verify(bundle)
    write_bundle(bundle, model, sample_manifest(name="second"))
    assert verify(bundle)["name"] == "second"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_old_bundle_moved_aside_by_an_interrupted_write_comes_back(model, bundle):
    before = _contents(bundle)
    bundle.rename(bundle.with_name(".bundle.replaced"))
    with pytest.raises(KeyError):
        write_bundle(bundle, model, sample_manifest(drop=("training",)))
    assert _contents(bundle) == before


def test_what_is_not_a_bundle_is_not_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(tmp_path / "thesis", model, sample_manifest())
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_an_incomplete_model_folder_is_refused(tmp_path):
    folder = make_model_folder(tmp_path / "m")
    (folder / "model.bin").unlink()
    with pytest.raises(BundleError, match=r"lacks model\.bin"):
        write_bundle(tmp_path / "b", folder, sample_manifest())
    assert not (tmp_path / "b").exists()


def test_refresh_restores_card_and_plot_to_the_byte(bundle):
    before = _contents(bundle)
    (bundle / "README.md").write_text("better than it is", encoding="utf-8")
    (bundle / "curves.png").unlink()
    assert refresh_card(bundle) == bundle / "README.md"
    assert _contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_refresh_follows_the_manifest(bundle):
    _edit(bundle, lambda manifest: manifest["training"].update(history=[]))
    refresh_card(bundle)
    manifest = verify(bundle)
    assert not (bundle / "curves.png").exists()
    assert "curves.png" not in manifest["files"]
    assert "curves.png" not in (bundle / "README.md").read_text(encoding="utf-8")


def test_refresh_does_not_bless_an_altered_model(bundle):
    (bundle / "model.bin").write_bytes(b"other weights")
    before = _contents(bundle)
    with pytest.raises(BundleError, match=r"model\.bin was altered"):
        refresh_card(bundle)
    assert _contents(bundle) == before


def test_a_refusal_is_a_card_and_its_manifest_but_no_bundle(tmp_path):
    for _ in range(2):  # a second refusal replaces the first
        folder = write_refusal(tmp_path / "run" / "refused", refused_before_int8())
    assert set(_contents(folder)) == {"README.md", CURVES, SCORES, "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(manifest)
    with pytest.raises(BundleError, match="got the card of a run without a bundle"):
        open_bundle(folder, allow_failed=True)


def test_what_is_no_number_is_not_written(model, tmp_path):
    manifest = sample_manifest()
    manifest["sizes"]["parts"][0]["int8_mb"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(tmp_path / "b", model, manifest)
    refused = refused_before_int8()
    refused["training"]["seconds"] = float("inf")
    with pytest.raises(ValueError, match="JSON"):
        write_refusal(tmp_path / "r", refused)
