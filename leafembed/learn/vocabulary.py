"""Prunes a student's tokenizer and token table together, and measures what that changes.

With a large vocabulary most of a student's bytes are its token table: of EmbeddingGemma with six layers 201 of 228 MB.
Few of its rows are often used by the languages of a corpus. Which tokens are kept is decided in
``vocabulary_tokenizer.py``; a text whose tokens are all kept is tokenised as before, so its vector is the same. How
many texts that is, and how much longer the others become, is measured by language on held-out text and goes to the
card.

    leaf run RECIPE --set student.vocab_size=65536
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import ModelError, RecipeError
from leafembed.learn.vocabulary_tokenizer import fallback_tokens, prune_tokenizer, tokens_of
from leafembed.progress import say
from leafembed.reports_vocabulary import Retokenised, VocabularyReport

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

__all__ = [
    "REPORT",
    "compare",
    "count_tokens",
    "plain_tokenizer",
    "prune_student",
    "read_report",
    "tokenizer_of",
    "with_tokens_of",
    "write_report",
]

REPORT = "vocabulary.json"
"""File of a student's folder with what pruning changed."""

_CHUNK = 4_096  # texts that are tokenised at once
_T = TypeVar("_T")


def prune_student(
    student: SentenceTransformer, texts: Iterable[str], size: int | None, *, held_out: Sequence[tuple[str, str]]
) -> VocabularyReport:
    """Keep at most ``size`` tokens of a student, in place: tokenizer, token table and the ids in its config.

    Args:
        student: Starts with a Transformer or a StaticEmbedding. Its prompts' tokens are kept; its length limit stays.
        texts: What it will be trained on or used for; read once, in pieces.
        size: Most tokens to keep; ``None``: every token that occurs in the texts, and every character.
        held_out: Texts that are not in ``texts``, each with its language.

    Raises:
        ModelError: If the tokenizer or the model is of a kind that cannot be pruned.
        RecipeError: If what must be kept does not fit into ``size``, or there are no texts.
        ValueError: If ``held_out`` is empty.
    """
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first = student[0]
    static = isinstance(first, StaticEmbedding)
    before = tokenizer_of(student)
    content = json.loads(before.to_str())
    total = len(tokens_of(content))
    if size is not None and size >= total:
        say(f"student.vocab_size is {size:,} and the tokenizer has {total:,} tokens: nothing to prune")
    counts, counted = count_tokens(before, texts)
    if not counted:
        raise RecipeError("student.vocab_text: got no text in it to count tokens of, expected some")
    names = [] if static else first.tokenizer.all_special_tokens
    roles = {i for i in map(before.token_to_id, names) if i is not None}
    prompts = {i for encoding in _encoded(before, student.prompts.values()) for i in encoding.ids}
    pruned = prune_tokenizer(content, counts, size, keep=roles | prompts)
    after = _loaded(pruned.content)
    if len(pruned.kept) < total:
        if static:
            first.tokenizer = after
            _select_rows(first.embedding, pruned.kept)
            first.num_embeddings = first.embedding.num_embeddings
        else:
            _prune_transformer(first, pruned.content, pruned.kept)
    report = VocabularyReport(
        total, len(pruned.kept), counted, compare(before, after, pruned.kept, held_out, fallback_tokens(content))
    )
    say(
        f"vocabulary: {report.size_before:,} tokens before, {report.size_after:,} after; "
        f"{report.total.identical_share:.1%} of {report.total.texts:,} held-out texts are tokenised as before"
    )
    return report


def with_tokens_of(student: SentenceTransformer, teacher: SentenceTransformer) -> SentenceTransformer:
    """A copy of the teacher that knows only the tokens of a student whose tokenizer is the teacher's, pruned.

    It shares all weights with the teacher but the token table.

    Args:
        student: Starts with a Transformer or a StaticEmbedding.
        teacher: Starts with a Transformer.

    Raises:
        ModelError: If the teacher lacks a token of the student's.
    """
    content = json.loads(tokenizer_of(student).to_str())
    whole = tokens_of(json.loads(tokenizer_of(teacher).to_str()))
    tokens = sorted(tokens_of(content).items(), key=lambda item: item[1])
    if strange := [token for token, _ in tokens if token not in whole]:
        raise ModelError(f"got the token {strange[0]!r} in a student, expected none but its teacher's {len(whole):,}")
    narrowed = copy.deepcopy(teacher, {id(weight): weight for weight in (*teacher.parameters(), *teacher.buffers())})
    _prune_transformer(narrowed[0], content, np.array([whole[token] for token, _ in tokens]))
    return narrowed


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[NDArray[np.int64], int]:
    """How often each id occurs in the texts, ``(highest id + 1,)``, and the number of texts."""
    counts = np.zeros(max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1, dtype=np.int64)
    n = 0
    for chunk in _chunks(texts):
        ids = [i for encoding in _encoded(tokenizer, chunk) for i in encoding.ids]
        counts += np.bincount(np.array(ids, dtype=np.int64), minlength=len(counts))
        n += len(chunk)
    return counts, n


