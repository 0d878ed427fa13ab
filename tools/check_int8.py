"""How much of a student its bundle keeps: ``python tools/check_int8.py BUNDLE STUDENT FILE``.

Cosine between the vectors of the INT8 bundle and of the student in torch fp32, by language, and between a text's vector
alone and in random batches. FILE holds one JSON object a line. Exit status 1 where a bound does not hold.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

import leafembed
from leafembed.learn.models import load_sentence_transformer
from leafembed.ship.machine import machine_facts
from leafembed.text import clean_text, normalise_lang, read_objects, text_hash

LEAST_MEAN, LEAST, LEAST_IN_A_BATCH = 0.999, 0.99, 0.999
ALONE = 200
"""Texts that are encoded alone, too."""


def sample(path: Path, text: str, lang: str, languages: int, each: int) -> dict[str, list[str]]:
    """Texts by language: of the languages with most rows, ``each`` at random, the same each time."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, row in read_objects(path):
        found[normalise_lang(row[lang].split("-")[0])].add(clean_text(row[text]))
    most = sorted(found, key=lambda name: (-len(found[name]), name))[:languages]
    return {name: sorted(found[name], key=text_hash)[:each] for name in sorted(most)}


def main() -> None:
    """Measure, print a line a language, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("student", type=Path, help="its sentence-transformers folder")
    parser.add_argument("file", type=Path, help=".jsonl or .jsonl.gz, best of text that it did not learn from")
    parser.add_argument("--text", default="text", help="column of the text")
    parser.add_argument("--lang", default="lang", help="column of the language; of a pair such as deu-eng the first")
    parser.add_argument("--languages", type=int, default=30)
    parser.add_argument("--each", type=int, default=170, help="texts of a language")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    texts = sample(args.file, args.text, args.lang, args.languages, args.each)
    every = [one for some in texts.values() for one in some]
    int8, model = leafembed.load(args.bundle, allow_failed=True), load_sentence_transformer(args.student)
    rounded = int8.encode(every)
    exact = model.float().encode(every, batch_size=32, normalize_embeddings=True, show_progress_bar=True)
    cosines = np.sum(rounded * exact, axis=1)
    by_language, start = {}, 0
    for name, some in texts.items():
        part = cosines[start : start + len(some)]
        by_language[name] = {"texts": len(some), "mean": float(part.mean()), "least": float(part.min())}
        start += len(some)
        print(f"{name:4} {len(some):5} texts, mean {part.mean():.5f}, least {part.min():.5f}")
    chosen = np.random.default_rng(0).choice(len(every), ALONE, replace=False)
    alone = np.concatenate([int8.encode([every[i]]) for i in chosen])
    batches = float(np.sum(alone * rounded[chosen], axis=1).min())
    result = {"texts": len(every), "mean": float(cosines.mean()), "least": float(cosines.min()),
              "alone_in_batch_least": batches, "by_language": by_language, "machine": machine_facts()}  # fmt: skip
    print(f"all  {len(every):5} texts, mean {cosines.mean():.5f}, least {cosines.min():.5f}; "
          f"alone and in a batch, least {batches:.6f} of {ALONE}")  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not (cosines.mean() >= LEAST_MEAN and cosines.min() >= LEAST and batches >= LEAST_IN_A_BATCH):
        parser.exit(1, f"expected at least {LEAST_MEAN} in the mean, {LEAST} of each text, {LEAST_IN_A_BATCH} alone\n")


if __name__ == "__main__":
    main()
