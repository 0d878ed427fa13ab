"""Build the small data set in ``data/`` from a folder of larger sources.

The repository ships enough English text to distil and judge a student in minutes, so that the first run needs no
download. Training text comes only from sources that are CC0 or CC BY as a whole; ``data/SOURCES.md`` names them and
says why others were left out. Rows are chosen by the hash of their text, not by a random generator, so the same source
folder gives the same rows under every Python version.

Run ``python tools/build_shipped_data.py --source ../shared/data``; a second run writes the same bytes.
"""

import argparse
import gzip
import hashlib
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TRAIN_FILES = {
    "common_voice_sentences.jsonl.gz": "common_voice_en.jsonl.gz",
    "opensource_guide_parallel.jsonl.gz": "opensource_guide_en.jsonl.gz",
}
"""Files of ``train/`` read for English text, and the file each becomes."""

RETRIEVAL_FILES = {
    "queries.jsonl": "queries.jsonl.gz",
    "corpus.jsonl.gz": "corpus.jsonl.gz",
    "qrels.jsonl": "qrels.jsonl.gz",
}
TATOEBA_PAIRS = ("deu-eng", "fra-eng", "spa-eng", "rus-eng")
TATOEBA_ROWS = 300
BANKING_DEV_ROWS = 2_000
MIN_WORDS = 3
SEED = 0

CREDIT_DASHES = ("\N{EM DASH}", "\N{EN DASH}", "-")
TEXT_FIELDS = ("text", "title", "sentence1", "sentence2")


def key_of(text: str) -> str:
    """Return the form under which two texts count as equal: NFC, casefolded, stripped."""
    return unicodedata.normalize("NFC", text).casefold().strip()


def rank_of(text: str) -> str:
    """Return the place of a text in the seeded shuffle, as a hex digest to sort by."""
    return hashlib.sha256(f"{SEED}\n{text}".encode()).hexdigest()


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON-lines file, plain or gzip."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # splitlines() would also break at U+2028 inside a text.
    return (json.loads(line) for line in raw.decode("utf-8").split("\n") if line)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as gzip JSON lines whose header holds no name and no time, so equal rows give equal bytes."""
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed,
    ):
        packed.write(body)


def clean(text: str) -> str:
    """Return the text in NFC, without control and invisible format characters, white space collapsed."""
    visible = "".join(
        c for c in unicodedata.normalize("NFC", text) if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")
    )
    return " ".join(visible.split())


def reason_to_drop(text: str, seen: set[str], held_out: set[str]) -> str:
    """Return why a cleaned training text is left out, or an empty string to keep it.

    A text that opens with a dash is the credit line under a quotation in the guides: names, not content.
    """
    if len(text.split()) < MIN_WORDS:
        return "short"
    if text.startswith(CREDIT_DASHES):
        return "credit line"
    if key_of(text) in seen:
        return "duplicate"
    return "in eval" if key_of(text) in held_out else ""


def build_train(source: Path, out: Path, held_out: set[str]) -> dict[str, Counter[str]]:
    """Write the English side of each training source.

    Args:
        source: Folder with ``train/``.
        out: Folder that gets ``train/``.
        held_out: Keys of evaluation texts, none of which may be trained on.

    Returns:
        Per source, how many English texts were kept and how many dropped for each reason.
    """
    counts: dict[str, Counter[str]] = {}
    seen: set[str] = set()
    for name, new_name in TRAIN_FILES.items():
        counts[name] = Counter()
        kept = []
        for raw in dict.fromkeys(row["text"] for row in read_rows(source / "train" / name) if row["lang"] == "en"):
            text = clean(raw)
            reason = reason_to_drop(text, seen, held_out)
            counts[name][reason or "kept"] += 1
            if not reason:
                seen.add(key_of(text))
                kept.append({"text": text, "lang": "en"})
        write_rows(out / "train" / new_name, kept)
    return counts


def eval_keys(source: Path) -> set[str]:
    """Return the keys of every text in the source's evaluation sets, shipped or not."""
    paths = (path for path in sorted((source / "eval").rglob("*")) if path.name.endswith((".jsonl", ".jsonl.gz")))
    return {key_of(row[field]) for path in paths for row in read_rows(path) for field in TEXT_FIELDS if field in row}


