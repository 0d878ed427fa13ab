from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
)

from leafembed.learn import fused as fused_module
from leafembed.learn.fused import fused
from leafembed.learn.memory import Weights, activation_bytes, training_memory
from leafembed.recipe_learn import Phase, TrainConfig

SHAPE = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4}
SHAPE |= {"attn_implementation": "sdpa"}
GROUPED = {"num_key_value_heads": 1, "head_dim": 24}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}


def gemma(layers, **changes):
    types = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    settings = SHAPE | GROUPED | {"sliding_window": 8, "use_bidirectional_attention": True} | changes
    return Gemma3TextModel(Gemma3TextConfig(num_hidden_layers=layers, layer_types=types, **settings))


def qwen(layers):
    return Qwen3Model(Qwen3Config(num_hidden_layers=layers, **SHAPE, **GROUPED))


def bert(layers):
    return BertModel(BertConfig(num_hidden_layers=layers, **SHAPE), add_pooling_layer=False)


def modernbert(layers):
    return ModernBertModel(ModernBertConfig(num_hidden_layers=layers, **SHAPE, **SPECIAL))


MODELS = {"gemma": gemma, "grouped": lambda n: gemma(n, num_key_value_heads=2), "qwen": qwen, "bert": bert}
MODELS |= {"modernbert": modernbert}


