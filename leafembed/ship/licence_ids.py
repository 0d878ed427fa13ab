"""What a hub calls a licence. It refuses a card whose licence it does not know, so such a licence is named beside."""

from __future__ import annotations

from leafembed.ship.markdown import line

__all__ = ["hub_licence"]

_KNOWN = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()
)
"""Some of the ids of https://huggingface.co/docs/hub/repositories-licenses, and Llama's later ones; what is not among
them is named beside ``other``, which a hub takes."""


def hub_licence(licence: str | None) -> dict[str, str]:
    """Return ``license``, an id that a hub knows, and ``license_name`` where that is ``other`` and there is a name."""
    plain = (licence or "other").strip().lower()
    if "gemma" in plain:
        return {"license": "gemma"}
    return {"license": plain} if plain in _KNOWN else {"license": "other", "license_name": line(licence)}