def compare(
    before: Tokenizer,
    after: Tokenizer,
    kept: NDArray[np.int64],
    held_out: Sequence[tuple[str, str]],
    fallback: set[int],
) -> tuple[Retokenised, ...]:
    """Tokenise texts with both tokenizers and count, by language, that of most texts first.

    Args:
        before: The whole tokenizer.
        after: The pruned one.
        kept: Old id of each new id, ``(n_tokens,)``.
        held_out: Texts, each with its language.
        fallback: Old ids that stand for bytes or unknown text.
    """
    sums: dict[str, Counter[str]] = {}
    for chunk in _chunks(held_out):
        texts = [text for text, _ in chunk]
        pairs = zip(_encoded(before, texts), _encoded(after, texts), strict=True)
        for (_, lang), (whole, pruned) in zip(chunk, pairs, strict=True):
            old, new = whole.ids, [int(i) for i in kept[pruned.ids]] if pruned.ids else []
            sums.setdefault(lang, Counter()).update(
                texts=1,
                identical=int(old == new),
                tokens_before=len(old),
                tokens_after=len(new),
                fallback_before=sum(i in fallback for i in old),
                fallback_after=sum(i in fallback for i in new),
            )
    entries = [Retokenised(lang, **counts) for lang, counts in sums.items()]
    return tuple(sorted(entries, key=lambda entry: (-entry.texts, entry.lang)))


def write_report(report: VocabularyReport, folder: Path) -> None:
    """Put a report into a student's folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(report.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in a student's folder as plain data; ``None`` if its vocabulary was not pruned."""
    path = folder / REPORT
    if not path.is_file():
        return None
    return VocabularyReport.from_dict(json.loads(path.read_text(encoding="utf-8"))).to_dict()


def _chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Any:
    return tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)


def _loaded(content: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def tokenizer_of(model: SentenceTransformer) -> Tokenizer:
    """A copy of the tokenizer of a model's first module, which neither cuts nor pads."""
    tokenizer: Any = model[0].tokenizer
    return plain_tokenizer(getattr(tokenizer, "backend_tokenizer", tokenizer))


def plain_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """An independent copy that neither cuts nor pads; both are settings of the last call and would distort counts."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def _prune_transformer(first: Any, content: Mapping[str, Any], kept: NDArray[np.int64]) -> None:
    """Give a Transformer module the pruned tokenizer, the rows of its table, and a config that fits both."""
    import torch

    model, limit = first.auto_model, first.max_seq_length
    place = {int(old): new for new, old in enumerate(kept)}
    _require_fixed_padding(model, place)
    tables = {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    # A factorised table is a module that holds one.
    parts = [part for table in tables.values() for part in table.modules()]
    rows = [part for part in parts if isinstance(part, torch.nn.Embedding)]
    if len(rows) != 1 or len(tables) != 1:
        raise ModelError(f"got {len(rows)} token tables in a {type(model).__name__}, expected one to prune")
    _select_rows(rows[0], kept)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        _renumber_config(config, place, rows[0].num_embeddings)
    first.processor = _reloaded(first.tokenizer, content)
    first.max_seq_length = limit


def _select_rows(table: Any, kept: NDArray[np.int64]) -> None:
    """Keep rows of an embedding in place, whose class may scale its output; added tokens may lie beyond its end."""
    import torch

    rows = torch.from_numpy(kept[kept < table.num_embeddings])
    padding = table.padding_idx
    table.weight = torch.nn.Parameter(table.weight.detach()[rows].clone(), requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(rows)
    if padding is not None:
        places = np.flatnonzero(kept == padding)
        table.padding_idx = int(places[0]) if len(places) else None


def _require_fixed_padding(model: Any, place: Mapping[int, int]) -> None:
    """RoBERTa and its kin count positions from the padding id, which therefore must not move."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and hasattr(module, "position_embeddings") and place.get(padding) != padding:
            raise ModelError(
                f"got padding id {padding}, which pruning would move to {place.get(padding)}; expected it to stay, "
                f"since {type(module).__name__} counts positions from it: leave out student.vocab_size"
            )


def _renumber_config(config: Any, place: Mapping[int, int], rows: int) -> None:
    """New ids of the tokens that a config names; ``None`` for one that was dropped."""
    config.vocab_size = rows
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, place.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [place[i] for i in value if i in place])


def _reloaded(tokenizer: Any, content: Mapping[str, Any]) -> Any:
    """The same kind of transformers tokenizer with another ``tokenizer.json``; roles go by the tokens' text."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        for other in ("tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):
            (Path(folder) / other).unlink(missing_ok=True)  # they number the old tokens
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
