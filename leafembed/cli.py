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

from leafembed.errors import Error, GateFailedError, MissingExtraError, StoppedError, require
from leafembed.options import build_parser
from leafembed.progress import say
from leafembed.text import read_texts

if TYPE_CHECKING:
    from leafembed.recipe import Recipe

__all__ = ["COMMANDS", "main"]


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
    from leafembed.guard import remove_run
    from leafembed.pipeline import run, train
    from leafembed.results import print_results

    recipe = _recipe(args)
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    show = _print_json if args.json else print_results
    if args.fresh:
        remove_run(run_dir, args.recipe)
    try:
        if args.until == "train":
            require(args.trained is None, "--trained", args.trained, "nothing beside --until train")
            facts = train(recipe, run_dir)
            _print_json({"student": str(run_dir / "student"), "steps": facts["steps"], "best_step": facts["best_step"]})
            return 0
        outcome = run(recipe, run_dir, allow_failed=args.allow_failed, trained=args.trained)
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
    from leafembed.comparing import CACHE_DIR
    from leafembed.judging import Wanted, export_card, export_mteb, judge_beside
    from leafembed.results import print_members, print_reports, say_missing

    if args.suite and args.languages:
        raise Error(f"--languages: got {' '.join(args.languages)}, expected none beside --suite, which names its own")
    wanted = Wanted(data=args.data, tasks=args.tasks, languages=args.languages, max_rows=args.max_rows, mteb=args.mteb,
                    suite=args.suite)  # fmt: skip
    model, reference = judge_beside(args.model, args.reference, wanted, cache_dir=args.cache_dir or CACHE_DIR,
                                    allow_failed=args.allow_failed, dim=args.dim, exit=args.exit)  # fmt: skip
    kept = model.report.retention(reference.report) if reference else None
    say_missing(model.missing)
    if args.export_mteb:
        say(f"{export_mteb(args.export_mteb, model)} result files of mteb below {args.export_mteb / 'results'}")
    if args.export_card:
        export_card(args.export_card, model)
        say(f"model-index of {len(model.report.results)} results in {args.export_card}")
    if args.json:
        data: dict[str, Any] = {"model": model.report.to_dict()}
        if reference:
            data |= {"reference": reference.report.to_dict(), "retention": kept}
        _print_json(data | {"missing": dict(model.missing), "suite": list(model.members)})
    else:
        reports = [one.report for one in (model, reference) if one]
        names = [report.model.name for report in reports]
        labels = names if len(set(names)) == len(names) else [args.model, args.reference]
        print_members(model.members)
        print_reports(dict(zip(labels, reports, strict=True)), reference=labels[1] if reference else None)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from leafembed.comparing import CACHE_DIR, judge_all, read_tasks
    from leafembed.comparison_page import PAGE, comparison_data, write_comparison
    from leafembed.results import print_comparison

    tasks = read_tasks(args.data, args.tasks, languages=args.languages, max_rows=args.max_rows)
    specs = [*args.models, *([args.reference] if args.reference else [])]
    models = judge_all(specs, tasks, cache_dir=args.cache_dir or CACHE_DIR, allow_failed=args.allow_failed)
    reference = next((model for model in models if model.spec == args.reference), None)
    data = None
    if args.out:
        data = write_comparison(models, args.out, reference=reference)
        say(f"table and plot: {args.out / PAGE}")
    if args.json:
        _print_json(data or comparison_data(models, reference=reference))
    else:
        print_comparison(models, reference=reference)
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from leafembed.single import quantize_folder

    folder = quantize_folder(args.student, args.out, group_size=args.group_size, exits=args.exits)
    _print_json({"folder": str(folder), "mb": sum(p.stat().st_size for p in folder.iterdir()) / 1e6})
    return 0


def _export(args: argparse.Namespace) -> int:
    from leafembed.exporting import export
    from leafembed.results import print_export

    result = export(
        args.source, args.out, format=args.format, texts=read_texts(args.texts), allow_failed=args.allow_failed
    )
    if args.json:
        _print_json(result)
    else:
        print_export(result["files"], texts=result["texts"])
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    from leafembed.results import print_speed
    from leafembed.single import time_encoder

    result = time_encoder(args.bundle, read_texts(args.texts), threads=args.threads, allow_failed=args.allow_failed)
    if args.json:
        _print_json(result)
    else:
        print_speed(result["speed"], result["machine"])
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
    from leafembed.results import print_info
    from leafembed.ship.bundle import verify
    from leafembed.ship.verdict import read_verdict

    manifest = verify(args.bundle)
    verdict, _ = read_verdict(manifest, str(args.bundle))
    if args.json:
        _print_json({**manifest, "verified": True, "passed": verdict.passed})
        return 0
    print_info(manifest, verdict)
    return 0


def _gate(args: argparse.Namespace) -> int:
    from leafembed.results import print_checks
    from leafembed.single import judge_stored

    verdict, stage = judge_stored(args.bundle, args.recipe, args.set)
    if args.json:
        _print_json({"stage": stage, **verdict.to_dict()})
    else:
        print_checks(verdict)
    if not verdict.passed:
        raise GateFailedError(verdict, stage=stage)
    return 0


def _encode(args: argparse.Namespace) -> int:
    import numpy as np

    import leafembed

    encoder = leafembed.load(args.bundle, allow_failed=args.allow_failed, threads=args.threads, exit=args.exit)
    if args.prompt_name is not None and args.prompt_name not in encoder.prompts:
        raise Error(f"--prompt-name: got {args.prompt_name!r}, the bundle knows {', '.join(encoder.prompts) or 'none'}")
    try:
        vectors = encoder.encode(read_texts(args.file), prompt_name=args.prompt_name, dim=args.truncate_dim)
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


def _serve(args: argparse.Namespace) -> int:
    try:
        from leafembed.serve.command import run_server
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve") from error

    return run_server(args, key=os.environ.get("LEAF_API_KEY", ""))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "embed": _embed,
    "evaluate": _evaluate,
    "compare": _compare,
    "quantize": _quantize,
    "export": _export,
    "benchmark": _benchmark,
    "card": _card,
    "report": _report,
    "info": _info,
    "gate": _gate,
    "encode": _encode,
    "serve": _serve,
}


def _recipe(args: argparse.Namespace) -> Recipe:
    from leafembed.recipe_io import load_recipe

    return load_recipe(args.recipe, args.set)


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))
