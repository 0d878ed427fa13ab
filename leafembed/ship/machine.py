"""Facts about the machine and the installed packages, which every measured number depends on."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["cpu_flags", "machine_facts", "peak_memory_mb", "usable_cores", "versions"]

_ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
"""Instruction sets that decide how fast INT8 and bf16 products are."""

_CGROUP, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores(cgroup: Path = _CGROUP, own_groups: Path = _OWN_GROUPS) -> int:
    """Return how many CPU cores this process may keep busy.

    That is at most those that it may run on, and no more than the CPU time that its container is given, rounded up: a
    thread beyond it would only make the others wait.

    Args:
        cgroup: Where the limits of control groups stand.
        own_groups: Says which of them this process is in.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = min((_cpu_quota(folder) for folder in _groups(cgroup, own_groups)), default=math.inf)
    return cores if quota == math.inf else max(1, min(cores, math.ceil(quota - 1e-9)))


def _groups(cgroup: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of the control groups around this process, of version 2 and 1; a container sees its own as the root."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    for root, controller in ((cgroup, ""), (cgroup / "cpu", "cpu")):
        yield root
        for line in lines:
            _, controllers, path = line.split(":", 2)
            folder = root / path.lstrip("/")
            while controller in controllers.split(",") and folder != root:
                yield folder
                folder = folder.parent


def _cpu_quota(folder: Path) -> float:
    """CPUs' worth of time that a control group allows, of version 2 or 1; infinity: no limit is set."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text(encoding="utf-8").strip() for name in names)
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # version 2 says "max"
        return math.inf


def cpu_flags() -> frozenset[str]:
    """Instruction sets as ``/proc/cpuinfo`` names them; empty where the system or the CPU does not say."""
    return frozenset(_cpuinfo().get("flags", "").split())


def machine_facts() -> dict[str, Any]:
    """Return the machine as plain data.

    Keys: ``cpu`` (model name), ``cores`` (usable ones), ``memory_gb`` (10^9 bytes; ``None`` where the system does not
    say), ``os``, ``isa`` (those of the instruction sets that matter here which the CPU has).
    """
    info, flags = _cpuinfo(), cpu_flags()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_gb": _memory_gb(),
        "os": f"{platform.system()} {platform.machine()}",
        "isa": [flag for flag in _ISA_FLAGS if flag in flags],
    }


def peak_memory_mb() -> float | None:
    """Most resident memory of this program so far, in MB (10^6 bytes); ``None`` where the system does not say."""
    # getrusage would count the parent's memory too, which a child has until it becomes another program.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    found = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found) * 1024 / 1e6


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each distribution; those that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Fields of the first core in ``/proc/cpuinfo``; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
