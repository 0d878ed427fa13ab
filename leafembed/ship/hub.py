"""Moves bundles to and from a model repository on the Hugging Face hub; huggingface_hub does the talking.

Endpoint, token and offline mode are the library's own: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import BundleError, Error, GateFailedError, MissingExtraError, first_line
from leafembed.ship.bundle import read_manifest, verify
from leafembed.ship.card import MANIFEST
from leafembed.ship.verdict import read_verdict

__all__ = ["Pulled", "pull", "push"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A bundle that was fetched and verified.

    Attributes:
        folder: Where it lies.
        commit: 40-digit commit that it was fetched at.
        passed: Whether the gate passed it.
    """

    folder: Path
    commit: str
    passed: bool


def push(
    bundle: Path,
    repo: str,
    *,
    branch: str | None = None,
    private: bool = False,
    message: str | None = None,
    allow_failed: bool = False,
) -> str:
    """Upload a bundle, verified before, and return the commit's URL; the repository is created where there is none.

    What the repository holds besides stays as it is.

    Args:
        bundle: Bundle folder.
        repo: ``org/name``.
        branch: Branch to write to, created where there is none; ``None``: the main one.
        private: Whether a repository that is created is private.
        message: Commit message; ``None``: says the bundle's name.
        allow_failed: Upload a bundle that the gate refused; its card says so.

    Raises:
        BundleError: If a file is missing or altered.
        GateFailedError: If the gate refused the model and ``allow_failed`` is not set.
        Error: If the hub cannot be reached or refuses.
    """
    manifest = verify(bundle)
    verdict, stage = read_verdict(manifest, str(bundle / MANIFEST))
    if not (verdict.passed or allow_failed):
        raise GateFailedError(verdict, stage=stage)
    with _talking(repo) as hub:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=bundle,
            revision=branch,
            allow_patterns=[*manifest["files"], MANIFEST],
            commit_message=message or f"leafembed bundle {manifest['name']}",
        )
    return str(commit.commit_url)


def pull(repo: str, target: Path, *, revision: str | None = None) -> Pulled:
    """Download a bundle, verify it, and only then put it in place.

    Of the repository the files that the manifest lists are fetched. Whether the gate passed it is worked out again.

    Args:
        repo: ``org/name``.
        target: Folder to create.
        revision: Branch, tag or commit; ``None``: the main branch.

    Raises:
        BundleError: If what the repository holds is not a bundle, or was altered, or ``target`` is there already.
        Error: If the hub cannot be reached or there is no such repository or revision.
    """
    target = target.resolve()
    if target.exists():
        raise BundleError(f"{target}: is there already; remove it or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with _talking(repo) as hub:
            commit = hub.HfApi().model_info(repo, revision=revision).sha
            hub.hf_hub_download(repo, MANIFEST, revision=commit, local_dir=partial)
            names = read_manifest(partial)["files"]
            hub.snapshot_download(repo, revision=commit, local_dir=partial, allow_patterns=list(names))
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # of huggingface_hub
        verdict, _ = read_verdict(verify(partial), str(partial / MANIFEST))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pulled(target, str(commit), verdict.passed)


@contextmanager
def _talking(repo: str) -> Iterator[Any]:
    """The library, its errors turned into ours."""
    try:
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, OfflineModeIsEnabled
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    try:
        yield huggingface_hub
    except EntryNotFoundError as error:
        raise BundleError(f"{repo}: holds no bundle: {first_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise Error(f"{repo}: HF_HUB_OFFLINE is set, so that no hub is asked; unset it for this command") from error
    except HFValidationError as error:
        raise Error(f"got {repo!r}, expected the name of a repository, org/name: {first_line(error)}") from error
    except (HTTPError, OSError) as error:
        raise Error(f"{repo}: the hub at {constants.ENDPOINT} says: {first_line(error)}") from error
