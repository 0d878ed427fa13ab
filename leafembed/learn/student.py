"""Ways to build the student that training starts from; each gives a stock sentence-transformers model.

Kept layers of the teacher are the way to start. A random start is there to be compared with: it is what made the first
attempt fail (`docs/method.md`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import ModelError
from leafembed.learn.checkpoints import writing
from leafembed.learn.factors import factorise_table, write_factors
from leafembed.learn.head import fit_head, is_linear, least_squares, pooled_vectors
from leafembed.learn.models import resolve
from leafembed.learn.prompts import begin_role_tokens, reserved_tokens, student_prompts
from leafembed.learn.random_start import random_transformer
from leafembed.learn.shapes import LAYER_NAME, kept_config, legal_width
from leafembed.learn.vocabulary import plain_tokenizer, prune_student, write_report
from leafembed.learn.width import cut_width
from leafembed.recipe_learn import StudentConfig
from leafembed.types import FloatArray, ModelRef

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["STUDENT_INITS", "Sample", "fold_dense", "init_student", "keep_layers", "stand_in"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts and what the teacher makes of them, for starts that are fitted to the teacher.

    Attributes:
        texts: Any texts of the corpus, as the student reads them.
        vectors: Their teacher vectors, ``(n_texts, dim)`` float32, unit length.
        all_texts: Texts whose tokens are counted to prune a vocabulary; empty: ``texts``.
        held_out: Further texts, each with its language, on which the pruned tokenizer is compared with the whole one.
    """

    texts: Sequence[str]
    vectors: FloatArray
    all_texts: Iterable[str] = ()
    held_out: Sequence[tuple[str, str]] = ()


def init_student(
    config: StudentConfig,
    teacher: SentenceTransformer,
    sample: Sample,
    target: Path,
    *,
    seed: int = 0,
    bare: str | None = None,
) -> Path:
    """Build the initial student and save it as a sentence-transformers folder.

    A factorised token table leaves its factors in a file of their own within the folder (``factors.py``).

    Args:
        config: The recipe's ``[student]``.
        teacher: The teacher, left as it is.
        sample: For the starts that fit a linear map to the teacher's vectors, and for pruning the vocabulary.
        target: Folder to write.
        seed: Seed of random weights.
        bare: Name of the prompt whose texts the student reads bare where a token stands for each other.

    Raises:
        RecipeError: If the teacher has no such layers, ``vocab_size`` is too small, or the rank of the token table
            saves nothing.
        ModelError: If the architecture is not supported.
    """
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = STUDENT_INITS[config.init](config, teacher, sample)
    reserved = reserved_tokens(student.tokenizer) if config.prompts == "tokens" else None
    student.prompts = student_prompts(config, teacher.prompts, bare=bare, reserved=reserved)
    if config.init != "static":
        _limit_length(student, config, teacher)
    if config.vocab_size is not None or config.vocab_languages or config.vocab_text is not None:
        texts = sample.all_texts or sample.texts
        write_report(prune_student(student, texts, config.vocab_size, held_out=sample.held_out), target)
    student.float().cpu()
    if config.prompts == "tokens":
        begin_role_tokens(student, teacher.prompts)
    factors = factorise_table(student, config.table_rank, sample.texts) if config.table_rank else None
    if config.init == "layers":
        fit_head(student, sample.texts, sample.vectors)
    with writing(target.parent, "the student that training starts from", anything=True):
        student.save_pretrained(str(target), create_model_card=False, safe_serialization=True)
        if factors is not None:
            write_factors(target, factors)
    return target


def stand_in(config: StudentConfig, teacher: ModelRef) -> SentenceTransformer:
    """The encoder at ``config.model`` in place of a teacher of which there are only vectors.

    For :func:`init_student`, where ``encoder`` takes no weight of the teacher and ``static`` takes a token table. It
    has the teacher's prompts, and its length limit where that is known.
    """
    model = _pooled(config)
    model.prompts = dict(teacher.prompts)
    _limit_length(model, config, teacher)
    return model


def _from_layers(config: StudentConfig, teacher: SentenceTransformer, sample: Sample) -> SentenceTransformer:
    """Keep some layers of the teacher, its token table, norms, pooling and head, all narrowed if the recipe says so."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense

    transformer = _transformer_of(teacher)
    modules: list[Any] = [_around(transformer, keep_layers(transformer.auto_model, config.layers))]
    for module in list(teacher)[1:]:
        if isinstance(module, Dense) and isinstance(modules[-1], Dense) and is_linear(modules[-1], module):
            modules[-1] = fold_dense(modules[-1], module)
        else:
            modules.append(copy.deepcopy(module))
    student = SentenceTransformer(modules=modules, device="cpu").eval()
    hidden = int(transformer.auto_model.config.hidden_size)
    size = legal_width(hidden, config.width)
    return student if size == hidden else cut_width(student, size, sample.texts)


def _from_random(config: StudentConfig, teacher: SentenceTransformer, sample: Sample) -> SentenceTransformer:
    """The teacher's architecture in another shape, all weights random, with a Dense to its dim."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = _transformer_of(teacher)
    body = _around(transformer, random_transformer(transformer.auto_model, config))
    hidden = int(body.auto_model.config.hidden_size)
    pooling = Pooling(hidden, pooling_mode=teacher[1].pooling_mode, include_prompt=teacher[1].include_prompt)
    head = Dense(hidden, sample.vectors.shape[1], bias=False, activation_function=torch.nn.Identity())
    return SentenceTransformer(modules=[body, pooling, head, Normalize()], device="cpu")


