"""Writes, checks and opens bundles: a model folder with a card, a plot and a manifest.

A bundle is put together in a hidden folder beside its place and moved there when complete, so that a reader finds the
old one or the new one and nothing between. ``manifest.json`` is written last and holds the hash of every other file.

    target/                model.xml model.bin tokenizer.json encoder.json ...  README.md curves.png manifest.json
    .target.partial/       being written; removed by the next write
    .target.replaced/      the old bundle while the new one takes its place; moved back if that was interrupted
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leafembed.errors import BundleError, GateFailedError, ModelError
from leafembed.progress import say
from leafembed.ship.card import CARD, MANIFEST, gemma_notice, render_card
from leafembed.ship.encoder import BundleEncoder
from leafembed.ship.folder import OPTIONAL_FILES, REQUIRED_FILES, EncoderConfig
from leafembed.ship.plots import PLOTS, draw_plots
from leafembed.ship.verdict import read_verdict, unasked
from leafembed.stages import file_sha256

__all__ = [
    "FORMAT",
    "NOTICE",
    "SEAL",
    "open_bundle",
    "read_manifest",
    "refresh_card",
    "rewrite",
    "seal",
    "verify",
    "write_bundle",
    "write_refusal",
]

FORMAT = 2
"""Version of the bundle's layout; a reader refuses any other."""

NOTICE = "NOTICE"
SEAL = "seal"
"""Key of the manifest with the hash of all the rest of it."""

_KEYS = (
    *("format", "name", "created", "leafembed", "verdict", "teacher", "student", "recipe", "corpus", "training"),
    *("contamination", "reports", "behaviour", "sizes", "machine", "versions", "files"),
)
_GET_ANOTHER = "write the bundle again or download it again"


