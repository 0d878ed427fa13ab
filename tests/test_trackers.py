from __future__ import annotations

import importlib.util

import pytest

from leafembed.errors import MissingExtraError
from leafembed.learn.trackers import require_trackers


def test_no_tracker_needs_nothing():
    assert require_trackers(()) == []


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_tracker_is_named_with_its_install_line(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"this needs {name}, .*pip install 'leafembed\[track\]'$"):
        require_trackers((name,))


def test_an_installed_one_goes_to_the_trainer(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert require_trackers(("wandb", "tensorboard")) == ["wandb", "tensorboard"]
