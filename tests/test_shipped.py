"""Without a bundle's name, commands take the model that comes with the project."""

from __future__ import annotations

import json

import pytest
from served import make_bundle

import leafembed
from leafembed.cli import main
from leafembed.errors import BundleError
from leafembed.options import build_parser
from leafembed.serve.command import _service
from leafembed.ship import shipped


@pytest.fixture
def here(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path)
    monkeypatch.setattr(shipped, "SHIPPED", bundle)
    return bundle


def encoded(capsys, *words):
    assert main(["encode", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_load_and_serve_take_it(here):
    assert leafembed.load().ref == leafembed.load(here).ref
    service = _service(build_parser().parse_args(["serve"]), "")
    assert service.models.default.model.spec.path == here


def test_info_takes_it(here, capsys):
    assert main(["info", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main(["info", str(here), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_encode_takes_a_folder_for_the_bundle_and_a_file_for_the_text(here, tmp_path, capsys, monkeypatch):
    other = make_bundle(tmp_path / "other")
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n", encoding="utf-8")
    expected = encoded(capsys, here, texts)
    assert encoded(capsys, texts) == expected
    with texts.open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert encoded(capsys) == expected
    with texts.open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert encoded(capsys, other) == expected  # the same table of words


def test_where_it_is_not_the_error_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "models" / "nothing")
    with pytest.raises(BundleError, match=r"got no bundle, and .*nothing is not there: a clone .* holds the model"):
        leafembed.load()
    (tmp_path / "texts.txt").write_text("one\n", encoding="utf-8")
    assert main(["encode", str(tmp_path / "texts.txt")]) == 1
    assert main(["info"]) == 1
    assert main(["serve"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("name a bundle (leaf run makes one, leaf pull fetches one)" in line for line in lines)
    assert main(["encode", str(tmp_path / "typo")]) == 1
    assert "typo: is not there; expected a bundle folder or a file of texts" in capsys.readouterr().err


def test_three_paths_are_one_too_many(here, capsys):
    assert main(["encode", str(here), "a.txt", "b.txt"]) == 2
    assert "got 3 paths" in capsys.readouterr().err


def test_the_model_of_this_repository_passed_its_gate_fits_its_size_and_knows_a_translation():
    folder = shipped.shipped()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 60e6
    encoder = leafembed.load()  # verifies every hash and judges again
    vectors = encoder.encode(["Where is the bank?", "Wo ist die Bank?", "银行在哪里?", "A cat sleeps on the sofa."])
    cosines = vectors @ vectors.T
    assert min(cosines[0, 1], cosines[0, 2], cosines[1, 2]) > max(cosines[:3, 3])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'license: "gemma"' in card
    assert "ai.google.dev/gemma/terms" in (folder / "NOTICE").read_text(encoding="utf-8")