def write_bundle(
    target: Path, model_dir: Path, manifest: Mapping[str, Any], *, beside: Callable[[Path], None] | None = None
) -> Path:
    """Write a bundle to ``target`` and return it; a bundle that is there is replaced once the new one is complete.

    Args:
        target: Folder to write.
        model_dir: Model folder; of it the files of ``REQUIRED_FILES`` and ``OPTIONAL_FILES`` are copied.
        manifest: Every key of the format but ``format``, ``files`` and ``sizes.total_bytes``, which are set here.
        beside: Writes further files into the folder that it is given, before card and manifest.

    Raises:
        BundleError: If a model file is missing, or ``target`` is something other than a bundle.
    """
    target = target.resolve()
    partial, replaced = _leftovers(target)
    _clean_up(target, partial, replaced)
    if target.exists() and not (target / MANIFEST).is_file() and not _is_empty_folder(target):
        raise BundleError(f"{target} is there and is not a bundle: move it away or write elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    _copy_model(model_dir, partial)
    if beside is not None:
        beside(partial)
    _finish(partial, manifest)
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def read_manifest(path: Path, *, refused: bool = False) -> dict[str, Any]:
    """Return the manifest of a bundle folder, its format, keys and seal checked.

    Args:
        path: The folder.
        refused: Whether it may be that of a student refused before INT8, which lists no files.

    Raises:
        BundleError: If it is missing, damaged, edited, of another format version, or lists what is no file name.
    """
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: not a bundle, it has no {MANIFEST}; {_GET_ANOTHER}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not readable as JSON; {_GET_ANOTHER}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{file}: got format {got!r}, expected {FORMAT}; install the leafembed that wrote it")
    missing = [key for key in _KEYS if key not in manifest and not (refused and key == "files")]
    if missing == ["files"]:
        raise BundleError(f"{path}: got the card of a run without a bundle, expected a bundle; its README.md says why")
    if missing:
        raise BundleError(f"{file}: lacks {', '.join(missing)}; {_GET_ANOTHER}")
    files = manifest.get("files", {})
    if not isinstance(files, dict) or any(not isinstance(f, dict) or "sha256" not in f for f in files.values()):
        raise BundleError(f"{file}: files is not a table of hashes; {_GET_ANOTHER}")
    if seal(manifest) != manifest.get(SEAL):
        raise BundleError(f"{file}: was edited after it was written, its seal does not fit; {_GET_ANOTHER}")
    for name in files:
        if Path(name).name != name or name == "..":
            raise BundleError(f"{file}: lists {name!r}, expected file names; {_GET_ANOTHER}")
    return manifest


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash of everything in a manifest but its seal: SHA-256 of JSON with sorted keys, hexadecimal."""
    plain = json.loads(json.dumps({key: value for key, value in manifest.items() if key != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def verify(path: Path, *, rendered: bool = True) -> dict[str, Any]:
    """Return the manifest after comparing every file of the bundle with its hash, card and plots only if ``rendered``.

    Raises:
        BundleError: If a file is missing or altered, a file the encoder would read is not in the manifest, or the
            manifest is about another model.
    """
    path = Path(path)
    manifest = read_manifest(path)
    files = manifest["files"]
    unlisted = [name for name in REQUIRED_FILES if name not in files]
    unlisted += [name for name in OPTIONAL_FILES if name not in files and (path / name).exists()]
    if unlisted:
        raise BundleError(f"{path / MANIFEST}: lists no hash of {', '.join(unlisted)}; {_GET_ANOTHER}")
    for name, expected in files.items():
        if not rendered and name in (CARD, *PLOTS):
            continue
        file = path / name
        remedy = "render it again with leaf card" if name in (CARD, *PLOTS) else _GET_ANOTHER
        if not file.is_file():
            raise BundleError(f"{path}: {name} is missing; {remedy}")
        got = _entry(file)
        if got["sha256"] != expected["sha256"]:
            hashes = f"got sha256 {got['sha256'][:12]}, the manifest says {expected['sha256'][:12]}"
            raise BundleError(f"{file} was altered: {hashes}; {remedy}")
    try:
        mine, theirs = EncoderConfig.read(path).fingerprint, manifest["student"]["fingerprint"]
    except (ModelError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: does not say which model it holds ({error}); {_GET_ANOTHER}") from error
    if mine != theirs:
        raise BundleError(f"{path}: holds the model {mine}, the manifest judges {theirs}; {_GET_ANOTHER}")
    return manifest


def open_bundle(path: str | Path, *, allow_failed: bool = False, **options: Any) -> BundleEncoder:
    """Verify a bundle and return its encoder.

    Args:
        path: Bundle folder.
        allow_failed: Open a bundle that the gate refused, or that today's rules have not judged.
        options: Passed to :class:`leafembed.ship.encoder.BundleEncoder`.

    Raises:
        BundleError: If a file is missing or altered, or the verdict is not what follows from the scores.
        GateFailedError: If the gate refused the model.
    """
    folder = Path(path)
    manifest = verify(folder)
    verdict, stage = read_verdict(manifest, str(folder / MANIFEST), outdated=allow_failed)
    if not (verdict.passed or allow_failed):
        raise GateFailedError(verdict, stage=stage)
    if later := unasked(manifest, verdict):
        say(f"WARNING: {folder} is not judged by today's rules: {len(later)} checks are new (leaf gate --renew)")
    return BundleEncoder(folder, manifest=manifest, **options)


def refresh_card(path: Path) -> Path:
    """Render the card and plot of a bundle again from its manifest, and return the card's path.

    The model's files must match their hashes: an altered model does not become valid by this.

    Raises:
        BundleError: If a file other than card and plot is missing or altered, or the verdict is not what follows from
            the scores.
    """
    path = Path(path)
    manifest = verify(path, rendered=False)
    read_verdict(manifest, str(path / MANIFEST))
    return rewrite(path, manifest)


def rewrite(path: Path, manifest: Mapping[str, Any]) -> Path:
    """Write card, plots and manifest of a bundle, or of a refusal, anew where they lie, and return the card's path."""
    drafts = path.resolve().parent / f".{path.resolve().name}.card"
    shutil.rmtree(drafts, ignore_errors=True)
    drafts.mkdir()
    if "files" in manifest:
        kept = {name: file for name, file in manifest["files"].items() if name not in (CARD, *PLOTS)}
        _finish(drafts, manifest, kept=kept)
    else:
        _finish_refusal(drafts, manifest)
    for name in (*PLOTS, CARD, MANIFEST):  # the manifest last: until then verify() refuses the bundle
        if (drafts / name).exists():
            (drafts / name).replace(path / name)
        elif name in PLOTS:
            (path / name).unlink(missing_ok=True)
    drafts.rmdir()
    return path / CARD


def _finish(folder: Path, manifest: Mapping[str, Any], *, kept: Mapping[str, Any] | None = None) -> None:
    """Write notice, plot, card and manifest into a folder; ``kept``: entries of files that are elsewhere."""
    if kept is None and (notice := gemma_notice(manifest)):
        (folder / NOTICE).write_text(notice + "\n", encoding="utf-8")
    draw_plots(manifest, folder)
    files = dict(sorted({**(kept or {}), **{file.name: _entry(file) for file in folder.iterdir()}}.items()))
    card, text = _fixed_point({**manifest, "format": FORMAT}, files)
    (folder / CARD).write_bytes(card)
    _write_durably(folder / MANIFEST, text)


def _fixed_point(manifest: Mapping[str, Any], files: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return card and manifest, both of which state the bytes of the whole folder, themselves included.

    A larger total never makes either text shorter, so that counting up from 0 comes to rest.
    """
    total = -1
    card = text = b""
    while total != (counted := sum(file["bytes"] for file in files.values()) + len(card) + len(text)):
        total = counted
        whole = {**manifest, "sizes": {**manifest["sizes"], "total_bytes": total}, "files": dict(files)}
        card = render_card(whole).encode()
        whole["files"][CARD] = {"sha256": hashlib.sha256(card).hexdigest(), "bytes": len(card)}
        whole[SEAL] = seal(whole)
        text = (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    return card, text


def _leftovers(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.replaced")


def _clean_up(target: Path, partial: Path, replaced: Path) -> None:
    """Undo what an interrupted write left behind."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for leftover in (partial, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _copy_model(source: Path, target: Path) -> None:
    missing = [name for name in REQUIRED_FILES if not (source / name).is_file()]
    if missing:
        raise BundleError(f"{source}: not a model folder, it lacks {', '.join(missing)}; quantize the student first")
    for name in (*REQUIRED_FILES, *OPTIONAL_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(file), "bytes": file.stat().st_size}


def _write_durably(file: Path, text: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_refusal(target: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the card and manifest of a student that was refused before INT8, so that the reasons can be read."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    _finish_refusal(target, manifest)
    return target


def _finish_refusal(folder: Path, manifest: Mapping[str, Any]) -> None:
    draw_plots(manifest, folder)
    whole = {**manifest, "format": FORMAT}
    (folder / CARD).write_text(render_card(whole), encoding="utf-8")
    text = json.dumps({**whole, SEAL: seal(whole)}, indent=2, ensure_ascii=False, allow_nan=False)
    _write_durably(folder / MANIFEST, text.encode())
