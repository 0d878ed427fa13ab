"""The verdict on a bundle, had again from the scores in its manifest.

By its own rules they must give what it says; by others they may give something else. What is stored twice must agree:
each main score with the score that it is, each check with the scores that it follows from, its limit with the recipe.
Who edits one of them, deletes a check or softens a rule is noticed. Who edits all consistently is not: see
``docs/bundle-format.md``.

A bundle of an older gate has a verdict that lacks checks which came later. That is not taken for an edit, and not for a
verdict of today either: ``renewal.py`` brings it up to date. One that holds a check by a rule that has changed since is
an error.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from leafembed.errors import BundleError, Error
from leafembed.evidence import Behaviour, Contamination
from leafembed.judge.gate import check
from leafembed.recipe import GateConfig
from leafembed.recipe_io import load_gate, min_rows_of
from leafembed.reports import FLOOR, FLOORS, Check, EvalReport, GateResult

__all__ = ["INT8", "REMEDY", "consistent", "judge_again", "read_verdict", "unasked"]

INT8 = "INT8 model"
"""Stage of a bundle's verdict; a student refused before it was quantised has ``student``."""

REMEDY = "the manifest was edited or damaged, so write the bundle again or download it again"
"""What to do about a manifest that cannot be believed."""

_LATER = (
    re.compile(r"(?!mean ).* above floor: bag of words"),
    re.compile(r"INT8 drop in .* in .*"),
)
"""Checks that the gate did not have from the first, each kind whole: what else a verdict lacks was taken out of it."""

_STAGES = {"student": "student", INT8: "int8"}  # and the report that is judged there


def read_verdict(manifest: Mapping[str, Any], where: str, *, outdated: bool = False) -> tuple[GateResult, str]:
    """Return the gate's verdict, computed again from the scores, and what it was on.

    Args:
        manifest: Of a bundle, or of a student that was refused before INT8.
        where: What an error calls it.
        outdated: Let the manifest's own verdict lack checks that came later; :func:`unasked` says which.

    Raises:
        BundleError: If it cannot be computed, or is not what the manifest says.
    """
    try:
        stored, stage = GateResult.from_dict(manifest["verdict"]), str(manifest["verdict"]["stage"])
        outcomes = [(bool(one["passed"]), str(one["name"])) for one in manifest["verdict"]["checks"]]
        claimed = bool(manifest["verdict"]["passed"])
        stopped = "diagnosis" in manifest.get("training", {})
    except (KeyError, TypeError, ValueError, Error) as error:
        raise BundleError(f"{where}: the verdict is not readable ({error!r}); {REMEDY}") from error
    if stopped and "files" not in manifest and not stored.passed:
        return stored, stage  # training stopped itself: there are no scores of a student to judge
    again = judge_again(manifest, where)
    later = unasked(manifest, again)
    asked = [one for one in again.checks if one not in later]
    for mine, theirs in zip_longest(asked, stored.checks):
        if not _agree(mine, theirs):
            said, found = (f"'{one}'" if one else "no such check" for one in (theirs, mine))
            raise BundleError(
                f"{where}: the verdict says {said}, the scores and the recipe give {found}; if an older leafembed "
                f"wrote it, the rules were others: run its recipe again; else {REMEDY}"
            )
    if (claimed, outcomes) != (all(one.passed for one in asked), [(one.passed, one.name) for one in asked]):
        raise BundleError(f"{where}: the stated outcome is not that of the checks; {REMEDY}")
    if later and not outdated:
        raise BundleError(
            f"{where}: the verdict lacks checks that the scores and the recipe give ({len(later)}, the first is "
            f"'{later[0]}'), which older leafembeds did not ask for; bring it up to date with leaf gate BUNDLE "
            "--renew, or open it as it is with --allow-failed (allow_failed=True)"
        )
    return again, stage


def unasked(manifest: Mapping[str, Any], verdict: GateResult) -> list[Check]:
    """Return the checks of a verdict by today's rules that the gate which wrote a manifest did not have."""
    asked = [check["name"] for check in manifest["verdict"]["checks"]]
    unknown = [kind for kind in _LATER if not any(map(kind.fullmatch, asked))]
    return [check for check in verdict.checks if any(kind.fullmatch(check.name) for kind in unknown)]


