"""The command ``leaf``: one function for each command, printing only; ``options.py`` says what each one takes.

Data goes to stdout and log lines to stderr. Exit status: 0 ok, 1 a known error (one line), 2 wrong usage, 3 the gate
refused or the run stopped itself. Heavy imports are inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.errors import Error, GateFailedError, StoppedError
from leafembed.options import build_parser
from leafembed.progress import say

if TYPE_CHECKING:
    from leafembed.recipe import Recipe
    from leafembed.types import Encoder

__all__ = ["COMMANDS", "main"]

_SHOWN = 8
"""Most lines about tasks that could not be scored."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = COMMANDS[args.command]
    try:
        status = command(args)
        sys.stdout.flush()
        return status
    except (GateFailedError, StoppedError) as error:
        return _refuse(error, status=3)
    except BrokenPipeError:  # the reader of our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Error, OSError) as error:  # an OSError, such as a full disk, names its file
        return _refuse(error, status=1)
    except KeyboardInterrupt:
        say("leaf: interrupted; run the same command again to go on")
        return 130


def _refuse(error: Exception, *, status: int) -> int:
    say(f"leaf: {' '.join(str(error).split())}")
    return status


def _run(args: argparse.Namespace) -> int:
    from leafembed.pipeline import run, train
    from leafembed.results import print_results

    recipe = _recipe(args)
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    show = _print_json if args.json else print_results
    if args.fresh:
        _remove_run(run_dir, args.recipe)
    try:
        if args.until == "train":
            facts = train(recipe, run_dir)
            _print_json({"student": str(run_dir / "student"), "steps": facts["steps"], "best_step": facts["best_step"]})
            return 0
        outcome = run(recipe, run_dir, allow_failed=args.allow_failed)
    except (GateFailedError, StoppedError):
        refused = run_dir / "refused"
        folder = refused if refused.is_dir() else run_dir / "bundle"
        say(f"the card with the reasons: {folder / 'README.md'}")
        show(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
        raise
    show(outcome.manifest)
    say(f"bundle: {outcome.folder}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from leafembed.planning import CAVEAT, plan_data, plan_lines, rank, ranking_lines

    recipe = _recipe(args)
    if args.layers is not None:
        ranking = rank(recipe, args.layers or None)
        data: dict[str, Any] = {**dataclasses.asdict(ranking), "caveat": CAVEAT}
        lines = ranking_lines(ranking)
    else:
        from leafembed.learn.plan import plan

        data = plan_data(plan(recipe), args.memory_gb)
        lines = plan_lines(data)
    if args.json:
        _print_json(data)
    else:
        print("\n".join(lines))
    return 0


def _embed(args: argparse.Namespace) -> int:
    from leafembed.prepare import embed

    learned = embed(_recipe(args))
    _print_json({"teacher": learned.teacher.ref.name, "corpus": learned.corpus.fingerprint,
                 "vectors": len(learned.teacher.store), "store": str(learned.teacher.store.folder)})  # fmt: skip
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from leafembed.judging import Wanted, export_card, export_mteb, judge
    from leafembed.recipe import is_url
    from leafembed.results import print_members, print_reports

    if args.suite and args.languages:
        raise Error(f"--languages: got {' '.join(args.languages)}, expected none beside --suite, which names its own")
    served = [name for name in (args.model, args.reference) if name and is_url(name)]
    if (args.served_model or args.api_key_file) and not served:
        raise Error("--served-model, --api-key-file: expected a URL as MODEL or --reference, got none")
    wanted = Wanted(data=args.data, tasks=args.tasks, languages=args.languages, max_rows=args.max_rows, mteb=args.mteb,
                    suite=args.suite)  # fmt: skip
    judged = judge(_open_part(args), wanted)
    reports = {"model": judged.report}
    if args.reference:
        reports["reference"] = judge(_open(args.reference, args), wanted).report
    for name, reason in list(judged.missing.items())[:_SHOWN]:
        say(f"not scored: {name}: {reason}")
    if len(judged.missing) > _SHOWN:
        say(f"not scored: {len(judged.missing) - _SHOWN} more; --json names them")
    if args.export_mteb:
        say(f"{export_mteb(args.export_mteb, judged)} result files of mteb below {args.export_mteb / 'results'}")
    if args.export_card:
        export_card(args.export_card, judged)
        say(f"model-index of {len(judged.report.results)} results in {args.export_card}")
    if args.json:
        data: dict[str, Any] = {name: report.to_dict() for name, report in reports.items()}
        if args.reference:
            data["retention"] = reports["model"].retention(reports["reference"])
        _print_json(data | {"missing": dict(judged.missing), "suite": list(judged.members)})
    else:
        print_members(judged.members)
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
        speed = result["speed"]
        slowest, fastest = speed["spread"]
        print(
            f"{speed['texts_per_second']:.0f} texts/s (slowest {slowest:.0f}, fastest {fastest:.0f}), "
            f"{speed['tokens_per_text']:.1f} tokens a text, batch {speed['batch_size']}, {speed['threads']} threads, "
            f"{result['machine']['cpu']}"
        )
    return 0


def _card(args: argparse.Namespace) -> int:
    from leafembed.ship.bundle import refresh_card

    print(refresh_card(args.bundle))
    return 0


def _report(args: argparse.Namespace) -> int:
    from leafembed.single import report_run

    print(report_run(args.run, args.out))
    return 0


def _info(args: argparse.Namespace) -> int:
    from leafembed.ship.bundle import read_verdict, verify

    manifest = verify(args.bundle)
    verdict, _ = read_verdict(args.bundle, manifest)
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
    "report": _report,
    "info": _info,
    "encode": _encode,
}


def _open(name: str, args: argparse.Namespace) -> Encoder:
    from leafembed.single import open_encoder

    return open_encoder(
        name, allow_failed=args.allow_failed, served_model=args.served_model, api_key_file=args.api_key_file
    )


def _open_part(args: argparse.Namespace) -> Encoder:
    from leafembed.judge.views import View

    encoder = _open(args.model, args)
    whole = args.dim is None and args.exit is None
    return encoder if whole else View(encoder, dim=args.dim, exit=args.exit)


def _recipe(args: argparse.Namespace) -> Recipe:
    from leafembed.recipe_io import load_recipe

    return load_recipe(args.recipe, args.set)


def _remove_run(run_dir: Path, recipe: Path) -> None:
    import shutil

    from leafembed.steps import RESOLVED

    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return
    if not (run_dir / RESOLVED).is_file() or recipe.resolve().is_relative_to(run_dir.resolve()):
        raise Error(f"--fresh: got {run_dir}, expected the folder of a run and nothing else; remove it by hand")
    shutil.rmtree(run_dir)


def _lines(path: Path) -> list[str]:
    from leafembed.text import decode_lines, read_lines, read_rows

    if str(path) == "-":
        # The bytes, since sys.stdin would decode as the locale says and pass damaged text on.
        return [line for _, line in decode_lines(sys.stdin.buffer, "standard input")]
    if ".jsonl" in path.suffixes:
        return [row["text"] for row in read_rows(path, texts=("text",))]
    return [line for _, line in read_lines(path)]


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))