def measured(model, texts, tokens, *, bf16, padded=True, also=()):
    """Bytes of all distinct storages that autograd keeps, weights themselves left out: exact, and of no machine.

    ``also`` are tensors that are kept besides, known when the pass is over.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.randint(5, 50, (texts, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 :] = 0 if padded else 1
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(input_ids=ids, attention_mask=mask).last_hidden_state.sum()
    for tensor in also:
        pack(tensor)
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_formula_counts_what_autograd_keeps(name, bf16):
    model = MODELS[name](3)
    copies = 2 * sum(p.numel() for p in model.parameters()) if bf16 else 0
    for texts, tokens in ((4, 40), (6, 16)):
        real = measured(model, texts, tokens, bf16=bf16)
        predicted = activation_bytes(model.config, texts=texts, tokens=tokens, bf16=bf16, train=TrainConfig())
        assert predicted + copies == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["gemma", "grouped", "qwen"])
def test_the_formula_counts_what_fused_layers_keep(name, bf16, monkeypatch):
    model, layout, also = MODELS[name](3), fused_module._layout, []

    def noted(*args, **options):
        made = layout(*args, **options)
        also.extend(part for part in (made.hidden, made.cos, made.sin) if part is not None)
        return made

    model.config.use_cache = False  # with one, layers run as they came
    monkeypatch.setattr(fused_module, "_layout", noted)
    copies = 2 * sum(p.numel() for p in model.parameters()) if bf16 else 0
    for texts, tokens in ((4, 40), (3, 300)):  # in the second, what attention gives each pair of tokens is most of it
        also.clear()
        with fused(model, "on", compiled=False):
            real = measured(model, texts, tokens, bf16=bf16, padded=False, also=also)  # it drops padding
        shape = {"texts": texts, "tokens": tokens, "bf16": bf16}
        predicted = activation_bytes(model.config, **shape, train=TrainConfig(fused="on"))
        assert 1 <= (predicted + copies) / real < 1.1
        assert activation_bytes(model.config, **shape, train=TrainConfig(), device="cpu") + copies >= real


def test_only_where_layers_may_be_fused_are_scores_counted():
    weights, long = Weights(1000, 600, 400), {"batch_size": 4, "max_seq_length": 400, "precision": "fp32"}

    def activations(config, device, fused="auto"):
        train = TrainConfig(**long, fused=fused)
        return training_memory(config, weights, train, limit=400, dims=(64,), device=device)[0].activations

    config = qwen(2).config
    assert activations(config, "cuda") == activations(config, "cpu", "off") == activations(config, "cuda", "off")
    # Two layers keep 4 bytes a pair of tokens and head, and the one that is at work has 8 more.
    extra = 4 * 4 * 400 * 400 * (2 * 4 + 8)
    assert activations(config, "cpu") == activations(config, "cuda", "on") > 0.8 * extra + activations(config, "cuda")
    other = bert(2).config
    assert activations(other, "cpu") == activations(other, "cuda")


@pytest.mark.filterwarnings("ignore::UserWarning")  # the cache, which training has no use for
def test_checkpointing_keeps_the_input_of_each_layer():
    shape = {"texts": 4, "tokens": 40, "bf16": False}
    kept = []
    for layers in (4, 6):
        model = gemma(layers, use_cache=False)
        # The other way of torch hides what it keeps from hooks.
        model.activation_checkpointing_enable({"use_reentrant": True})
        predicted = activation_bytes(model.config, **shape, train=TrainConfig(gradient_checkpointing=True))
        kept.append((measured(model, 4, 40, bf16=False), predicted))
    (few, few_predicted), (many, many_predicted) = kept
    # Besides its input, the measured way keeps masks and positions of a layer, which all layers share.
    assert many - few == pytest.approx(many_predicted - few_predicted, rel=0.05) == 2 * 4 * 40 * 64 * 4
    assert many_predicted < activation_bytes(model.config, **shape, train=TrainConfig()) / 2


def test_a_frozen_table_costs_four_bytes_a_weight_and_the_rest_sixteen():
    config = gemma(2).config
    train = TrainConfig(precision="fp32", batch_size=8, max_seq_length=32)
    (all_learn,) = training_memory(config, Weights(1000, 600, 1000), train, limit=256, dims=(64,), device="cuda")
    (frozen,) = training_memory(config, Weights(1000, 600, 400), train, limit=256, dims=(64,), device="cuda")
    assert all_learn.weights == frozen.weights == 4000
    assert (frozen.gradients, frozen.optimizer) == (1600, 3200)
    assert all_learn.peak - frozen.peak == 600 * 12
    (beside,) = training_memory(
        config, Weights(1000, 600, 400, teacher=5000), train, limit=256, dims=(64,), device="cuda"
    )
    assert beside.peak - frozen.peak == 20_000


def test_each_phase_has_its_longest_batch():
    config = gemma(2).config
    phases = (Phase(tokens=16, share=0.5), Phase(tokens=64, share=0.3), Phase(tokens=512, share=0.2))
    train = TrainConfig(precision="fp32", batch_size=8, batch_tokens=256, curriculum=phases)
    found = training_memory(config, Weights(1000, 600, 400), train, limit=128, dims=(64,), device="cuda")
    assert [(one.tokens, one.texts) for one in found] == [(16, 8), (64, 4), (128, 2)]
    assert found[1].activations == activation_bytes(config, texts=4, tokens=64, bf16=False, train=train)


def test_the_loss_grows_with_the_batch_and_its_exits():
    train = TrainConfig(precision="fp32", batch_size=10, max_seq_length=16)
    (plain,) = training_memory(None, Weights(100, 100, 100), train, limit=16, dims=(6,), device="cuda")
    (exits,) = training_memory(None, Weights(100, 100, 100), train, limit=16, dims=(6,), device="cuda", exits=2)
    assert plain.loss == 4 * (8 * 10 * 6 + 8 * 10 * 10)
    assert exits.loss == 3 * plain.loss
    (shorter,) = training_memory(None, Weights(100, 100, 100), train, limit=16, dims=(6, 3), device="cuda")
    assert shorter.loss == 4 * (8 * 10 * (6 + 3) + 2 * 8 * 10 * 10)


def test_tokens_that_are_compared_cost_their_vectors():
    config, weights = gemma(2).config, Weights(1000, 600, 400)
    plain, compared = (
        training_memory(config, weights, TrainConfig(precision="fp32", batch_size=4, max_seq_length=16,
                        token_distillation=weight), limit=256, dims=(64,), device="cuda", head=80)[0]
        for weight in (0.0, 1.0)
    )  # fmt: skip
    assert compared.loss - plain.loss == 4 * (4 * 16) * (config.hidden_size + 80 + 4 * 64)
    assert compared.activations == plain.activations
