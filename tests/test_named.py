from __future__ import annotations

import re
import typing

import pyarrow
import pyarrow.parquet
import pytest

from leafembed.errors import RecipeError
from leafembed.learn.data import prepare_corpus
from leafembed.learn.named import NAMED, expand
from leafembed.recipe_text import DataConfig, Source

COLUMNS = {"all-nli": ("anchor", "positive", "negative"), "stsb": ("sentence1", "sentence2", "score"),
           "ms_marco": ("query", "positive", "negative")}  # fmt: skip


def test_every_name_of_the_recipe_is_known_with_commit_licence_and_origin():
    hints = typing.get_type_hints(Source)
    assert set(NAMED) == set(typing.get_args(hints["named"])) - {""} == set(COLUMNS)
    for known in NAMED.values():
        assert re.fullmatch("[0-9a-f]{40}", known.revision)
        assert known.licence
        assert known.origin


def test_a_plain_source_is_itself():
    assert expand(Source(path="a.txt")) == (Source(path="a.txt"),)


def test_what_a_source_sets_itself_wins():
    (found,) = expand(Source(named="ms_marco", revision="a" * 40, prompt_name="query", weight=2.0, negative="worst"))
    assert (found.revision, found.prompt_name, found.weight, found.negative) == ("a" * 40, "query", 2.0, "worst")
    assert (found.text, found.positive, found.lang) == ("query", "positive", "en")


def test_a_name_and_a_place_are_an_error():
    with pytest.raises(RecipeError, match=r"data\.sources: .*expected either named, or a path or hub"):
        expand(Source(named="stsb", path="a.txt"))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_dataset_is_read_as_its_hub_lays_it_out(name, tmp_path, monkeypatch):
    """From a local folder in the place of the hub's: the network is not there in tests."""
    import huggingface_hub

    known, asked = NAMED[name], []
    file = tmp_path / "snapshot" / known.files.replace("*", "00000-of-00001")
    file.parent.mkdir(parents=True)
    rows = [{column: f"{column} {i}" if column != "score" else 0.0 for column in COLUMNS[name]} for i in range(60)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"other": 1}]), file.with_name("test-0.parquet"))

    def fetch(hub, **how):
        asked.append((hub, how["revision"], tuple(how["allow_patterns"])))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    config = DataConfig(sources=(Source(named=name, prompt_name="query"),), validation_rows=16)
    found = prepare_corpus(config, tmp_path / "kept", seed=0, prompt_name=None)
    assert set(asked) == {(known.hub, known.revision, (known.files,))}
    texts = {row.text for row in (*found.train, *found.validation)}
    assert texts == {f"{column} {i}" for column in COLUMNS[name] if column != "score" for i in range(60)}
    assert found.languages.keys() == {"en"}
    assert found.sources[0].items() >= {"path": f"{known.hub}@{known.revision}", "licence": known.licence,
                                        "origin": known.origin}.items()  # fmt: skip
    paired = name != "stsb"
    assert any(row.pair is not None for row in found.train) is paired
    assert any(row.negative is not None for row in found.train) is paired
