"""The command ``leaf``: one function for each command, printing only; ``options.py`` says what each one takes.

Here are the commands of a recipe; the others are in ``cli_judging.py`` and ``cli_bundles.py``.

Data goes to stdout and log lines to stderr. Exit status: 0 ok, 1 a known error (one line), 2 wrong usage, 3 the gate
refused or the run stopped itself, 130 Ctrl-C. Heavy imports are inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed import cli_bundles, cli_judging
from leafembed.errors import Error, GateFailedError, StoppedError, UsageError, require
from leafembed.options import build_parser
from leafembed.progress import print_json, say

if TYPE_CHECKING:
    from leafembed.recipe import Recipe

__all__ = ["COMMANDS", "main"]


_GO_ON = {"run", "embed", "evaluate", "compare", "overlap", "pull"}
"""Commands that keep what they have done; ``encode`` does where it writes a file of what it can read again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Logging is not set up: Python writes warnings to stderr, and libraries that write their own would do it twice.
    """
    args = build_parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = COMMANDS[args.command]
    try:
        status = command(args)
        sys.stdout.flush()
        return status
    except (GateFailedError, StoppedError) as error:
        return _refuse(error, status=3)
    except UsageError as error:
        return _refuse(error, status=2)
    except BrokenPipeError:  # the reader of our output, such as head, has enough
        _drop_output()
        return 1
    except (Error, OSError) as error:  # an OSError, such as a full disk, names its file
        return _refuse(_named(error), status=1)
    except KeyboardInterrupt:
        say("leaf: interrupted; run the same command again to go on" if _goes_on(args) else "leaf: interrupted")
        return 130


def _goes_on(args: argparse.Namespace) -> bool:
    if args.command == "encode":
        return args.output is not None and Path("-") not in args.words and any(map(Path.is_file, args.words))
    return args.command in _GO_ON


def _named(error: Exception) -> Exception:
    """Say what to do about a full disk, and of an error without a file's name whether standard output is meant."""
    try:
        sys.stdout.flush()
    except OSError as broken:
        _drop_output()
        if isinstance(error, OSError) and error.filename is None:
            return OSError(broken.errno, broken.strerror, "standard output")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        return OSError(error.errno, f"{error.strerror}: make room, and run the same command again")
    return error


def _drop_output() -> None:
    """Let what could not be written go, or Python tries again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: Exception, *, status: int) -> int:
    say(f"leaf: {' '.join(str(error).split())}")
    return status


def _run(args: argparse.Namespace) -> int:
    from leafembed.guard import remove_run
    from leafembed.pipeline import run, train
    from leafembed.results import print_results

    recipe = _recipe(args)
    run_dir = args.run_dir or Path("runs") / args.recipe.stem
    show = print_json if args.json else print_results
    if args.fresh:
        remove_run(run_dir, args.recipe)
    try:
        if args.until == "train":
            require(args.trained is None, "--trained", args.trained, "nothing beside --until train")
            facts = train(recipe, run_dir)
            print_json({"student": str(run_dir / "student"), "steps": facts["steps"], "best_step": facts["best_step"]})
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
        print_json(data)
    else:
        print("\n".join(lines))
    return 0


def _embed(args: argparse.Namespace) -> int:
    from leafembed.prepare import embed

    learned = embed(_recipe(args))
    print_json({"teacher": learned.teacher.ref.name, "corpus": learned.corpus.fingerprint,
                 "vectors": len(learned.teacher.targets.store),
                 "store": str(learned.teacher.targets.store.folder)})  # fmt: skip
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "plan": _plan,
    "embed": _embed,
    "evaluate": cli_judging.evaluate,
    "compare": cli_judging.compare,
    "overlap": cli_judging.overlap,
    "quantize": cli_bundles.quantize,
    "export": cli_bundles.export,
    "benchmark": cli_bundles.benchmark,
    "choose": cli_bundles.choose,
    "card": cli_bundles.card,
    "report": cli_bundles.report,
    "info": cli_bundles.info,
    "gate": cli_judging.gate,
    "push": cli_bundles.push,
    "pull": cli_bundles.pull,
    "encode": cli_bundles.encode,
    "serve": cli_bundles.serve,
}


def _recipe(args: argparse.Namespace) -> Recipe:
    from leafembed.recipe_io import load_recipe

    return load_recipe(args.recipe, args.set)
