"""Channels of unequal size are evened out before INT8, and nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import torch
from families import bert, gemma, toy_texts

from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.smooth import smooth


def uneven(folder):
    """A student some of whose channels are a hundred times as large as others, as trained ones of its kind have."""
    model = load_sentence_transformer(gemma(folder)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model[0].auto_model.layers:
            for norm in (layer.input_layernorm, layer.pre_feedforward_layernorm):
                norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator).mul(1.5).exp() - 1)
    return model


def per_tensor(model, texts):
    """Vectors of the model when the input of each matrix is rounded to INT8 with one scale."""

    def hook(_, inputs):
        step = inputs[0].abs().max() / 127
        return (inputs[0] / step).round() * step

    matrices = [m for m in model[0].auto_model.layers.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [matrix.register_forward_pre_hook(hook) for matrix in matrices]
    vectors = model.encode(texts)
    for handle in hooks:
        handle.remove()
    return vectors


def test_the_vectors_stay_and_rounded_activations_come_nearer_to_them(tmp_path):
    texts = toy_texts(40)
    model = uneven(tmp_path / "gemma")
    smoothed = copy.deepcopy(model)
    assert smooth(smoothed, texts[:20])
    before, after = model.encode(texts), smoothed.encode(texts)
    np.testing.assert_allclose(after, before, atol=1e-5)
    lost = [1 - np.sum(per_tensor(m, texts) * before, axis=1).mean() for m in (model, smoothed)]
    assert lost[1] < 0.7 * lost[0]


def test_layers_of_another_kind_stay_as_they_are(tmp_path):
    model = load_sentence_transformer(bert(tmp_path / "bert"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not smooth(model, toy_texts(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
