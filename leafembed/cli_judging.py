"""The commands that score models and hold scores against rules; printing only."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from leafembed.errors import Error, GateFailedError, UsageError
from leafembed.progress import print_json, say
from leafembed.text import read_texts

if TYPE_CHECKING:
    from leafembed.reports import Check

__all__ = ["compare", "evaluate", "gate", "overlap"]


def evaluate(args: argparse.Namespace) -> int:
    """Score one model, beside a reference where one is named."""
    from leafembed.comparing import CACHE_DIR
    from leafembed.judging import Wanted, export_card, export_mteb, judge_beside
    from leafembed.results import print_members, print_reports, say_missing

    if args.suite and args.languages:
        raise Error(f"--languages: got {' '.join(args.languages)}, expected none beside --suite, which names its own")
    if args.fetch and not args.suite:
        raise Error(
            "--fetch: got it without --suite, expected it beside one; --mteb fetches what the cache lacks anyway"
        )
    if args.fetch:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            raise Error("--fetch: got HF_HUB_OFFLINE=1, expected a hub to ask; unset it, or leave --fetch out")
    wanted = Wanted(data=args.data, tasks=args.tasks, languages=args.languages, max_rows=args.max_rows, mteb=args.mteb,
                    suite=args.suite, fetch=args.fetch)  # fmt: skip
    part = "".join(f"@{what}={n}" for what, n in (("exit", args.exit), ("dim", args.dim)) if n)
    model, reference = judge_beside(args.model + part, args.reference, wanted, cache_dir=args.cache_dir or CACHE_DIR,
                                    allow_failed=args.allow_failed)  # fmt: skip
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
        print_json(data | {"missing": dict(model.missing), "suite": list(model.members)})
    else:
        reports = [one.report for one in (model, reference) if one]
        names = [report.model.name for report in reports]
        labels = names if len(set(names)) == len(names) else [args.model, args.reference]
        print_members(model.members)
        print_reports(dict(zip(labels, reports, strict=True)), reference=labels[1] if reference else None)
    return 0


def compare(args: argparse.Namespace) -> int:
    """Score several models and hold them against each other."""
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
        print_json(data or comparison_data(models, reference=reference))
    else:
        print_comparison(models, reference=reference)
    return 0


def gate(args: argparse.Namespace) -> int:
    """Judge a bundle again from its stored scores."""
    from leafembed.results import print_checks
    from leafembed.single import judge_stored

    added = _renew(args) if args.renew else ()
    verdict, stage = judge_stored(args.bundle, args.recipe, args.set)
    if args.json:
        renewed = {"added": [check.name for check in added]} if args.renew else {}
        print_json({"stage": stage, **renewed, **verdict.to_dict()})
    else:
        print_checks(verdict)
    if not verdict.passed:
        raise GateFailedError(verdict, stage=stage)
    return 0


def _renew(args: argparse.Namespace) -> tuple[Check, ...]:
    """Bring a verdict up to date, say what that changed, and return the checks that it lacked."""
    from leafembed.ship.renewal import renew_verdict

    if args.recipe or args.set:
        raise UsageError("--renew: got it beside --recipe or --set, expected it alone: a verdict is by a bundle's own")
    added = renew_verdict(args.bundle)
    if not added:
        say("nothing to renew: the verdict is by today's rules")
        return added
    failed = sum(not check.passed for check in added)
    say(f"the verdict lacked {len(added)} checks, {failed} of which fail; card, plots and manifest are written anew")
    for check in added:
        say(f"new   {'pass' if check.passed else 'FAIL'}  {check}")
    return added


def overlap(args: argparse.Namespace) -> int:
    """Compare what two models find in an index of the first."""
    from leafembed.comparing import CACHE_DIR
    from leafembed.indexing import compare_index
    from leafembed.results import print_overlap

    result = compare_index(
        args.teacher,
        args.student,
        read_texts(args.documents),
        read_texts(args.queries),
        k=args.k,
        prompts=(args.document_prompt, args.query_prompt),
        cache_dir=args.cache_dir or CACHE_DIR,
        allow_failed=args.allow_failed,
    )
    if args.json:
        print_json(result)
    else:
        print_overlap(result)
    return 0
