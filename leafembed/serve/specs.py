"""What an operator says of a bundle to serve, and what the bundle says of itself before it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leafembed.errors import Error, GateFailedError
from leafembed.ship.bundle import read_manifest
from leafembed.ship.card import MANIFEST
from leafembed.ship.folder import EncoderConfig, read_prompts
from leafembed.ship.parts import read_points, require_part, why_not
from leafembed.ship.verdict import read_verdict

__all__ = ["NAME", "About", "ModelSpec"]

NAME = re.compile(r"[a-zA-Z0-9][\w.-]{0,79}", re.ASCII)
"""What a model may be called."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """``NAME=PATH[@exit=N][@dim=N][@prompt=NAME]``: a bundle and how it is served.

    Attributes:
        name: What clients call it.
        path: The bundle.
        exit: Early exit that it ends at; ``None``: all of it.
        dim: Values of a vector that clients get when they ask for no number; ``None``: all.
        prompt: Prompt for clients that send none; ``None``: none.
    """

    name: str
    path: Path
    exit: int | None = None
    dim: int | None = None
    prompt: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read what ``--model`` is given.

        Raises:
            Error: If it is not of that form.
        """
        name, equals, rest = text.partition("=")
        path, *options = rest.split("@") if equals else ("",)
        if not NAME.fullmatch(name) or not path:
            raise Error(
                f"--model {text!r}: expected NAME=PATH, with a name of letters, digits, '.', '_' and '-', and after it "
                "@exit=N, @dim=N or @prompt=NAME where wanted"
            )
        given = dict(option.partition("=")[::2] for option in options)
        if unknown := sorted(set(given) - {"exit", "dim", "prompt"}):
            raise Error(f"--model {text!r}: got @{unknown[0]}, expected @exit=N, @dim=N or @prompt=NAME")
        for key in ("exit", "dim"):
            if key in given and not (given[key].isdecimal() and int(given[key])):
                raise Error(f"--model {text!r}: got @{key}={given[key]}, expected a whole number of at least 1")
        numbers = {key: int(given[key]) for key in ("exit", "dim") if key in given}
        return cls(name, Path(path), prompt=given.get("prompt"), **numbers)


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a bundle before it is opened.

    Attributes:
        manifest: Sealed, its verdict that of its scores.
        config: What the model reads and gives.
        prompts: By name.
        points: Its parts, as ``ship/parts.py`` reads them.
    """

    manifest: Mapping[str, Any]
    config: EncoderConfig
    prompts: Mapping[str, str]
    points: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, spec: ModelSpec, *, allow_failed: bool) -> About:
        """Read it if the bundle may be served.

        Raises:
            BundleError: If it is no bundle, or the part that is asked for is under a floor.
            GateFailedError: If the gate refused it and that is not allowed.
            Error: If the spec names a prompt or a dimension that it lacks.
        """
        manifest = read_manifest(spec.path)
        verdict, stage = read_verdict(manifest, str(spec.path / MANIFEST), outdated=allow_failed)
        if not (verdict.passed or allow_failed):
            raise GateFailedError(verdict, stage=stage)
        config, prompts = EncoderConfig.read(spec.path), read_prompts(spec.path)
        if spec.prompt is not None and spec.prompt not in prompts:
            known = ", ".join(prompts) or "none"
            raise Error(f"--model {spec.name}: got @prompt={spec.prompt}, the bundle's prompts are {known}")
        if spec.exit is not None and spec.exit not in config.exits:
            known = ", ".join(map(str, config.exits)) or "none"
            raise Error(f"--model {spec.name}: got @exit={spec.exit}, the bundle's early exits are {known}")
        if spec.dim is not None and spec.dim > config.dim:
            raise Error(f"--model {spec.name}: got @dim={spec.dim}, the bundle has {config.dim} dimensions")
        if not allow_failed:
            require_part(manifest, f"--model {spec.name}", exit=spec.exit, dim=spec.dim)
        return cls(manifest, config, prompts, tuple(read_points(manifest, str(spec.path))))

    def wrong_dim(self, dim: int, spec: ModelSpec, *, allow_failed: bool) -> str:
        """What is wrong with vectors of so many dimensions, for who asks for them; empty: nothing."""
        if not 1 <= dim <= self.config.dim:
            return f"got {dim}, expected 1 to {self.config.dim}"
        problem = "" if allow_failed else why_not(self.manifest, self.points, exit=spec.exit, dim=dim)
        return f"got {dim}, which {problem}; leave it out, or ask for more" if problem else ""
