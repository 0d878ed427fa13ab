"""Fused layers are the stock layers, faster: the same vectors and gradients, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from families import bert, gemma, modernbert, qwen, toy_texts

from leafembed.errors import ModelError
from leafembed.learn import fused as fused_module
from leafembed.learn.fused import COMPILE_FROM, fused
from leafembed.learn.kernels import can_compile
from leafembed.learn.models import load_sentence_transformer

BUILDERS = {"gemma": gemma, "qwen": qwen}
UNEVEN = toy_texts(9, words=(1, 14))  # longer than the window of Gemma's sliding layers, and padded
EVEN = ["en1 en2 en3", "de4 de5 de6", "en7 en8 en9"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """A trained model would have norms that are not all alike; these get random ones."""
    root, models = tmp_path_factory.mktemp("fused"), {}
    for name, build in BUILDERS.items():
        models[name] = load_sentence_transformer(build(root / name))
        torch.manual_seed(1)
        for parameter_name, parameter in models[name].named_parameters():
            if "norm" in parameter_name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return models


@pytest.fixture(params=BUILDERS)
def student(request, students):
    return copy.deepcopy(students[request.param]).train()


def _features(model, texts=UNEVEN):
    return {name: value for name, value in model.preprocess(texts).items() if isinstance(value, torch.Tensor)}


def _step(model, texts=UNEVEN, *, bf16=False):
    """Vectors, and the gradient of a loss whose targets are random, by parameter."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        vectors = model(_features(model, texts))["sentence_embedding"].float()
    targets = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    (1 - torch.cosine_similarity(vectors, targets)).mean().backward()
    return vectors.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _error(got, expected):
    """Largest error of a tensor among the gradients, in units of its own largest value."""
    assert got.keys() == expected.keys()
    worst = max(expected.values(), key=lambda g: g.abs().max()).abs().max() * 1e-3
    return max(
        float((got[name] - expected[name]).abs().max() / max(worst, expected[name].abs().max())) for name in expected
    )


@pytest.mark.parametrize("texts", [UNEVEN, EVEN, ["en1"]], ids=["padded", "even", "single"])
def test_vectors_and_gradients_are_those_of_the_stock_layers(student, texts):
    vectors, gradients = _step(student, texts)
    with fused(student, "on", compiled=False) as route:
        ours, our_gradients = _step(student, texts)
    assert route == "plain"
    assert torch.allclose(ours, vectors, atol=1e-5)
    assert _error(our_gradients, gradients) < 1e-5


def test_bf16_is_as_close_to_fp32_as_the_stock_layers_are(student):
    exact, exact_gradients = _step(student)
    stock, stock_gradients = _step(student, bf16=True)
    with fused(student, "on", compiled=False):
        ours, our_gradients = _step(student, bf16=True)
    assert (ours - exact).abs().max() < 1.5 * (stock - exact).abs().max() < 0.1
    assert _total(our_gradients, exact_gradients) < 1.5 * _total(stock_gradients, exact_gradients) < 0.1


