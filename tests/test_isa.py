"""The same folder on lesser CPUs, in processes whose engine is capped, and a text among other neighbours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from families import bert, toy_texts

from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.teacher import TorchEncoder
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.engine import Arithmetic, arithmetic_here
from leafembed.ship.machine import cpu_flags
from leafembed.ship.quantize import quantize

TEXTS = toy_texts(24, words=(1, 30))
AVX2 = frozenset({"sse2", "avx2"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with groups of 32 activations, and the vectors of its student in torch."""
    root = tmp_path_factory.mktemp("isa")
    student = load_sentence_transformer(bert(root / "bert", hidden_size=256, intermediate_size=512))
    exact = TorchEncoder(student, describe(student, root / "bert", name="tiny"), precision="fp32")
    quantize(student, root / "int8", ref=exact.ref, group_size=32)
    return root / "int8", exact.encode(TEXTS)


@pytest.mark.parametrize(
    ("flags", "group", "lost"),
    [
        (AVX2 | {"avx512f", "avx512_vnni"}, 32, ""),
        (AVX2 | {"avx_vnni"}, 32, ""),
        (AVX2 | {"avx512f"}, 32, "no VNNI"),
        (AVX2, 0, "neither AVX-512 nor VNNI"),
        (frozenset(), 32, ""),  # no x86, or no word of it
    ],
)
def test_what_a_cpu_loses(flags, group, lost):
    found = arithmetic_here(32, flags)
    assert found.group_size == group
    assert lost in found.lost
    assert bool(lost) == bool(found.lost)
    assert arithmetic_here(0, flags) == Arithmetic(0)  # nothing to lose


def encode_capped(model, tmp_path, cap, flags):
    """Vectors of a process whose engine may use no more than ``cap`` and that reads ``flags`` of its CPU."""
    code = f"""
        import json, logging, sys
        import numpy as np
        from leafembed.ship import machine
        logging.basicConfig(format="%(message)s")
        machine._cpuinfo = lambda: {{"flags": {flags!r}}}
        from leafembed.ship.encoder import BundleEncoder
        np.save(sys.argv[2], BundleEncoder(sys.argv[1], threads=1).encode(json.loads(sys.argv[3])))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(model[0]), str(tmp_path / "v.npy"), json.dumps(TEXTS)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": cap},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not cpu_flags() >= AVX2, reason="caps are of x86 with AVX2")
@pytest.mark.parametrize(("cap", "flags"), [("AVX2", "sse2 avx2"), ("AVX512_CORE", "sse2 avx2 avx512f")])
def test_the_same_folder_runs_on_a_lesser_cpu_and_says_so(model, tmp_path, cap, flags):
    if not cpu_flags() >= set(flags.split()):
        pytest.skip(f"this CPU is less than {cap}")
    ended = encode_capped(model, tmp_path, cap, flags)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stderr.strip().startswith("tiny: this CPU has n")
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    cosines = np.sum(vectors * model[1], axis=1)
    assert cosines.mean() > 0.999
    assert cosines.min() > 0.99


@pytest.mark.skipif(not cpu_flags() >= AVX2 | {"avx512_vnni"}, reason="needs what it takes away")
def test_the_cap_is_one(model, tmp_path):
    """An engine that is capped where the CPU is not has no groups of INT8 activations: it goes without, and says so."""
    ended = encode_capped(model, tmp_path, "AVX2", " ".join(cpu_flags()))
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "the engine has no product of INT8 activations here" in ended.stderr
    vectors = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert np.sum(vectors * model[1], axis=1).mean() > 0.999


@pytest.mark.skipif(not cpu_flags() >= AVX2, reason="caps are of x86 with AVX2")
def test_an_engine_without_any_product_is_an_error_that_says_so(model, tmp_path):
    ended = encode_capped(model, tmp_path, "AVX", "sse2")
    assert ended.returncode == 1
    assert "OpenVINO cannot run it on this CPU, expected one with AVX2" in ended.stderr.splitlines()[-1]


def test_a_vector_does_not_depend_on_neighbours_or_padding(model):
    """At most 1e-3 in cosine, over random batches with texts up to ten times as long."""
    encoder, rng = BundleEncoder(model[0], threads=1), np.random.default_rng(0)
    ids, _ = encoder.tokenize(TEXTS)
    others, _ = encoder.tokenize(toy_texts(40, seed=1, words=(1, 100)))
    alone = np.vstack([encoder.embed_tokens([tokens]) for tokens in ids])
    for _ in range(20):
        rows = rng.choice(len(ids), int(rng.integers(1, 9)), replace=False)
        near = [others[place] for place in rng.choice(len(others), int(rng.integers(0, 9)))]
        found = encoder.embed_tokens([*(ids[row] for row in rows), *near])[: len(rows)]
        assert 1 - np.sum(found * alone[rows], axis=1).min() < 1e-3


def test_a_process_that_may_use_one_core_uses_one(model):
    code = """
        import os, sys
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from leafembed.ship.encoder import BundleEncoder
        encoder = BundleEncoder(sys.argv[1])
        print(encoder.threads, encoder.encode(["en1"]).shape[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(model[0])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["1", "256"]
