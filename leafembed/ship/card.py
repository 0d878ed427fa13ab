"""Renders the model card from the manifest, and from nothing else.

Every number on the card is a number of the manifest, or a ratio, difference or mean of such numbers. A refused model's
card opens with the refusal. The text around the numbers is in ``card.md.jinja``; the plots are in ``plots.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from leafembed.reports import EvalReport, GateResult
from leafembed.ship.contamination import contamination_section
from leafembed.ship.engine_table import engines_section
from leafembed.ship.licence_ids import hub_licence
from leafembed.ship.markdown import bullets, count, fixed, ratio, table, to_toml
from leafembed.ship.model_index import model_index
from leafembed.ship.plots import plots_of
from leafembed.ship.point_table import points_section
from leafembed.ship.purpose import purpose_section
from leafembed.ship.scores import score_tables
from leafembed.ship.templates import fill_markdown
from leafembed.ship.vocabulary import vocabulary_section
from leafembed.text import normalise_lang

__all__ = ["CARD", "MANIFEST", "gemma_notice", "render_card"]

CARD, MANIFEST = "README.md", "manifest.json"
"""Files of a bundle that are not the model's; its plots are named in ``plots.py``."""

_WELL = 100  # training texts below which a language counts as missing, see ``learn/alarms.py``
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_UNKNOWN, _MIXED = "und", "all"
_HASHES = "sha256"  # of a source's files, by blanks
_TOP_LANGUAGES = 20

_Manifest = Mapping[str, Any]


def render_card(manifest: _Manifest) -> str:
    """Return the card as Markdown with the front matter of a model hub.

    A manifest of a model refused before INT8 may lack ``int8``, ``speed``, ``files`` and the INT8 report; one of a run
    that stopped itself lacks the student's report too, and has ``training.diagnosis``.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    sections = (
        _head,
        _alarms,
        score_tables,
        purpose_section,
        contamination_section,
        points_section,
        engines_section,
        _body,
    )
    values = {name: value for section in sections for name, value in section(manifest).items()}
    return fill_markdown("card.md.jinja", values)


def gemma_notice(manifest: _Manifest) -> str:
    """Return the sentence that the Gemma terms ask for; empty when no licence in the lineage is Gemma's."""
    if not any("gemma" in (manifest[model]["licence"] or "").lower() for model in ("teacher", "student")):
        return ""
    return "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


def _head(manifest: _Manifest) -> dict[str, Any]:
    """The front matter, what it is, and how it is used and licensed."""
    teacher, student = manifest["teacher"], manifest["student"]
    rows = {lang: n for lang, n in manifest["corpus"]["languages"].items() if lang != _UNKNOWN}
    languages, well = len(rows), sum(n >= _WELL for n in rows.values())
    engine = "INT8 weights, for CPUs" if "int8" in manifest["reports"] else "not quantized"
    reads = f"reads up to {student['max_seq_length']} tokens" if student["max_seq_length"] else "reads any length"
    prompts = student["prompts"]
    return {
        "name": manifest["name"],
        "front_matter": _front_matter(manifest),
        "summary": f"Text embeddings of {student['dim']} dimensions, distilled from {teacher['name']} "
        f"({teacher['dim']} dimensions); {engine}; {reads}; trained on text in {languages} "
        f"language{'s' if languages != 1 else ''}"
        + (f", {well} of them with {_WELL} texts or more." if well < languages else "."),
        "dim": student["dim"],
        "prompts": table(["prompt_name", "text"], [[k, json.dumps(v)] for k, v in prompts.items()], words=2)
        if any(prompts.values())
        else "",
        "named": list(prompts),
        "recipe": to_toml(manifest["recipe"]),
        "licences": bullets({f"{m} {manifest[m]['name']}": _licence(manifest[m]) for m in ("teacher", "student")}),
        "gemma_notice": gemma_notice(manifest),
    }