def _from_encoder(config: StudentConfig, teacher: SentenceTransformer, sample: Sample) -> SentenceTransformer:
    """Another encoder, pooled, with a Dense to the teacher's dim that is fitted by least squares."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize

    pooled = _pooled(config)
    _limit_length(pooled, config, teacher)
    hidden = int(pooled.get_embedding_dimension() or 0)
    matrix = least_squares(np.asarray(pooled_vectors(pooled, sample.texts), dtype=np.float64), sample.vectors)
    head = Dense(hidden, matrix.shape[1], bias=False, activation_function=torch.nn.Identity())
    head.linear.weight.data = torch.from_numpy(matrix.T.astype(np.float32)).contiguous()
    return SentenceTransformer(modules=[*pooled, head, Normalize()], device="cpu")


def _pooled(config: StudentConfig) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = resolve(config.model, config.revision)
    try:
        body = Transformer(str(folder), model_kwargs={"attn_implementation": "sdpa", "use_safetensors": True})
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: cannot be loaded as an encoder: {str(error).splitlines()[0]}") from error
    pooling = Pooling(int(body.get_embedding_dimension()), pooling_mode=config.pooling)
    return SentenceTransformer(modules=[body, pooling], device="cpu").eval()


def _static(config: StudentConfig, teacher: SentenceTransformer, sample: Sample) -> SentenceTransformer:
    """A token table alone: the teacher's own, mapped linearly so that weighted means come out as its vectors.

    Tokens weigh a / (a + frequency) as in "smooth inverse frequency" (Arora et al. 2017, eq. 1), and the weights are
    folded into the rows, so that the result is a plain mean of rows.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    transformer = _transformer_of(teacher)
    tokenizer = plain_tokenizer(transformer.tokenizer._tokenizer)
    table = transformer.auto_model.get_input_embeddings().weight.detach().float().cpu().numpy()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sample.texts), add_special_tokens=False)]
    frequency = np.bincount(np.concatenate([np.array(row, dtype=np.int64) for row in ids]), minlength=len(table))
    weights = 1e-3 / (1e-3 + frequency / max(1, frequency.sum()))
    means = np.zeros((len(ids), table.shape[1]))
    for i, row in enumerate(ids):
        if row:
            means[i] = (table[row] * weights[row, None]).mean(axis=0)
    matrix = least_squares(means, sample.vectors)
    rows = (table * weights[:, None].astype(np.float32)) @ matrix.astype(np.float32)
    # Row 0 stands for a text without any token; a table may hold zeros there, which have no direction.
    rows += 1e-6
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(rows)), Normalize()], device="cpu"
    )


STUDENT_INITS: dict[str, Callable[[StudentConfig, Any, Sample], Any]] = {
    "layers": _from_layers,
    "encoder": _from_encoder,
    "static": _static,
    "random": _from_random,
}


def keep_layers(model: Any, layers: Sequence[int]) -> Any:
    """A new transformer with the given layers of ``model``, in order, and everything else as it was.

    Built from a sliced config and filled weight by weight, so that what a layer is (sliding or full attention, its
    RoPE base, its number) is decided by the config that is saved with it.

    Raises:
        RecipeError: If a layer does not exist.
        ModelError: If the kept weights do not fit the sliced model.
    """
    config = kept_config(model.config, layers)
    config._attn_implementation = model.config._attn_implementation
    kept = type(model)(config)
    place = {old: new for new, old in enumerate(layers)}
    state = {}
    for name, tensor in model.state_dict().items():
        match = LAYER_NAME.search(name)
        if match is None:
            state[name] = tensor
        elif int(match.group(2)) in place:
            renamed = f"{match.group(1)}.{place[int(match.group(2))]}."
            state[name[: match.start()] + renamed + name[match.end() :]] = tensor
    problems = kept.load_state_dict(state, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        names = [*problems.missing_keys, *problems.unexpected_keys]
        raise ModelError(
            f"layers {list(layers)} do not make a {type(model).__name__}: {names[0]} does not fit; "
            "keep layer 0, which some architectures build differently"
        )
    return kept.eval()


def fold_dense(first: Any, second: Any) -> Any:
    """One linear Dense that does what two in a row do: ``W2 (W1 x + b1) + b2``."""
    import torch
    from sentence_transformers.base.modules import Dense

    biased = bool(first.bias or second.bias)
    folded = Dense(first.in_features, second.out_features, bias=biased, activation_function=torch.nn.Identity())
    one, two = first.linear, second.linear
    folded.linear.weight.data = (two.weight.data.double() @ one.weight.data.double()).float()
    if biased:
        bias = two.bias.data.double() if second.bias else torch.zeros(second.out_features, dtype=torch.float64)
        if first.bias:
            bias = bias + two.weight.data.double() @ one.bias.data.double()
        folded.linear.bias.data = bias.float()
    return folded


def _limit_length(student: Any, config: StudentConfig, teacher: Any) -> None:
    """Let the student read what the recipe says, else as much as the teacher, but never more than it can."""
    limits = (config.max_seq_length or teacher.max_seq_length, student.max_seq_length)
    known = [limit for limit in limits if limit is not None]
    if known:
        student.max_seq_length = min(known)


def _around(transformer: Any, model: Any) -> Any:
    """The teacher's first module with another model in it, and a tokenizer of its own."""
    body = copy.copy(transformer)
    body._modules = dict(transformer._modules)
    body.model = model
    body.processor = copy.deepcopy(transformer.processor)  # the tokenizer holds the length limit
    return body


def _transformer_of(teacher: Any) -> Any:
    from sentence_transformers.base.modules import Transformer

    if not isinstance(teacher[0], Transformer):
        raise ModelError(f"got a teacher that starts with {type(teacher[0]).__name__}, expected a Transformer")
    return teacher[0]
