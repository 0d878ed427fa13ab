"""Which prompt a request's texts get: the one it names, the one for its role, or that of the model's name."""

from __future__ import annotations

from collections.abc import Mapping

from leafembed.serve.refusals import Refusal

__all__ = ["choose_prompt"]

_INPUT_TYPES = {
    "query": ("query", "Retrieval-query"),
    "search_query": ("query", "Retrieval-query"),
    "document": ("document", "Retrieval-document"),
    "passage": ("document", "Retrieval-document"),
    "search_document": ("document", "Retrieval-document"),
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering"),
    "sts": ("STS", "similarity"),
}
"""What clients call a role, and the prompts that serve it, the first that a bundle has."""


def choose_prompt(
    prompts: Mapping[str, str], default: str | None, name: str | None, input_type: str | None
) -> str | None:
    """Return the name of a bundle's prompt; ``None``: the texts are read bare.

    Args:
        prompts: The bundle's, by name.
        default: For requests that say nothing; a bundle that took another's place may lack it.
        name: A prompt by the bundle's own name.
        input_type: A role by a client's name; a bundle without prompts needs none for any role.

    Raises:
        Refusal: If the bundle has no such prompt.
    """
    if name is not None:
        if name not in prompts:
            known = ", ".join(prompts) or "none"
            raise Refusal("invalid", f"prompt_name: the model's prompts are {known}", param="prompt_name")
        return name
    if input_type is None:
        if default is not None and default not in prompts:
            known = ", ".join(prompts) or "none"
            raise Refusal("invalid", f"the model has no prompt {default!r}, its prompts are {known}", param="model")
        return default
    wanted = _INPUT_TYPES.get(input_type.lower(), (input_type,))
    found = next((prompt for prompt in wanted if prompt in prompts), None)
    if found is None and prompts:
        known = ", ".join([*_INPUT_TYPES, *prompts])
        raise Refusal("invalid", f"input_type: expected one of {known}", param="input_type")
    return found
