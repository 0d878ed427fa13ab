"""Tiny teachers of each architecture the line supports: random weights from a seed, a real fast tokenizer, no download.

Each builder writes a sentence-transformers folder and returns it. Words are ``en17`` and ``de17``, as in the tasks of
``conftest.py``: frequent ones have a token of their own, the others are made of pieces.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

LANGS = ("en", "de")
WORDS = [f"{lang}{i}" for i in range(150) for lang in LANGS]
PIECES = [*LANGS, *"0123456789", *"abcdefghijklmnopqrstuvwxyz", *": |-_.,!?"]
PROMPTS = {"query": "task: search | query: ", "document": "title: none | text: ", "STS": "task: similarity | query: "}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        build: Writes the teacher into a folder.
        layers: Layers the student keeps.
        window: Tokens beyond which a sliding layer sees nothing; 0: it has none.
        prompt_name: Prompt the teacher embeds the corpus with.
        heads: Dense modules of the teacher.
        min_cosine: Least mean cosine between INT8 and fp32.
    """

    build: Callable[[Path], Path]
    layers: tuple[int, ...]
    window: int = 0
    prompt_name: str | None = None
    heads: int = 0
    min_cosine: float = 0.99
    layer_types: tuple[str, ...] = field(default=())


def toy_texts(n: int, *, seed: int = 0, words: tuple[int, int] = (4, 12)) -> list[str]:
    """Distinct texts, every other one German; the last word is one of a kind."""
    rng = random.Random(seed)
    texts = []
    for i in range(n):
        lang = LANGS[i % 2]
        chosen = [f"{lang}{rng.randrange(300)}" for _ in range(rng.randint(*words))]
        texts.append(" ".join([*chosen, f"{lang}{1000 + i}"]))
    return texts


