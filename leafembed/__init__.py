"""leafembed: distil a text-embedding model into a small INT8 model for CPUs, judged before it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from leafembed.ship.encoder import BundleEncoder

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: str | Path | None = None, *, allow_failed: bool = False, **options: Any) -> BundleEncoder:
    """Open a bundle and return its encoder; torch is not imported.

    Args:
        path: Bundle folder, as ``leaf run`` writes it; ``None``: the model that comes with the project.
        allow_failed: Open a bundle that the gate refused, or a part of one that is under a floor.
        options: Passed to :class:`leafembed.ship.encoder.BundleEncoder`, e.g. ``threads=4``,
            ``exit=4`` for an early exit, ``dim=256`` for shorter vectors.

    Raises:
        BundleError: If there is no bundle, a file is missing, its hash differs from the manifest, or the part that is
            asked for is under a floor.
        GateFailedError: If the gate refused the bundle and ``allow_failed`` is not set.
    """
    from leafembed.ship.bundle import open_bundle
    from leafembed.ship.parts import require_part
    from leafembed.ship.shipped import shipped

    folder = shipped() if path is None else path
    encoder = open_bundle(folder, allow_failed=allow_failed, **options)
    if not allow_failed and encoder.manifest is not None:
        require_part(encoder.manifest, str(folder), exit=options.get("exit"), dim=options.get("dim"))
    return encoder