def shares(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Split ``total`` over labels in proportion to their sizes, by largest remainder."""
    everything = sum(sizes.values())
    exact = {label: total * size / everything for label, size in sizes.items()}
    result = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda label: (result[label] - exact[label], label))
    for label in by_remainder[: total - sum(result.values())]:
        result[label] += 1
    return result


def split_banking(rows: Sequence[Row]) -> list[Row]:
    """Return Banking77 with a label-stratified dev split taken out of train; test rows stay as they are.

    A train row whose text is also in test, or came earlier in train, is dropped: dev must not share a text with test.
    """
    test = [row for row in rows if row["split"] == "test"]
    seen = {key_of(row["text"]) for row in test}
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["split"] == "train" and key_of(row["text"]) not in seen:
            seen.add(key_of(row["text"]))
            by_label[row["label"]].append(row)
    dev_keys: set[str] = set()
    for label, count in shares({label: len(group) for label, group in by_label.items()}, BANKING_DEV_ROWS).items():
        group = sorted(by_label[label], key=lambda row: rank_of(row["text"]))
        dev_keys.update(key_of(row["text"]) for row in group[:count])
    pool = [row for group in by_label.values() for row in group]
    train = [row for row in pool if key_of(row["text"]) not in dev_keys]
    dev = [{**row, "split": "dev"} for row in pool if key_of(row["text"]) in dev_keys]
    return [*train, *dev, *test]


def pick_tatoeba(rows: Iterable[Row]) -> list[Row]:
    """Return ``TATOEBA_ROWS`` pairs of each language, no text twice on a side, so every match has one right answer."""
    by_pair: dict[str, list[Row]] = {pair: [] for pair in TATOEBA_PAIRS}
    for row in rows:
        if row["lang_pair"] in by_pair:
            by_pair[row["lang_pair"]].append(row)
    picked: list[Row] = []
    for group in by_pair.values():
        seen: set[str] = set()
        chosen: list[Row] = []
        for row in sorted(group, key=lambda row: rank_of(row["sentence1"] + "\n" + row["sentence2"])):
            keys = {key_of(row["sentence1"]), key_of(row["sentence2"])}
            if len(chosen) < TATOEBA_ROWS and not keys & seen:
                seen |= keys
                chosen.append(row)
        picked.extend(chosen)
    return picked


def build_eval(source: Path, out: Path) -> None:
    """Write the evaluation sets, in the formats and under the names of the source folder."""
    write_rows(out / "eval/sts/sts17_en.test.jsonl.gz", read_rows(source / "eval/sts/sts17_en.test.jsonl.gz"))
    for old, new in RETRIEVAL_FILES.items():
        write_rows(out / "eval/retrieval/xquad_en" / new, read_rows(source / "eval/retrieval/xquad_en" / old))
    banking = list(read_rows(source / "eval/classification/banking77.jsonl.gz"))
    write_rows(out / "eval/classification/banking77.jsonl.gz", split_banking(banking))
    tatoeba = read_rows(source / "eval/bitext/tatoeba.jsonl.gz")
    write_rows(out / "eval/bitext/tatoeba_small.jsonl.gz", pick_tatoeba(tatoeba))


def print_summary(out: Path, counts: dict[str, Counter[str]]) -> None:
    """Print what was kept and dropped of each training source, then rows and bytes of each file written."""
    for name, counter in counts.items():
        print(f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counter.items())))
    total = 0
    for path in sorted(out.rglob("*.jsonl.gz")):
        size = path.stat().st_size
        total += size
        print(f"{path.relative_to(out)}  {sum(1 for _ in read_rows(path))} rows  {size} bytes")
    print(f"total  {total} bytes")


def main() -> int:
    """Build ``data/`` and print its counts; return 1 when the source folder is not one."""
    parser = argparse.ArgumentParser(description="Build the shipped data set from a folder of larger sources.")
    parser.add_argument("--source", type=Path, default=Path("../shared/data"), help="folder with train/ and eval/")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "data", help="folder to write"
    )
    args = parser.parse_args()
    if not (args.source / "train").is_dir() or not (args.source / "eval").is_dir():
        print(f"got --source {args.source}, expected a folder with train/ and eval/; pass its path", file=sys.stderr)
        return 1
    build_eval(args.source, args.out)
    counts = build_train(args.source, args.out, eval_keys(args.source))
    print_summary(args.out, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