@cache
def _exported() -> Path:
    """Where all toy recipes of a process keep their teachers in INT8: to export one takes most of a toy run."""
    folder = Path(tempfile.mkdtemp(prefix="leafembed-int8-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def toy_recipe(root: Path, teacher_dir: Path, eval_data: Path, /, **sections: Any) -> dict[str, Any]:
    """A recipe of seconds on 120 texts; a section given by name is merged over it."""
    (root / "cache").mkdir(exist_ok=True)
    if not (root / "cache" / "int8").exists():
        (root / "cache" / "int8").symlink_to(_exported())
    (root / "corpus.txt").write_text("\n".join(toy_texts(120)), encoding="utf-8")
    base: dict[str, Any] = {
        "name": "toy",
        "cache_dir": str(root / "cache"),
        "data": {"root": str(root), "sources": [{"path": "corpus.txt", "lang": "en"}], "validation_rows": 24},
        "teacher": {"model": str(teacher_dir), "precision": "fp32"},
        "train": {"max_steps": 12, "batch_size": 16, "eval_steps": 6, "warmup_steps": 2, "precision": "fp32"},
        "eval": {"data": str(eval_data), "dev": ["agreement"], "test": ["retrieval/toy_en"], "min_rows": 8},
        # A random teacher knows nothing that a gate could judge by: what is tested here is the line.
        "alarms": {"stop": False},
        "gate": {
            "beat_floors": False,
            "min_mean_retention": 0.0,
            "max_int8_drop": 1.0,
            "max_int8_drop_in_language": 1.0,
            "min_int8_cosine": 0.9,
        },
        "benchmark": {"texts": 8, "repeats": 1, "threads": 1, "batch_size": 8},
        "quantize": {"check_texts": 24},
    }
    for name, section in sections.items():
        base[name] = base.get(name, {}) | section if isinstance(section, dict) else section
    return base


def embeddinggemma_config() -> Any:
    """The shape of google/embeddinggemma-300m, as its config states it, without weights."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=768,
        intermediate_size=1152,
        num_hidden_layers=24,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=2048,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 4,
    )


def gemma(folder: Path) -> Path:
    """Like EmbeddingGemma: five sliding layers to a full one, both directions, two linear Dense."""
    return _gemma(folder, heads=[(32, 64), (64, 32)])


def gemma_headless(folder: Path) -> Path:
    """The same without a head, and fewer layers."""
    return _gemma(folder, heads=[], layers=2)


def _gemma(folder: Path, heads: Sequence[tuple[int, int]], layers: int = 6) -> Path:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    tokenizer = _bpe(specials=("<pad>", "<eos>", "<bos>", "<unk>"), template="<bos> $A <eos>", space="▁")
    config = Gemma3TextConfig(
        **_shape(tokenizer, intermediate_size=64),
        num_hidden_layers=layers,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
        sliding_window=8,
        use_bidirectional_attention=True,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return _save(folder, Gemma3TextModel, config, _fast(tokenizer, names), heads=heads, prompts=PROMPTS)


def qwen(folder: Path) -> Path:
    """Causal, pooled at the last token, which the tokenizer adds; padded on the left."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = _bpe(specials=("<|endoftext|>", "<unk>"), template="$A <|endoftext|>", space="Ġ")
    config = Qwen3Config(
        **_shape(tokenizer, intermediate_size=64),
        num_hidden_layers=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
    )
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    fast = _fast(tokenizer, names, padding_side="left")
    prompts = {"query": "Instruct: search\nQuery:", "document": ""}
    return _save(folder, Qwen3Model, config, fast, pooling="lasttoken", prompts=prompts)


def bert(folder: Path, *, heads: Sequence[tuple[int, int]] = (), activation: Any = None, **changes: Any) -> Path:
    """The plain encoder; ``changes`` go to its config."""
    from transformers import BertConfig, BertModel

    tokenizer = _wordpiece()
    settings = {**_shape(tokenizer, intermediate_size=64), "num_hidden_layers": 3, "max_position_embeddings": 128}
    return _save(folder, BertModel, BertConfig(**(settings | changes)), _fast(tokenizer, _BERT_NAMES), heads=heads,
                 activation=activation)  # fmt: skip


def xlm_roberta(folder: Path) -> Path:
    """Padding is token 1, and positions start after it."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = _unigram()
    config = XLMRobertaConfig(
        **_shape(tokenizer, intermediate_size=64),
        num_hidden_layers=2,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    names = {"cls_token": "<s>", "bos_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = _fast(tokenizer, names | {"unk_token": "<unk>"}, model_max_length=128)
    return _save(folder, XLMRobertaModel, config, fast)


def modernbert(folder: Path) -> Path:
    """A full layer, then two sliding ones; layer 0 has no attention norm."""
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = _wordpiece()
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = ModernBertConfig(
        **_shape(tokenizer, intermediate_size=48),
        **special,
        num_hidden_layers=3,
        local_attention=8,
        max_position_embeddings=256,
        reference_compile=False,
    )
    return _save(folder, ModernBertModel, config, _fast(tokenizer, _BERT_NAMES))


FAMILIES: Mapping[str, Family] = {
    "gemma": Family(gemma, (1, 5), window=8, prompt_name="STS", heads=2,
                    layer_types=("sliding_attention", "full_attention")),
    "gemma_headless": Family(gemma_headless, (0,), window=8, prompt_name="STS", layer_types=("sliding_attention",)),
    "qwen": Family(qwen, (1,), prompt_name="document", layer_types=("full_attention",)),
    "bert": Family(bert, (0, 2)),
    "xlm_roberta": Family(xlm_roberta, (1,)),
    "modernbert": Family(modernbert, (0, 2), window=8, layer_types=("full_attention", "sliding_attention")),
}  # fmt: skip

_BERT_NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def _shape(tokenizer: Any, intermediate_size: int) -> dict[str, Any]:
    # Weights of about 1 / sqrt(width) let each layer change the vectors, as in a trained model.
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": intermediate_size,
        "num_attention_heads": 2,
        "initializer_range": 0.15,
    }


def _save(
    folder: Path,
    kind: Any,
    config: Any,
    tokenizer: Any,
    *,
    pooling: str = "mean",
    heads: Sequence[tuple[int, int]] = (),
    activation: Any = None,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
        linear = activation is None
        dense = [
            Dense(i, o, bias=not linear, activation_function=torch.nn.Identity() if linear else activation)
            for i, o in heads
        ]
    tokenizer.save_pretrained(folder)
    body = Transformer(str(folder), model_kwargs={"attn_implementation": "sdpa"})
    modules = [body, Pooling(config.hidden_size, pooling_mode=pooling), *dense, Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts=dict(prompts or {}))
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def _fast(tokenizer: Any, names: Mapping[str, str], **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = list(dict.fromkeys([*specials, *WORDS, *PIECES, *(f"##{piece}" for piece in PIECES if piece != " ")]))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _framed(tokenizer, "[CLS] $A [SEP]")


def _unigram() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(piece, -9.0) for piece in ("▁", *PIECES)] + [(f"▁{word}", -7.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram([*specials, *dict(pieces).items()], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _framed(tokenizer, "<s> $A </s>")


def _bpe(*, specials: Sequence[str], template: str, space: str) -> Any:
    """Bytes or characters merged up to whole words, by rules written out and not trained."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    alphabet = [space, *sorted(set("".join(PIECES)) - {" "}), "Ċ"]
    for piece in (*specials, *alphabet):
        vocab.setdefault(piece, len(vocab))
    for word in WORDS:
        left = space
        for letter in word:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            vocab.setdefault(left, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    if space == "Ġ":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space)
    return _framed(tokenizer, template)


def _framed(tokenizer: Any, template: str) -> Any:
    from tokenizers import processors

    names = [name for name in template.split() if name != "$A"]
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer
