"""What a pruned vocabulary leaves as it was, by size: ``python tools/vocabulary_curve.py TOKENIZER FILE --langs en``.

Tokens are counted in nine tenths of the texts, a tenth is held out. Each FILE holds one JSON object a line, with
``text`` and ``lang``, and may have another text in ``text_pair`` and ``lang_pair``. Prints JSON, one entry a size.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from leafembed.learn.vocabulary import compare, count_tokens, plain_tokenizer
from leafembed.learn.vocabulary_tokenizer import fallback_tokens, prune_tokenizer
from leafembed.reports_vocabulary import VocabularyReport
from leafembed.text import clean_text, normalise_lang, read_objects, text_hash

HELD_OUT = 10
"""One text in so many is held out."""


def texts_of(files: Iterable[Path], langs: frozenset[str], most: int) -> dict[str, list[str]]:
    """Texts by language, at most so many of each, drawn by their hash: the same each time."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in files:
        for _, row in read_objects(path):
            for text, lang in (("text", "lang"), ("text_pair", "lang_pair")):
                name = normalise_lang(row.get(lang))
                if row.get(text) and name in langs:
                    found[name].add(clean_text(row[text]))
    return {name: sorted(found[name], key=text_hash)[:most] for name in sorted(found)}


def curve(tokenizer: Tokenizer, texts: dict[str, list[str]], sizes: Iterable[int]) -> list[dict[str, object]]:
    """Share of held-out texts tokenised as before, least of a language too, and growth in tokens, at each size."""
    before = plain_tokenizer(tokenizer)
    content = json.loads(before.to_str())
    counts, counted = count_tokens(
        before, (text for some in texts.values() for i, text in enumerate(some) if i % HELD_OUT)
    )
    held_out = [(text, lang) for lang, some in texts.items() for text in some[::HELD_OUT]]
    entries: list[dict[str, object]] = []
    for size in sizes:
        pruned = prune_tokenizer(content, counts, size)
        after = Tokenizer.from_str(json.dumps(pruned.content, ensure_ascii=False))
        found = compare(before, after, pruned.kept, held_out, fallback_tokens(content))
        total = VocabularyReport(len(counts), len(pruned.kept), counted, found).total
        least = min(found, key=lambda one: one.identical_share)
        entries.append({
            "tokens": len(pruned.kept), "counted": counted, "held_out": total.texts,
            "identical": round(total.identical_share, 4), "least": [least.lang, round(least.identical_share, 4)],
            "inflation": round(total.inflation, 4),
        })  # fmt: skip
    return entries


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json of the teacher")
    parser.add_argument("files", type=Path, nargs="+", help=".jsonl or .jsonl.gz")
    parser.add_argument("--langs", required=True, help="languages to keep, as de,en")
    parser.add_argument("--each", type=int, default=16_000, help="most texts of a language")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32_768, 65_536, 98_304, 131_072])
    args = parser.parse_args()
    texts = texts_of(args.files, frozenset(args.langs.split(",")), args.each)
    entries = curve(Tokenizer.from_file(str(args.tokenizer)), texts, args.sizes)
    print(json.dumps({"languages": {name: len(some) for name, some in texts.items()}, "sizes": entries}, indent=2))


if __name__ == "__main__":
    main()
