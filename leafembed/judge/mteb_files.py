"""Writes reports as mteb writes its own results, for whatever reads those: tables, leaderboards, plots.

    DIR/results/ORG__MODEL/REVISION/TASK.json                     with model_meta.json and run_settings.jsonl beside it
    DIR/results/ORG__MODEL/REVISION/experiments/PART/TASK.json    of a part of a model, such as embed_dim_128

``mteb.ResultCache(DIR).load_results()`` reads them back; parts too with ``load_experiments="match_name"``. A local task
keeps its own name and the hash of its data as dataset revision: it may resemble a task of mteb, but is not that one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from leafembed.judge.evaluate import Candidate
from leafembed.judge.mteb_model import import_mteb, model_meta
from leafembed.reports import TaskResult
from leafembed.stages import fingerprint
from leafembed.text import languages_of

__all__ = ["write_mteb_results"]


def write_mteb_results(
    folder: Path, encoder: Candidate, local: Iterable[TaskResult], native: Sequence[Any]
) -> list[Path]:
    """Write results into a folder of mteb results and return the files, one for each task.

    A result of the same model and task that is there is replaced; each file is complete or absent.

    Args:
        folder: Where mteb would keep its results; made if it is not there.
        encoder: What was scored.
        local: Results on local tasks.
        native: mteb's results on its own tasks, as ``MtebRun.native``.

    Raises:
        MissingExtraError: If mteb is not installed.
    """
    mteb, meta = import_mteb(), model_meta(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = mteb.ResultCache(Path(name))
        for result in [*_of_mteb(local), *native]:
            path = partial.get_task_result_path(result.task_name, meta).relative_to(name)
            settings = path.with_name("run_settings.jsonl")  # mteb adds to what is there
            if (folder / settings).is_file() and not (Path(name) / settings).is_file():
                (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / settings, Path(name) / settings)
            partial.save_to_cache(result, meta)
            written.append(folder / path)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        # Last what mteb looks for first.
        for file in sorted(files, key=lambda path: (path.name == "model_meta.json", path)):
            target = folder / file.relative_to(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    return written


def _of_mteb(results: Iterable[TaskResult]) -> list[Any]:
    """Each local task as mteb's ``TaskResult``; mteb's version stays empty, since mteb did not score it."""
    from mteb.results import TaskResult as MtebResult

    tasks: dict[str, list[TaskResult]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    return [
        MtebResult(
            dataset_revision=fingerprint([part.data for part in parts]),
            task_name=task.replace("/", "-"),
            mteb_version=None,
            scores={parts[0].split: [_entry(part) for part in parts]},
            evaluation_time=sum(part.seconds for part in parts),
            date=datetime.now(UTC),
        )
        for task, parts in tasks.items()
    ]


def _entry(result: TaskResult) -> dict[str, Any]:
    from mteb.languages.iso_mappings import _hf_langs_to_iso_lang_scripts  # mteb has no public name for it

    languages = _hf_langs_to_iso_lang_scripts(languages_of(result.lang)) or []
    scores = {**result.scores, "main_score": result.main_score}
    return {**scores, "hf_subset": result.lang, "languages": languages}
