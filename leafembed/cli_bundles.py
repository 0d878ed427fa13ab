"""The commands that make, show, run and serve bundles; printing only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leafembed.errors import Error, MissingExtraError, ModelError, UsageError
from leafembed.progress import print_json, say
from leafembed.text import read_texts, stream_texts

__all__ = [
    "benchmark",
    "card",
    "choose",
    "encode",
    "export",
    "info",
    "pull",
    "push",
    "quantize",
    "report",
    "serve",
]

_FLAGS = {"dim": "--truncate-dim", "exit": "--exit", "overlap": "--chunk"}
"""What encoders call a value that they do not take, and the option that it came from."""


@contextmanager
def _naming(file: Path | str) -> Iterator[None]:
    """Name the file that is written in an error of the system that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def quantize(args: argparse.Namespace) -> int:
    """Turn a student into an INT8 model folder."""
    from leafembed.single import quantize_folder

    folder = quantize_folder(args.student, args.out, group_size=args.group_size, exits=args.exits)
    print_json({"folder": str(folder), "mb": sum(p.stat().st_size for p in folder.iterdir()) / 1e6})
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a student in another format."""
    from leafembed.exporting import export, find_source
    from leafembed.results import print_export

    find_source(args.source)  # what is no student is said before what is no text
    result = export(args.source, args.out, format=args.format, texts=_texts(args), allow_failed=args.allow_failed)
    if args.json:
        print_json(result)
    else:
        print_export(result["files"], texts=result["texts"])
    return 0


def benchmark(args: argparse.Namespace) -> int:
    """Time a bundle, alone or beside others."""
    from leafembed.results import print_speed
    from leafembed.ship.bundle import read_manifest
    from leafembed.ship.shipped import shipped
    from leafembed.single import time_encoder

    args.bundle = args.bundle or shipped()
    if args.out is not None:
        return _benchmark_all(args)
    read_manifest(args.bundle)
    result = time_encoder(args.bundle, _texts(args), threads=args.threads, allow_failed=args.allow_failed)
    if args.json:
        print_json(result)
    else:
        print_speed(result)
    return 0


def _benchmark_all(args: argparse.Namespace) -> int:
    from leafembed.bench import Plan, measure, require_data
    from leafembed.bench_page import PAGE, bench_page, write_bench
    from leafembed.contenders import line_up
    from leafembed.ship.bundle import open_bundle

    open_bundle(args.bundle, allow_failed=args.allow_failed)  # refused before minutes of work, not after
    plan = Plan(data=args.data, tasks=tuple(args.tasks), max_rows=args.max_rows, texts=args.count,
                repeats=args.repeats, threads=args.threads)  # fmt: skip
    require_data(plan)
    lineup = line_up(
        args.bundle, teacher=args.teacher, student=args.student, work=args.out / "work", static=args.static
    )
    result = measure(lineup, plan)
    write_bench(result, args.out)
    say(f"tables and plot: {args.out / PAGE}")
    if args.json:
        print_json(result)
    else:
        print(bench_page(result), end="")
    return 0


def choose(args: argparse.Namespace) -> int:
    """Pick the cheapest exit and dimension that is good enough."""
    from leafembed.choosing import choose
    from leafembed.results import print_points
    from leafembed.ship.bundle import read_manifest

    read_manifest(args.bundle)
    result = choose(args.bundle, _texts(args), min_retention=args.min_retention, min_rate=args.min_rate,
                    threads=args.threads, allow_failed=args.allow_failed)  # fmt: skip
    if args.json:
        print_json(result)
    else:
        print_points(result, args.bundle, allow_failed=args.allow_failed)
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    from leafembed.ship.shipped import shipped_texts

    return read_texts(args.texts or shipped_texts())


def card(args: argparse.Namespace) -> int:
    """Render a bundle's card again."""
    from leafembed.ship.bundle import refresh_card

    print(refresh_card(args.bundle))
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the page of a run."""
    from leafembed.single import report_run

    print(report_run(args.run, args.out))
    return 0


def info(args: argparse.Namespace) -> int:
    """Say what a bundle is."""
    from leafembed.results import print_info
    from leafembed.ship.bundle import verify
    from leafembed.ship.shipped import shipped
    from leafembed.ship.verdict import read_verdict

    bundle = args.bundle or shipped()
    manifest = verify(bundle)
    verdict, _ = read_verdict(manifest, str(bundle))
    if args.json:
        print_json({**manifest, "verified": True, "passed": verdict.passed})
        return 0
    print_info(manifest, verdict)
    return 0


def push(args: argparse.Namespace) -> int:
    """Upload a bundle to a hub."""
    from leafembed.ship.hub import push

    url = push(args.bundle, args.repo, branch=args.branch, private=args.private, message=args.message,
               allow_failed=args.allow_failed)  # fmt: skip
    if args.json:
        print_json({"repo": args.repo, "commit": url})
    else:
        print(url)
    return 0


def pull(args: argparse.Namespace) -> int:
    """Download a bundle from a hub."""
    from leafembed.ship.hub import pull

    target = args.out or Path(args.repo.rpartition("/")[2])
    with _naming(target):
        found = pull(args.repo, target, revision=args.revision)
    if args.json:
        print_json({"folder": str(found.folder), "commit": found.commit, "passed": found.passed,
                    "outdated": found.outdated})  # fmt: skip
    else:
        verdict = "the gate passed it" if found.passed else "the gate REFUSED it"
        if found.outdated:
            verdict = f"an older gate judged it: leaf gate {found.folder} --renew"
        say(f"verified, from commit {found.commit}; {verdict}")
        print(found.folder)
    return 0


def encode(args: argparse.Namespace) -> int:
    """Embed texts, one a line."""
    import leafembed
    from leafembed.encoding import encode_file, encode_out
    from leafembed.ship.card import MANIFEST
    from leafembed.ship.vectors_file import json_line
    from leafembed.stages import file_sha256

    bundle, file = _bundle_and_file(args.words)
    with _by_option():
        encoder = leafembed.load(bundle, allow_failed=args.allow_failed, threads=args.threads, exit=args.exit,
                                 dim=args.truncate_dim)  # fmt: skip
    if args.prompt_name is not None and args.prompt_name not in encoder.prompts:
        known = ", ".join(encoder.prompts) or "none"
        raise UsageError(f"--prompt-name: got {args.prompt_name!r}, the bundle knows {known}")
    options = {"prompt_name": args.prompt_name, "dim": args.truncate_dim, "overlap": args.chunk}
    with _by_option(), _naming(args.output or "standard output"):
        if args.output is None:
            for vector in encode_out(encoder, stream_texts(file, jsonl=args.jsonl), options):
                print(json_line(vector))
            return 0
        identity = file_sha256(bundle / MANIFEST)
        texts, dim = encode_file(encoder, file, args.output, options, identity=identity, jsonl=args.jsonl)
    say(f"{texts} vectors of {dim} dimensions in {args.output}")
    return 0


@contextmanager
def _by_option() -> Iterator[None]:
    """Name the option in what an encoder says of a value that it does not take."""
    try:
        yield
    except (ModelError, ValueError) as error:
        name, _, said = str(error).partition(": ")
        if name in _FLAGS:
            raise UsageError(f"{_FLAGS[name]}: {said}") from error
        if isinstance(error, Error):
            raise
        raise Error(str(error)) from error


def _bundle_and_file(words: list[Path]) -> tuple[Path, Path]:
    """The bundle and the text that ``leaf encode`` was given, each or both left out."""
    from leafembed.ship.shipped import shipped

    if len(words) > 2:
        raise UsageError(f"leaf encode: got {len(words)} paths, expected a bundle and a file of texts, or one of them")
    if len(words) == 2:
        return words[0], words[1]
    (word,) = words or (Path("-"),)
    if word != Path("-") and not word.exists():
        raise Error(f"{word}: is not there; expected a bundle folder or a file of texts")
    return (word, Path("-")) if word.is_dir() else (shipped(), word)


def serve(args: argparse.Namespace) -> int:
    """Serve bundles until SIGTERM."""
    from leafembed.serve.hangups import HangUps

    hang_ups = HangUps()  # before the imports, which take a while
    try:
        from leafembed.serve.command import run_server
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve") from error

    return run_server(args, hang_ups, key=os.environ.get("LEAF_API_KEY", ""))
