from __future__ import annotations

import time

import pytest

from leafembed.recipe import BenchmarkConfig
from leafembed.ship.benchmark import Contender, benchmark
from leafembed.ship.machine import machine_facts, usable_cores, versions

TEXTS = [f"text {i}" for i in range(10)]


def test_rounds_are_interleaved_after_one_warm_up_of_each():
    calls = []
    contenders = [Contender(name, lambda texts, n=name: calls.append((n, len(texts))), 1.0, 3.0) for name in "ab"]
    benchmark(contenders, TEXTS, config=BenchmarkConfig(texts=4, repeats=2, threads=1))
    assert calls == [("a", 4), ("b", 4)] * 3


def test_speed_is_the_median_and_the_spread_its_extremes():
    pauses = iter([0.2, 0.04, 0.01, 0.02])  # warm-up, then three rounds

    (speed,) = benchmark(
        [Contender("tiny", lambda _: time.sleep(next(pauses)), 12.5, 7.5)],
        TEXTS,
        config=BenchmarkConfig(repeats=3, threads=2, batch_size=8),
    )
    slow, fast = speed.spread
    assert slow <= 10 / 0.04
    assert slow < speed.texts_per_second <= 10 / 0.02
    assert speed.texts_per_second < fast <= 10 / 0.01
    assert (speed.name, speed.size_mb, speed.tokens_per_text) == ("tiny", 12.5, 7.5)
    assert (speed.threads, speed.batch_size) == (2, 8)


def test_threads_default_to_the_usable_cores():
    (speed,) = benchmark([Contender("a", len, 0, 0)], TEXTS, config=BenchmarkConfig(repeats=1))
    assert speed.threads == usable_cores() >= 1


@pytest.mark.parametrize(("names", "texts", "repeats"), [([], TEXTS, 1), (["a"], [], 1), (["a", "a"], TEXTS, 1)])
def test_an_empty_or_ambiguous_race_is_refused(names, texts, repeats):
    contenders = [Contender(name, len, 0, 0) for name in names]
    with pytest.raises(ValueError, match="benchmark: got"):
        benchmark(contenders, texts, config=BenchmarkConfig(repeats=repeats))


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 1000),
        ({"cpu.max": "nonsense"}, 1000),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1000),
        ({}, 1000),
        ({"own": "0::/slice/own\n", "slice/own/cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/slice/own\n", "slice/cpu.max": "100000 100000\n", "slice/own/cpu.max": "max 100000\n"}, 1),
        ({"own": "0::/other\n", "slice/cpu.max": "100000 100000\n"}, 1000),
        (
            {
                "own": "3:cpu,cpuacct:/pod\n0::/\n",
                "cpu/pod/cpu.cfs_quota_us": "300000\n",
                "cpu/pod/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
)
def test_a_container_gets_no_more_threads_than_its_share_of_time(tmp_path, monkeypatch, files, most):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(1000)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert usable_cores(tmp_path, tmp_path / "own") == most


def test_machine_facts_and_versions():
    facts = machine_facts()
    assert set(facts) == {"cpu", "cores", "memory_gb", "os", "isa"}
    assert facts["cpu"]
    assert facts["cores"] == usable_cores()
    found = versions(["numpy", "no-such-distribution-anywhere"])
    assert list(found) == ["numpy"]
    assert found["numpy"][0].isdigit()
