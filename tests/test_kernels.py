"""Written-out gradients against autograd's; and compiled kernels against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from leafembed.learn.kernels import Kernels, can_compile, compiled_kernels


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def _gradients(function, inputs, upstream):
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(function(*leaves), leaves, upstream)


def test_a_norm_and_its_gradient():
    x, gain, upstream, skip = _random(7, 16), _random(16), _random(7, 16) + 1, _random(7, 16) + 2
    kernels = Kernels()
    y, scale = kernels.norm(x, gain, 1e-6, torch.float32)
    assert torch.allclose(y, functional.rms_norm(x, (16,), gain, 1e-6), atol=1e-6)
    d_x, d_gain = _gradients(lambda x, gain: functional.rms_norm(x, (16,), gain, 1e-6), (x, gain), upstream)
    ours = kernels.norm_grad(upstream, x, scale, gain, skip)
    assert torch.allclose(ours[0], d_x + skip, atol=1e-5)
    assert torch.allclose(ours[1], d_gain, atol=1e-5)
    out, same = kernels.add_norm(skip, x, gain, 1e-6)
    assert torch.allclose(out, skip + y, atol=1e-6)
    assert torch.equal(same, scale)
    d_h, d_gain_again = kernels.add_norm_grad(upstream, x, scale, gain)
    assert torch.allclose(d_h, d_x, atol=1e-5)
    assert torch.allclose(d_gain_again, d_gain, atol=1e-5)


def test_turning_by_a_right_angle_swaps_the_halves():
    x, gain = _random(3, 2, 8), torch.ones(8)
    turned, scale = Kernels().turn(x, gain, 0.0, torch.zeros(3, 4), torch.ones(3, 4))
    first, second = (x * scale).chunk(2, -1)
    assert torch.allclose(turned, torch.cat((-second, first), -1))


def test_the_gradient_of_turning():
    x, gain, angle, upstream = _random(3, 2, 8), _random(8), _random(3, 4), _random(3, 2, 8) + 1
    kernels = Kernels()
    cos, sin = angle.cos(), angle.sin()
    d_x, d_gain = _gradients(lambda x, gain: kernels.turn(x, gain, 1e-6, cos, sin)[0], (x, gain), upstream)
    scale = kernels.turn(x, gain, 1e-6, cos, sin)[1]
    ours = kernels.turn_grad(upstream, x, scale, gain, cos, sin)
    assert torch.allclose(ours[0], d_x, atol=1e-5)
    assert torch.allclose(ours[1], d_gain, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stock"),
    [("tanh", lambda x: functional.gelu(x, approximate="tanh")), ("silu", functional.silu)],
)
def test_a_gate_and_its_gradient(name, stock):
    both, upstream = 3 * _random(5, 24), _random(5, 12)

    def expected(both):
        gate, up = both.chunk(2, -1)
        return stock(gate) * up

    assert torch.allclose(Kernels().gate(both, name), expected(both), atol=1e-6)
    (d_both,) = _gradients(expected, (both,), upstream)
    assert torch.allclose(Kernels().gate_grad(upstream, both, name), d_both, atol=1e-5)


def test_far_out_the_gate_is_finite():
    both = torch.tensor([[200.0, -200.0, 1.0, 1.0]])
    for name in ("tanh", "silu"):
        assert torch.equal(Kernels().gate(both, name), torch.tensor([[200.0, 0.0]]))
        assert torch.isfinite(Kernels().gate_grad(torch.ones(1, 2), both, name)).all()


def _works(function, **_):
    """What a compiler gives that works for the trial."""
    return function


def _fails(function, **_):
    def run(x):
        raise RuntimeError("cc1plus: not found\nmore")

    return run


@pytest.mark.parametrize("missing", ["nothing", "compiler", "headers", "a part of the compiler"])
def test_what_compiling_needs(missing, monkeypatch, tmp_path, capsys):
    (tmp_path / "Python.h").write_text("", encoding="utf-8")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if missing != "compiler" else None)
    monkeypatch.setattr("torch.compile", _fails if missing == "a part of the compiler" else _works)
    if missing == "headers":
        (tmp_path / "Python.h").unlink()
    assert can_compile() == (missing == "nothing")
    assert ("cc1plus: not found" in capsys.readouterr().err) == (missing == "a part of the compiler")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_kernels_compute_the_same_for_any_number_of_tokens():
    if not can_compile():
        pytest.skip("nothing to compile with")
    plain, compiled = Kernels(), compiled_kernels()
    for tokens in (9, 17, 30):
        both = _random(tokens, 24).bfloat16()
        assert torch.allclose(compiled.gate(both, "tanh"), plain.gate(both, "tanh"), atol=0.02)
        y, scale = compiled.norm(_random(tokens, 16), _random(16), 1e-6, torch.float32)
        expected = plain.norm(_random(tokens, 16), _random(16), 1e-6, torch.float32)
        assert torch.allclose(y, expected[0], atol=1e-5)
        assert torch.allclose(scale, expected[1], atol=1e-5)