def _total(got, expected):
    """Distance of two gradients relative to the length of the second."""
    flat = [torch.cat([g[name].flatten() for name in expected]) for g in (got, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("broken", ["norm_grad", "add_norm_grad", "turn_grad", "gate_grad"])
def test_a_wrong_gradient_would_be_seen(students, broken, monkeypatch):
    student = copy.deepcopy(students["gemma"]).train()
    _, gradients = _step(student)
    kernels = fused_module.Kernels()
    right = getattr(kernels, broken)

    def wrong(*args):
        result = right(*args)
        return result * 1.01 if isinstance(result, torch.Tensor) else (result[0] * 1.01, result[1])

    changed = fused_module.Kernels(**{broken: wrong})
    monkeypatch.setattr(fused_module, "Kernels", lambda: changed)
    with fused(student, "on", compiled=False):
        assert _error(_step(student)[1], gradients) > 1e-4


def test_the_block_leaves_nothing_behind(student):
    before = _description(student)
    inside = None
    with pytest.raises(RuntimeError, match="stop"), fused(student, "on", compiled=False):
        inside = _description(student)
        raise RuntimeError("stop")
    assert inside["keys"] == before["keys"]
    assert inside["kinds"] != before["kinds"]
    assert _description(student) == before


def _description(model):
    kinds = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    return {"kinds": kinds, "keys": list(model.state_dict())}


def test_a_model_saved_within_the_block_is_a_stock_model(student, tmp_path):
    with fused(student, "on", compiled=False), torch.no_grad():
        student.eval().save_pretrained(str(tmp_path), create_model_card=False)
        ours = student.encode(UNEVEN, convert_to_tensor=True)
    loaded = load_sentence_transformer(tmp_path)
    assert torch.allclose(loaded.encode(UNEVEN, convert_to_tensor=True), ours, atol=1e-5)
    assert not any(type(module).__module__.startswith("leafembed") for module in loaded.modules())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(student, reentrant, bf16, monkeypatch):
    with fused(student, "on", compiled=False):
        vectors, gradients = _step(student, bf16=bf16)
        student[0].auto_model.activation_checkpointing_enable({"use_reentrant": reentrant})
        runs = []
        run = fused_module._run
        monkeypatch.setattr(fused_module, "_run", lambda *inputs: runs.append(1) or run(*inputs))
        again, again_gradients = _step(student, bf16=bf16)
    assert len(runs) == 2 * len(student[0].auto_model.layers)  # once more in the backward pass
    assert torch.equal(again, vectors)
    assert _error(again_gradients, gradients) < 1e-6


def test_hooks_on_layers_see_padded_batches(student):
    seen = {}
    layers = student[0].auto_model.layers
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda _, __, output, place=place: seen.setdefault(place, []).append(output))
    _step(student)
    with fused(student, "on", compiled=False):
        _step(student)
    mask = _features(student)["attention_mask"].bool()
    assert len(seen) == len(layers)
    for stock, ours in seen.values():
        assert ours.shape == stock.shape
        assert torch.allclose(ours[mask], stock[mask], atol=1e-4)
        assert not ours[~mask].any()


def test_frozen_weights_get_no_gradient(student):
    student[0].auto_model.get_input_embeddings().weight.requires_grad_(False)
    student[0].auto_model.layers[0].requires_grad_(False)
    _, gradients = _step(student)
    with fused(student, "on", compiled=False):
        ours = _step(student)[1]
    assert _error(ours, gradients) < 1e-5


def test_a_cache_of_keys_goes_to_the_stock_layers(students):
    from transformers import DynamicCache

    model = students["qwen"][0].auto_model
    ids = torch.arange(5)[None]
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        with fused(model, "on", compiled=False):
            cache = DynamicCache(config=model.config)
            first = model(ids[:, :3], past_key_values=cache, use_cache=True).last_hidden_state
            second = model(ids[:, 3:], past_key_values=cache, use_cache=True).last_hidden_state
    assert torch.allclose(torch.cat((first, second), 1), expected, atol=1e-5)


@pytest.mark.parametrize("build", [bert, modernbert])
def test_unknown_layers_are_left_alone_or_refused(build, tmp_path):
    model = load_sentence_transformer(build(tmp_path))
    with fused(model, "auto") as route:
        assert route == "off"
    with pytest.raises(ModelError, match=r"train\.fused = 'on': .*set it to 'auto' or 'off'"), fused(model, "on"):
        pass


@pytest.mark.parametrize(("name", "value"), [("hidden_activation", "gelu"), ("attn_logit_softcapping", 50.0)])
def test_a_variant_of_a_known_layer_is_unknown(students, name, value):
    model = copy.deepcopy(students["gemma"])
    setattr(model[0].auto_model.layers[0].self_attn.config, name, value)
    with fused(model, "auto") as route:
        assert route == "off"
    with pytest.raises(ModelError, match="has no fused form"), fused(model, "on"):
        pass


def test_off_is_off(student):
    with fused(student, "off") as route:
        assert route == "off"
        assert not any(type(module).__module__.startswith("leafembed") for module in student.modules())


def test_a_short_run_compiles_nothing(student, monkeypatch):
    monkeypatch.setattr(fused_module, "can_compile", lambda: pytest.fail("asked"))
    with fused(student, "auto", tokens=COMPILE_FROM - 1) as route:
        assert route == "plain"


def test_without_a_compiler_the_kernels_are_plain(student, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with fused(student, "on", tokens=COMPILE_FROM) as route:
        assert route == "plain"
        _step(student)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_it_is_the_same_model_and_not_compiled_again_for_each_length(student):
    if not can_compile():
        pytest.skip("nothing to compile with")
    batches = [toy_texts(n, seed=n, words=(1, n)) for n in (3, 5, 8, 13)]
    expected = [_step(student, texts) for texts in batches]
    with fused(student, "on", tokens=COMPILE_FROM) as route:
        assert route == "compiled"
        for i, (texts, (vectors, gradients)) in enumerate(zip(batches, expected, strict=True)):
            with torch._dynamo.config.patch(error_on_recompile=i > 1):
                ours, our_gradients = _step(student, texts)
            assert torch.allclose(ours, vectors, atol=1e-5)
            assert _error(our_gradients, gradients) < 1e-5
