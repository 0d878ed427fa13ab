"""Another bundle at the same path: what of the old one is forgotten, whether it was open or not."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from served import embed, make_bundle, serving
from tiny import make_model_folder, sample_manifest

from leafembed.serve.prompts import choose_prompt
from leafembed.serve.refusals import Refusal
from leafembed.serve.reloading import reload_all
from leafembed.serve.settings import Settings
from leafembed.ship.bundle import write_bundle


def replaced(bundle, new):
    shutil.rmtree(bundle)
    shutil.copytree(new, bundle)


def hup(served):
    asyncio.run(reload_all(served.service))


@pytest.fixture
def pair(tmp_path):
    """A server of two models, the second not open yet, and a bundle of fewer dimensions that may take its place."""
    first, lazy, new = (make_bundle(tmp_path / name, dim=dim) for name, dim in (("a", 8), ("b", 8), ("c", 4)))
    with serving({"leaf": first, "lazy": lazy}, Settings(watch_s=0)) as served:
        yield served, lazy, new


@pytest.mark.parametrize("told", [False, True])
def test_a_bundle_that_is_opened_late_is_described_as_it_then_is(pair, told):
    served, lazy, new = pair
    replaced(lazy, new)
    if told:
        hup(served)
        assert served.service.models.find("lazy").model.loaded is None
        assert served.service.models.find("lazy").dim == 4
    status, data, _ = served.ask("/api/embed", {"model": "lazy", "input": "red"})
    assert (status, len(data["embeddings"][0])) == (200, 4)
    assert served.service.models.find("lazy").dim == 4
    status, data, _ = served.ask("/v1/embeddings", {"model": "lazy", "input": "red", "dimensions": 8})
    assert (status, data["error"]["param"]) == (400, "dimensions")


def test_more_dimensions_of_a_bundle_that_is_opened_late_are_all_given(tmp_path):
    first, lazy, new = (make_bundle(tmp_path / name, dim=dim) for name, dim in (("a", 8), ("b", 4), ("c", 8)))
    with serving({"leaf": first, "lazy": lazy}, Settings(watch_s=0)) as served:
        replaced(lazy, new)
        assert len(served.ask("/api/embed", {"model": "lazy", "input": "red"})[1]["embeddings"][0]) == 8


def test_what_lies_there_and_is_no_bundle_is_not_described(pair):
    served, lazy, _ = pair
    (lazy / "manifest.json").write_text("{", encoding="utf-8")
    hup(served)
    assert served.service.models.find("lazy").dim == 8
    assert served.ask("/api/embed", {"model": "lazy", "input": "red"})[0] == 503
    assert embed(served)[0] == 200


def test_a_name_for_a_prompt_goes_when_the_prompt_goes(tmp_path):
    bundle = make_bundle(tmp_path / "old")
    model = make_model_folder(tmp_path / "new" / "model", prompts={"other": "one "})
    other = write_bundle(tmp_path / "new" / "bundle", model, sample_manifest())
    with serving({"leaf": bundle}, Settings(watch_s=0)) as served:
        assert served.ask("/api/embed", {"model": "leaf-query", "input": "red"})[0] == 200
        assert served.ask("/api/embed", {"model": "leaf-other", "input": "red"})[0] == 404
        replaced(bundle, other)
        hup(served)
        assert served.ask("/api/embed", {"model": "leaf-query", "input": "red"})[0] == 404
        assert served.ask("/api/embed", {"model": "leaf-other", "input": "red"})[0] == 200
        assert [one["id"] for one in served.ask("/v1/models")[1]["data"]] == ["leaf"]


def test_a_prompt_that_the_bundle_lost_is_never_left_out_silently():
    with pytest.raises(Refusal, match="no prompt 'query', its prompts are STS"):
        choose_prompt({"STS": "one "}, "query", None, None)
    assert choose_prompt({"STS": "one "}, None, None, None) is None