def judge_again(manifest: Mapping[str, Any], where: str, rules: GateConfig | None = None) -> GateResult:
    """Return the verdict that follows from the scores in a manifest.

    Args:
        manifest: Of a bundle, or of a student that was refused before INT8.
        where: What an error calls it.
        rules: Thresholds; ``None``: those of its own recipe.

    Raises:
        BundleError: If scores are missing, damaged or contradict each other.
        RecipeError: If other rules name a task or type that was not scored.
    """
    try:
        given = _given(manifest)
        if rules is None:
            return check(config=load_gate(manifest["recipe"].get("gate", {})), **given)
    except (KeyError, TypeError, ValueError, AttributeError, Error) as error:
        raise BundleError(f"{where}: what the verdict follows from is not readable ({error!r}); {REMEDY}") from error
    return check(config=rules, **given)


def _given(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the gate judges by, but for its rules."""
    stage = manifest["verdict"]["stage"]
    if stage not in _STAGES:
        raise ValueError(f"stage {stage!r}, expected one of {list(_STAGES)}")
    if stage != INT8 and "files" in manifest:
        raise ValueError(f"stage {stage!r} of a bundle, expected {INT8!r}")
    reports = {name: consistent(EvalReport.from_dict(report)) for name, report in manifest["reports"].items()}
    judged = _STAGES[stage]
    _require_models(manifest, reports)
    _require_tasks(manifest["recipe"], reports[judged])
    _require_few(manifest["recipe"], reports)
    given: dict[str, Any] = {
        "report": reports[judged],
        "reference": reports["teacher"],
        "floors": {name: report for name, report in reports.items() if name.startswith(FLOOR)},
        "contamination": [Contamination.from_dict(entry) for entry in manifest["contamination"]],
        "behaviour": Behaviour(**manifest["behaviour"][judged]),
    }
    if stage == INT8:
        cosine = manifest["int8"]["cosine_mean"]
        if not isinstance(cosine, float):  # without one there would be nothing to judge
            raise ValueError(f"int8.cosine_mean {cosine!r}, expected a number")
        given |= {"fp32": reports["student"], "int8_cosine": cosine}
    return given


def _require_tasks(recipe: Mapping[str, Any], report: EvalReport) -> None:
    """Every task that the recipe says it is judged by was scored: a weak one was not left out with its checks."""
    scored = {result.task for result in report.results} | {few.task for few in report.too_few}
    for name in recipe.get("eval", {}).get("test", ()):
        if not fnmatch.filter(scored, name):
            raise ValueError(f"no scores of {name}, which the recipe's eval.test names")


def _require_few(recipe: Mapping[str, Any], reports: Mapping[str, EvalReport]) -> None:
    """What has too few rows has fewer than the recipe asks for: no weak task was left out that way."""
    fewest = min_rows_of(recipe)
    for name, report in reports.items():
        for few in report.too_few:
            if not few.n < fewest:  # so that what is no number does not pass
                raise ValueError(
                    f"{name} on {few.task} ({few.lang}): {few.n} rows are too few by too_few, the recipe's "
                    f"eval.min_rows is {fewest}"
                )


def _require_models(manifest: Mapping[str, Any], reports: Mapping[str, EvalReport]) -> None:
    """Every floor is there, and the scores are those of the models that the manifest is about."""
    if missing := [name for name in FLOORS if name not in reports]:
        raise ValueError(f"no scores of {', '.join(missing)}")
    for model, names in {"teacher": ("teacher",), "student": ("student", "int8")}.items():
        for name in names:
            mine, theirs = manifest[model]["fingerprint"], name in reports and reports[name].model.fingerprint
            if theirs is not False and theirs != mine:
                raise ValueError(f"report {name!r} is of a model with fingerprint {theirs}, {model} has {mine}")


def consistent(report: EvalReport) -> EvalReport:
    """Return the report.

    Raises:
        ValueError: If a main score is not the score that it is stored as besides.
    """
    for result in report.results:
        if result.scores[result.metric] != result.main_score:
            raise ValueError(
                f"{report.model.name} on {result.task} ({result.lang}): main score {result.main_score}, "
                f"{result.metric} {result.scores[result.metric]}"
            )
    return report


def _agree(mine: Check | None, theirs: Check | None) -> bool:
    """Whether two checks are one; numbers to a billionth, since Python versions do not sum alike."""
    if mine is None or theirs is None or (mine.name, mine.at_least) != (theirs.name, theirs.at_least):
        return False
    pairs = ((mine.value, theirs.value), (mine.limit, theirs.limit))
    return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)
