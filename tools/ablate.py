"""Trains one student for each of a list of changes, each on top of those before it, and compares their dev scores.

    python tools/ablate.py recipes/ablations/why_v1.toml --out docs/results/why-v1 --set teacher.model=FOLDER

The list is a TOML file: ``recipe`` (relative to it), ``set`` (the scale, for all runs) and ``[[change]]`` tables of
``name`` and ``set``. Nothing is judged or quantised; what counts is the dev score after an equal number of steps,
beside that before the first step: training can make a model worse. An interrupted call goes on where it stopped, and
what results.json already says of the same changes to the same recipe at the same scale is kept, so that a list may grow
elsewhere.
Writes results.json, README.md and plot.png.
"""

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from leafembed.progress import say
from leafembed.ship.machine import machine_facts
from leafembed.ship.markdown import fixed, table

PLACES = ("teacher.model", "teacher.engine", "teacher.batch_tokens", "data.root", "eval.data", "cache_dir")
"""Keys of a recipe that say where and by what arithmetic, and do not change what is measured."""

_NAME_WIDTH = 42
"""Characters of a line of a change's name in the plot."""


def main() -> None:
    """Run what is missing and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="list of changes (TOML)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/NAME_OF_THE_PLAN)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; repeatable")
    args = parser.parse_args()
    plan = tomllib.loads(args.plan.read_text(encoding="utf-8"))
    recipe = args.plan.parent / plan["recipe"]
    runs = args.runs or Path("runs") / args.plan.stem
    overrides = [*plan["set"], *args.set]
    plan["besides"] = [setting for setting in args.set if setting.partition("=")[0] not in PLACES]
    plan["sha256"] = hashlib.sha256(recipe.read_bytes()).hexdigest()
    results = known(args.out, plan)
    for number, change in enumerate(plan["change"]):
        overrides += change["set"]
        if number >= len(results):
            say(f"{number + 1} of {len(plan['change'])}: {change['name']}")
            found = train(recipe, runs / f"{number}", overrides)
            results.append({**found, "name": change["name"], "set": change["set"]})
            write(args.out, plan, results)
    write(args.out, plan, results)


def known(folder: Path, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of an earlier call that stand for the first changes of the plan too."""
    try:
        before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if any(before["plan"].get(key) != plan[key] for key in ("recipe", "sha256", "set", "besides")):
        return []
    pairs = zip(before["results"], plan["change"], strict=False)
    same = itertools.takewhile(lambda pair: pair[0]["set"] == pair[1]["set"], pairs)
    return [{**result, "name": change["name"]} for result, change in same]


def train(recipe: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train one student and return its scores on dev and what it cost."""
    command = [sys.executable, "-m", "leafembed", "run", str(recipe), "--run-dir", str(folder), "--until", "train"]
    for override in overrides:
        command += ["--set", override]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    facts = json.loads((folder / "student" / "stage.json").read_text(encoding="utf-8"))["facts"]
    history = [entry for entry in facts["history"] if "dev" in entry]
    return {
        "dev": _scores(history[-1]),
        "start": _scores(history[0]),
        "floor": facts["floor"],
        "alarms": [alarm["message"] for alarm in facts["alarms"]],
        "steps": facts["steps"],
        "texts": facts["texts"],
        "seconds": facts["seconds"],
        "machine": machine_facts(),
    }


def _scores(entry: dict[str, Any]) -> dict[str, float]:
    """Dev score of an evaluation and, where there are several tasks, that of each."""
    return {"mean": entry["dev"], **{task: score for task, score in entry["dev_tasks"].items() if "/" in task}}


def write(folder: Path, plan: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write results.json, the table and the plot of what is there so far."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"plan": plan, "results": results}
    partial = folder / ".results.json.partial"
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "results.json")
    tasks = [name for name in results[0]["dev"] if name != "mean"]
    rows = [
        [
            *(str(number), result["name"], fixed(result["start"]["mean"], 3)),
            *(fixed(result["dev"][name], 3) for name in ("mean", *tasks)),
            *(fixed(result["floor"], 3), f"{result['texts']:,}", fixed(result["seconds"], 0)),
        ]
        for number, result in enumerate(results)
    ]
    heads = ["before", "after", *(f"after: {task}" for task in tasks), "static table", "text visits", "seconds"]
    text = table(["no.", "change, on top of those above", *heads], rows, words=2)
    page = f"{text}\n\n![dev score by change](plot.png)\n"
    (folder / "README.md").write_text(page, encoding="utf-8")
    plot(folder / "plot.png", results)


def plot(path: Path, results: list[dict[str, Any]]) -> None:
    """Draw the mean dev score before and after training, change by change, against the static floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.1, 1.0 + 0.5 * len(results)), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(results))
    scores = [result["dev"]["mean"] for result in results]
    axes.barh(places, scores, color="#0f766e", height=0.6, label="trained")
    axes.plot([result["start"]["mean"] for result in results], places, "|", color="#1f2933", markersize=16,
              markeredgewidth=2, label="before training")  # fmt: skip
    axes.plot([result["floor"] for result in results], places, "o", color="#c2410c", markersize=5,
              label="static table of the teacher")  # fmt: skip
    for place, score in zip(places, scores, strict=True):
        axes.annotate(f"{score:.3f}", (0, place), xytext=(5, 0), textcoords="offset points", va="center", size=8.5,
                      color="white", weight="bold")  # fmt: skip
    axes.set_yticks(places, [textwrap.fill(result["name"], _NAME_WIDTH) for result in results], size=9)
    axes.invert_yaxis()
    axes.set_xlabel("dev score, mean over tasks and languages")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=3)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
