"""Shows that memory does not grow with the number of texts: ``python tools/bench_memory.py BUNDLE [--texts N]``.

Streams short texts through a bundle and prints resident memory at every tenth of the way. Exit status 1 if it grows by
more than ``--most`` MB between the first of these and the last.
"""

import argparse
import json
import time
from pathlib import Path

import leafembed
from leafembed.ship.machine import machine_facts, peak_memory_mb

STATUS = Path("/proc/self/status")


def resident_mb() -> float:
    """Resident memory now, in MB (10^6 bytes); Linux only."""
    (line,) = (line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--most", type=float, default=50.0, help="MB that it may grow by after the first tenth")
    args = parser.parse_args()
    encoder = leafembed.load(args.bundle, allow_failed=True)
    opened, start, done, marks = resident_mb(), time.perf_counter(), 0, []
    for part in encoder.encode_stream(f"short text number {i}" for i in range(args.texts)):
        done += len(part.vectors)
        if done * 10 // args.texts > len(marks):
            marks.append({"texts": done, "resident_mb": round(resident_mb(), 1)})
    print(json.dumps({"opened_mb": round(opened, 1), "marks": marks, "peak_mb": peak_memory_mb(),
                      "texts_per_second": round(done / (time.perf_counter() - start)), "threads": encoder.threads,
                      "machine": machine_facts()}, indent=2))  # fmt: skip
    grown = marks[-1]["resident_mb"] - marks[0]["resident_mb"]
    if grown > args.most:
        parser.exit(1, f"got {grown:.0f} MB more at the end than after a tenth, expected at most {args.most:g}\n")


if __name__ == "__main__":
    main()
