"""Moves bundles to and from a model repository on the Hugging Face hub; huggingface_hub does the talking.

Endpoint, token and offline mode are the library's own: ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import BundleError, Error, GateFailedError, MissingExtraError, first_line
from leafembed.ship.alone import alone
from leafembed.ship.bundle import read_manifest, verify
from leafembed.ship.card import MANIFEST
from leafembed.ship.verdict import read_verdict, unasked

__all__ = ["Pulled", "pull", "push"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A bundle that was fetched and verified.

    Attributes:
        folder: Where it lies.
        commit: 40-digit commit that it was fetched at.
        passed: Whether the gate passed it, as it is today.
        outdated: Whether an older gate judged it, so that its verdict has to be renewed.
    """

    folder: Path
    commit: str
    passed: bool
    outdated: bool = False


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
        private: Whether a repository that is created is private; one that is there must be so already.
        message: Commit message; ``None``: says the bundle's name.
        allow_failed: Upload a bundle that the gate refused; its card says so.

    Raises:
        BundleError: If a file is missing or altered.
        GateFailedError: If the gate refused the model and ``allow_failed`` is not set.
        Error: If the name has no ``org``, the hub cannot be reached or refuses, or the repository is public and
            ``private`` is set.
    """
    _check_name(repo)  # before it is made: without an org the hub makes one that no upload finds
    manifest = verify(bundle)
    verdict, stage = read_verdict(manifest, str(bundle / MANIFEST), outdated=allow_failed)
    if not (verdict.passed or allow_failed):
        raise GateFailedError(verdict, stage=stage)
    with _talking(repo, branch) as hub:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise Error(f"--private: got {repo}, which is public; make it private in its settings, or name another")
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=bundle,
            revision=branch,
            allow_patterns=[glob.escape(name) for name in (*manifest["files"], MANIFEST)],
            commit_message=message or f"leafembed bundle {manifest['name']}",
        )
    return str(commit.commit_url)


def pull(repo: str, target: Path, *, revision: str | None = None) -> Pulled:
    """Download a bundle, verify it, and only then put it in place.

    Of the repository the files that the manifest lists are fetched. Whether the gate passed it is worked out again.
    An interrupted call leaves what has come in ``.NAME.partial`` beside the target, and the next one goes on from it;
    of what is no bundle nothing is left.

    Args:
        repo: ``org/name``.
        target: Folder to create.
        revision: Branch, tag or commit; ``None``: the main branch.

    Raises:
        BundleError: If what the repository holds is not a bundle, or was altered, or ``target`` is there already.
        Error: If the hub cannot be reached, there is no such repository or revision, or another call fetches into the
            same folder.
    """
    _check_name(repo)
    target = target.resolve()
    _check_free(target)
    made = [folder for folder in target.parents if not folder.exists()]  # the nearest first
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    bundle = partial / "bundle"
    busy = Error(f"{target}: another leaf pull fetches into it; wait until it ends, or name another folder")
    with alone(partial, busy):
        try:
            if target.exists():  # another call was faster
                shutil.rmtree(bundle, ignore_errors=True)
            _check_free(target)
            commit = _download(repo, revision, partial)
            manifest = verify(bundle)
            verdict, _ = read_verdict(manifest, str(bundle / MANIFEST), outdated=True)  # it can be renewed here
            bundle.rename(target)
        except BundleError as error:  # the folder that it names is about to go
            shutil.rmtree(bundle, ignore_errors=True)
            raise BundleError(str(error).replace(str(bundle), repo)) from error
        finally:
            if not (bundle / MANIFEST).exists():  # there is nothing to go on from
                shutil.rmtree(partial, ignore_errors=True)
                for folder in made:
                    with suppress(OSError):  # it holds the bundle
                        folder.rmdir()
    later = unasked(manifest, verdict)
    return Pulled(target, commit, verdict.passed and not later, bool(later))


def _check_free(target: Path) -> None:
    if target.exists():
        raise BundleError(f"{target}: is there already; remove it or name another folder")


def _check_name(repo: str) -> None:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise Error(f"got {repo!r}, expected the name of a repository, org/name")


def _download(repo: str, revision: str | None, folder: Path) -> str:
    """Fetch a manifest and what it lists into ``folder/bundle``, all at one commit, and return the commit.

    File by file: ``snapshot_download`` takes patterns, so that a manifest could ask for more than it lists, and it
    returns a folder that lacks files when the hub fails in between. Nor ``hf_hub_download``, which begins a file anew.
    """
    bundle, begun = folder / "bundle", folder / "from"
    with _talking(repo, revision) as hub:
        commit = str(hub.HfApi().model_info(repo, revision=revision).sha)
        source = f"{repo} {commit}".encode()
        if not bundle.is_dir() or not begun.is_file() or begun.read_bytes() != source:
            shutil.rmtree(bundle, ignore_errors=True)
            (folder / "part").unlink(missing_ok=True)
            bundle.mkdir()
            begun.write_bytes(source)
        _fetch(hub.hf_hub_url(repo, MANIFEST, revision=commit), bundle / MANIFEST, folder / "part")
        for name in read_manifest(bundle)["files"]:
            _fetch(hub.hf_hub_url(repo, name, revision=commit), bundle / name, folder / "part")
    return commit


def _fetch(url: str, target: Path, part: Path) -> None:
    """Fetch a file unless it is there, and go on from the part of it that is.

    Files come one after another, always in the same order, so that the part is of the first that is not there.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if target.exists():
        return
    part.touch()
    size = max(0, part.stat().st_size - 1)  # the hub refuses to send the rest of a file that is whole
    with part.open("r+b") as file:
        file.seek(size)
        file.truncate()
        http_get(url, file, resume_size=size, headers=build_hf_headers(), displayed_filename=target.name)
    part.rename(target)


@contextmanager
def _talking(repo: str, revision: str | None) -> Iterator[Any]:
    """The library, its errors turned into ours; those of this machine's files stay as they are."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    try:
        yield huggingface_hub
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the last two of uploads of large files
        talk = isinstance(error, (HTTPError, ConnectionError, TimeoutError))
        if isinstance(error, OSError) and error.errno is not None and not talk:
            raise
        raise _explained(error, repo, revision) from error


def _explained(error: Exception, repo: str, revision: str | None) -> Error:
    """What an error of the library means for whoever asked for ``repo``."""
    from huggingface_hub import constants, errors

    hub = f"the hub at {constants.ENDPOINT}"
    response = getattr(error, "response", None)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        name = str(error.response.url).rpartition("/")[2]
        return BundleError(f"{repo}: not a bundle, it has no {name}; expected what leaf push uploads")
    by_kind = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, so that no hub is asked; unset it for this command",
        errors.HFValidationError: f"got {repo!r}, expected the name of a repository, org/name",
        errors.GatedRepoError: f"{hub} asks for its owner's consent; ask for access on its page, then set HF_TOKEN",
        errors.RepositoryNotFoundError: f"{hub} has none, or hides it from this token; check the name or set HF_TOKEN",
        errors.RevisionNotFoundError: f"got revision {revision!r}, expected a branch, tag or commit that it has",
    }
    by_status = {
        401: f"{hub} takes no such token, or asks for one; set HF_TOKEN or call hf auth login",
        403: f"{hub} does not let this token do that; set HF_TOKEN to one with the right to",
    }
    meant = next((text for kind, text in by_kind.items() if isinstance(error, kind)), None)
    meant = meant or by_status.get(getattr(response, "status_code", 0))
    return Error(f"{repo}: {meant or f'{hub} cannot be used; try again or check HF_ENDPOINT: {first_line(error)}'}")
