"""Named sets of evaluations, and what of each can be scored here: from local files, or from the cache of ``datasets``.

A published set is often not to be had: its licence forbids passing it on, or the machine reaches no hub. A suite says
so by name instead of leaving the member out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leafembed.errors import DataError
from leafembed.judge.mteb_run import find_mteb_tasks, is_cached
from leafembed.judge.tasks import find_tasks
from leafembed.text import normalise_lang

__all__ = ["COUNTERPARTS", "SUITES", "Counterpart", "Found", "Member", "open_suite"]


@dataclass(frozen=True, slots=True)
class Counterpart:
    """A local task made from the same published set as a task of mteb.

    Attributes:
        id: Name or glob of the local task; of it those languages count that mteb's task has.
        differs: How its rows differ from mteb's; empty: not that we know of.
        subsets: It stands for these subsets of mteb's task and no more; empty: for any.
    """

    id: str
    differs: str = ""
    subsets: tuple[str, ...] = ()


COUNTERPARTS = {
    "STSBenchmark": Counterpart("sts/stsb_multi_mt.test"),
    "STSBenchmarkMultilingualSTS": Counterpart("sts/stsb_multi_mt.test"),
    "STS12": Counterpart("sts/sts12.test"),
    "STS13": Counterpart("sts/sts13.test"),
    "STS14": Counterpart("sts/sts14.test"),
    "STS15": Counterpart("sts/sts15.test"),
    "STS16": Counterpart("sts/sts16.test"),
    "STS17": Counterpart("sts/sts17_en.test", subsets=("en-en",)),
    "SICK-R": Counterpart("sts/sick_r.test", differs="4,927 of 9,927 pairs"),
    "Tatoeba": Counterpart("bitext/tatoeba"),
    "Banking77Classification": Counterpart("classification/banking77"),
    "AmazonCounterfactualClassification": Counterpart(
        "classification/amazon_counterfactual", differs="8 examples of each label, mteb's task draws 32"
    ),
    "PawsXPairClassification": Counterpart("pair/pawsx", differs="test in 2 of 7 languages"),
    "SciFact": Counterpart("retrieval/scifact"),
    "XQuADRetrieval": Counterpart("retrieval/xquad_*"),
}
"""mteb's tasks that local files can stand for: of the same source, written anew, at no commit of mteb's."""


@dataclass(frozen=True, slots=True)
class Member:
    """One evaluation of a suite.

    Attributes:
        name: What it is called there.
        mteb: mteb's task or benchmark.
        subsets: What of it is scored; empty: all.
        local: The local task that stands for it; ``None``: as :data:`COUNTERPARTS` says.
    """

    name: str
    mteb: str
    subsets: tuple[str, ...] = ()
    local: Counterpart | None = None


_ACROSS = ("en-ar", "en-de", "en-tr", "es-en", "fr-en", "it-en", "nl-en")

SUITES: dict[str, tuple[Member, ...]] = {
    "first-model": (
        Member("STSBenchmark", "STSBenchmark"),
        Member("STS22 by language", "STS22"),
        Member("STS22.v2 by language", "STS22.v2"),
        Member(
            "cross-lingual STS",
            "STS17",
            _ACROSS,
            Counterpart("sts/stsb_multi_mt.test@cross", differs="STSBenchmark, machine translated"),
        ),
        Member("MTEB, English", "MTEB(eng, v2)"),
        Member("MTEB, multilingual", "MTEB(Multilingual, v2)"),
    ),
}
"""``first-model``: what the first model distilled here was judged by, in mteb's present editions too."""


@dataclass(frozen=True, slots=True)
class Found:
    """One task of a member, and where its data is.

    Attributes:
        member: Name of the member.
        name: mteb's name of the task.
        where: ``cache``, ``hub``: mteb scores it from there; ``local``: ``local`` does, if it turns out to have rows
            in these languages; ``missing``: nothing here can.
        task: mteb's task, narrowed to the subsets that are scored.
        local: What stands for it, where ``where`` is ``local``.
    """

    member: str
    name: str
    where: Literal["cache", "hub", "local", "missing"]
    task: Any
    local: Counterpart | None = None

    @property
    def languages(self) -> list[str]:
        """Languages of the subsets that are scored, normalised."""
        tags = self.task.metadata.hf_subsets_to_langscripts
        return sorted({normalise_lang(tag) for subset in self.task.hf_subsets for tag in tags[subset]})


def open_suite(name: str, data: Path, *, fetch: bool = False) -> list[Found]:
    """Return every task of every member of a suite, and where its data is; nothing is loaded, and no hub asked yet.

    mteb's own data is taken where the cache has it, or always where it may be fetched; local files else. A task that
    two members name comes twice.

    Args:
        name: One of :data:`SUITES`.
        data: Folder of local tasks; it may be missing.
        fetch: Whether what the cache lacks is to come from the hub.

    Raises:
        MissingExtraError: If mteb is not installed.
        DataError: If there is no such suite.
    """
    if name not in SUITES:
        raise DataError(f"suite: got {name!r}, expected one of {sorted(SUITES)}")
    return [
        _locate(member, task, data, fetch)
        for member in SUITES[name]
        for task in find_mteb_tasks([member.mteb], subsets=member.subsets)
    ]


def _locate(member: Member, task: Any, data: Path, fetch: bool) -> Found:
    name = task.metadata.name
    if is_cached(task):
        return Found(member.name, name, "cache", task)
    if fetch:
        return Found(member.name, name, "hub", task)
    local = member.local or COUNTERPARTS.get(name)
    if local is not None and local.subsets in ((), tuple(task.hf_subsets)) and find_tasks(data, local.id):
        return Found(member.name, name, "local", task, local)
    return Found(member.name, name, "missing", task)