def _front_matter(manifest: _Manifest) -> str:
    # Of a pair such as de-en both; languages that were trained and not measured are no claim for a hub to show.
    measured = {
        part for report in manifest["reports"].values() for r in report["results"] for part in r["lang"].split("-")
    }
    tags = (re.match(r"[a-z]{2,3}(?![a-z])", tag.lower()) for tag in measured - {_MIXED})
    languages = sorted({normalise_lang(tag[0]) for tag in tags if tag} - {_UNKNOWN, "mul"})
    int8 = "int8" in manifest["reports"]
    items: dict[str, Any] = {
        "language": languages,
        "library_name": "openvino" if int8 else None,
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-similarity", "feature-extraction", "distillation", *(["int8"] if int8 else [])],
        "base_model": manifest["teacher"]["name"],
        **hub_licence("gemma" if gemma_notice(manifest) else manifest["student"]["licence"]),
    }
    if not _HUB_ID.fullmatch(manifest["teacher"]["name"]):
        del items["base_model"]
    # JSON is YAML, and quotes what YAML would misread: the language tag "no" is false there.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in items.items() if value]
    return "\n".join([*lines, *_model_index(manifest)])


def _model_index(manifest: _Manifest) -> list[str]:
    """What hubs show beside a model: the scores of what ships, of a model that passed."""
    report = manifest["reports"].get("int8")
    if report is None or not GateResult.from_dict(manifest["verdict"]).passed:
        return []
    (index,) = model_index(manifest["name"], EvalReport.from_dict(report).results)
    entries = [f"  - {json.dumps(entry, ensure_ascii=False)}" for entry in index["results"]]
    return ["model-index:", f"- name: {json.dumps(index['name'], ensure_ascii=False)}", "  results:", *entries]


def _alarms(manifest: _Manifest) -> dict[str, Any]:
    """What rang in training, and the diagnosis of a run that stopped itself."""
    training = manifest["training"]
    rows = [
        [f"{alarm['name']}{' (fatal)' if alarm['fatal'] else ''}", count(alarm["step"]), alarm["message"]]
        for alarm in training.get("alarms", ())
    ]
    return {
        "diagnosis": training.get("diagnosis", ""),
        "alarms": table(["alarm", "step", "what and why"], rows, words=3) if rows else "",
    }


def _body(manifest: _Manifest) -> dict[str, Any]:
    """Speed, size, training and where everything came from."""
    corpus, training, sizes = manifest["corpus"], manifest["training"], manifest.get("sizes", {})
    total = sizes.get("total_bytes")
    # Without the card itself, which cannot hold its own hash.
    files = {name: file for name, file in manifest.get("files", {}).items() if name != CARD}
    return {
        "machine": _machine(manifest["machine"]),
        "speed": _speed(manifest["speed"]) if manifest.get("speed") else "",
        "sizes": _sizes(sizes["parts"]) if sizes.get("parts") else "",
        "files": table(
            ["file", "sha256 begins", "bytes"],
            [[name, file["sha256"][:16], count(file["bytes"])] for name, file in sorted(files.items())],
            words=2,
        )
        if files
        else "",
        "total_mb": fixed(total / 1e6, 2) if total else "",
        "training": bullets(_training(training)),
        "plots": plots_of(manifest),
        "parts": [to_toml(part["recipe"]) if "recipe" in part else "" for part in training.get("earlier", ())],
        "corpus": bullets(
            {
                "training rows": count(corpus["train_rows"]),
                "validation rows": count(corpus["validation_rows"]),
                "training rows by language": _languages(corpus["languages"]),
            }
        ),
        "sources": _sources(corpus["sources"]) if corpus["sources"] else "",
        "counts": table(["reason", "rows"], [[key, count(n)] for key, n in corpus["counts"].items()]),
        "count_rows": len(corpus["counts"]),
        "provenance": _provenance(manifest),
        "vocabulary": vocabulary_section(manifest["vocabulary"]) if "vocabulary" in manifest else None,
        "unmeasured": bullets(manifest["recipe"].get("eval", {}).get("unmeasured", {})),
    }


