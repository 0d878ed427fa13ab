"""What a model is for, and its limits, as far as the manifest's numbers say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from leafembed.recipe_io import softer_rules
from leafembed.reports import FLOOR, SHIPPED, EvalReport, GateResult
from leafembed.ship.markdown import count, fixed
from leafembed.text import languages_of

__all__ = ["purpose_section"]

_USES = {
    "STS": "how alike two sentences are",
    "Retrieval": "finding the passage that answers a query",
    "Classification": "features for a linear classifier",
    "Clustering": "grouping texts by topic",
    "PairClassification": "telling paraphrases from other pairs",
    "Reranking": "ordering candidates of a first search",
    "BitextMining": "finding translations",
    "Agreement": "nearness as the teacher sees it",
}
"""Task types, and what a user would do with a model that is good at them."""

_UNKNOWN = "und"
_WORST = 3
_MOST = 12
_CHARS_PER_TOKEN = 4  # about, in English


def purpose_section(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``uses`` and ``limits``, lines for the card's lists, and ``softer``, rules that ask for less than usual.

    There are no uses where the gate refused. A language counts as measured where a task scored it; a pair of languages
    such as ``deu-eng`` is no language.
    """
    reports = {name: EvalReport.from_dict(report) for name, report in manifest["reports"].items()}
    shipped = next((reports[name] for name in SHIPPED if name in reports), None)
    if shipped is None:  # training stopped itself: there is no model
        return {"uses": [], "limits": [], "softer": []}
    passed = GateResult.from_dict(manifest["verdict"]).passed
    floors = {name: report for name, report in reports.items() if name.startswith(FLOOR)}
    return {
        "uses": _uses(shipped, reports["teacher"], floors) if passed else [],
        "softer": softer_rules(manifest["recipe"]),
        "limits": list(_limits(manifest, shipped, reports["teacher"])),
    }


def _uses(shipped: EvalReport, teacher: EvalReport, floors: Mapping[str, EvalReport]) -> list[str]:
    lines = []
    for kind, score in shipped.by_type().items():
        langs = sorted({result.lang for result in shipped.results if result.type == kind})
        pairs = [lang for lang in langs if "-" in lang]
        alone = [lang for lang in langs if lang not in pairs]
        places = [_listed(some, what) for some, what in ((alone, "languages"), (pairs, "pairs of languages")) if some]
        where = f"in {' and between '.join(places)}" if alone else f"between {places[0]}"
        use = _USES.get(kind, kind)
        line = f"{kind}, {use}: {fixed(score, 3)} of the teacher's {fixed(teacher.by_type()[kind], 3)}; {where}"
        for name, floor in floors.items():
            if (theirs := floor.by_type()[kind]) >= score:
                line += f". {name.removeprefix(FLOOR).capitalize()} alone scores {fixed(theirs, 3)}"
        lines.append(line)
    return lines


def _limits(manifest: Mapping[str, Any], shipped: EvalReport, teacher: EvalReport) -> Iterable[str]:
    scored = {result.type for result in shipped.results}
    if missing := [f"{kind} ({use})" for kind, use in _USES.items() if kind not in scored and kind != "Agreement"]:
        yield f"Not measured, so nothing is claimed: {'; '.join(missing)}."
    rows = manifest["corpus"]["languages"]
    trained = set(rows) - {_UNKNOWN}
    judged = {"-".join(languages_of(result.lang)) for result in shipped.results}
    if unjudged := sorted(trained - judged, key=lambda lang: (-rows[lang], lang)):
        yield f"Trained on but not measured in {_listed(unjudged, 'languages')}."
    if unseen := sorted(lang for lang in judged - trained if "-" not in lang and lang != _UNKNOWN):
        yield f"Measured but no training text in {_listed(unseen, 'languages')}."
    if not any("-" in lang for lang in judged) and len(trained) > 1:
        yield "Search and comparison across languages were not measured."
    if worst := _farthest(shipped, teacher):
        yield f"Farthest from the teacher: {', '.join(worst)}."
    if length := manifest["student"]["max_seq_length"]:
        yield f"Text after the first {count(length)} tokens is ignored; split longer texts."
        longest = manifest["recipe"].get("data", {}).get("max_chars")
        if longest is not None and longest < _CHARS_PER_TOKEN * length:
            yield f"Learned from texts of at most {count(longest)} characters: of longer ones nothing was taught."
    yield "What the teacher gets wrong or holds against groups of people, the student has learned with the rest."


def _farthest(shipped: EvalReport, teacher: EvalReport) -> list[str]:
    """The results in which least of the teacher's score is left."""
    found = []
    for result in shipped.results:
        base = teacher.score(result.task, result.lang)
        if base is not None and base > 0:
            found.append((result.main_score / base, f"{result.task} in {result.lang}", result.main_score, base))
    if len(found) <= _WORST:
        return []
    return [f"{name} ({fixed(score, 3)} of {fixed(base, 3)})" for _, name, score, base in sorted(found)[:_WORST]]


def _listed(names: list[str], what: str) -> str:
    if len(names) <= _MOST:
        return ", ".join(names)
    return f"{len(names)} {what}, among them {', '.join(names[:_MOST])}"