def _training(training: Mapping[str, Any]) -> dict[str, object]:
    planned = training.get("planned_steps", training["steps"])
    early = f" of {count(planned)} planned" if planned != training["steps"] else ""
    metric = training.get("best_metric", "dev")
    facts: dict[str, object] = {
        "steps": count(training["steps"]) + early,
        f"best step, by {'dev score' if metric == 'dev' else metric}": count(training["best_step"]),
        "texts seen": count(training["texts"]) if "texts" in training else None,
        "tokens seen": count(training["tokens"]) if "tokens" in training else None,
        "time": f"{fixed(training['seconds'], 0)} s",
        "precision": training["precision"],
        "machine": _where(training["where"]) if "where" in training else None,
    }
    for number, part in enumerate(training.get("earlier", ()), start=1):
        seen = f"{count(part['texts'])} texts in {count(part['steps'])} steps, {fixed(part['seconds'], 0)} s"
        facts[f"training before it, part {number}"] = (
            f"{seen}, corpus {part['where']['corpus']}, {_where(part['where'])}"
        )
    if rounded := training.get("rounded"):
        facts["matrices, rounded to 8 bits after the scores of its steps"] = (
            f"mean cosine {fixed(rounded['cosine_mean'], 4)} to before, least {fixed(rounded['cosine_min'], 4)}, "
            f"{count(rounded['texts'])} held-out texts"
        )
    if averaged := training.get("averaged"):
        name = f"mean of the checkpoints of steps {', '.join(count(step) for step in averaged['steps'])}"
        values = f"{fixed(averaged['value'], 4)} against {fixed(averaged['best'], 4)}"
        facts[name] = f"{'kept' if averaged['kept'] else 'not kept'}, {values}"
    for target in training.get("targets", []):
        outcome = "reached" if target["reached"] else "NOT REACHED"
        facts[f"target {target['name']}"] = f"{fixed(target['value'], 4)}, at most {target['limit']:g}: {outcome}"
    return facts


def _where(where: Mapping[str, Any]) -> str:
    """Where a student was trained, which need not be where it was judged."""
    return ", ".join(filter(None, [where["gpu"], _machine(where["machine"])]))


def _machine(machine: Mapping[str, Any]) -> str:
    memory = f"{machine['memory_gb']} GB memory" if machine["memory_gb"] else ""
    facts = [machine["cpu"], f"{machine['cores']} cores", memory, machine["os"], " ".join(machine["isa"])]
    return ", ".join(fact for fact in facts if fact)


def _speed(entries: Sequence[Mapping[str, Any]]) -> str:
    teachers = [entry for entry in entries if entry["name"].startswith("teacher")]
    rows = [
        [
            e["name"],
            fixed(e["texts_per_second"], 1),
            f"{fixed(e['spread'][0], 1)} to {fixed(e['spread'][1], 1)}",
            *(ratio(e["texts_per_second"], t["texts_per_second"]) for t in teachers),
            fixed(e["tokens_per_text"] or None, 1),
            e["threads"],
            e["batch_size"],
            fixed(e["size_mb"] or None, 1),
        ]
        for e in entries
    ]
    ratios = [f"/ {teacher['name']}" for teacher in teachers]
    return table(["encoder", "texts/s", "range", *ratios, "tokens/text", "threads", "batch", "MB"], rows)


def _sizes(parts: Sequence[Mapping[str, Any]]) -> str:
    columns = ("parameters", "fp32_mb", "int8_mb")
    cells = [[part["part"], *(part.get(name) for name in columns)] for part in parts]
    totals = [sum(values) if None not in values else None for values in list(zip(*cells, strict=True))[1:]]
    rows = [[name, count(n), fixed(fp32, 2), fixed(int8, 2)] for name, n, fp32, int8 in [*cells, ["total", *totals]]]
    return table(["part", "parameters", "fp32 MB", "INT8 MB"], rows)


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for source in sources for key in source if key != _HASHES))
    rows = [[source.get(column) for column in columns] for source in sources]
    if any(_HASHES in source for source in sources):
        columns = [*columns, "sha256 begins"]
        begins = [" ".join(one[:16] for one in source.get(_HASHES, "").split()) for source in sources]
        rows = [[*row, begin] for row, begin in zip(rows, begins, strict=True)]
    return table(columns, rows, words=len(columns))


def _languages(languages: Mapping[str, int]) -> str:
    ranked = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{tag} {count(n)}" for tag, n in islice(ranked, _TOP_LANGUAGES))
    rest = len(ranked) - _TOP_LANGUAGES
    return f"{text}, and {rest} more" if rest > 0 else text


def _provenance(manifest: _Manifest) -> str:
    facts: dict[str, object] = {"created": manifest["created"], "leafembed": manifest["leafembed"]}
    for model in ("teacher", "student"):
        ref = manifest[model]
        facts[model] = ref["name"]
        facts[f"{model} revision"] = ref["revision"]
        facts[f"{model} fingerprint"] = ref["fingerprint"]
    facts["corpus fingerprint"] = manifest["corpus"]["fingerprint"]
    facts["seed"] = manifest["recipe"].get("seed")
    facts["machine"] = _machine(manifest["machine"])
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return bullets(facts)


def _licence(ref: Mapping[str, Any]) -> str:
    return ref["licence"] or "not stated"
