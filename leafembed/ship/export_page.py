"""Renders the page that lies beside exported files: what they are, whether they may be used, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leafembed.reports import GateResult
from leafembed.ship.graph import NO_LIMIT
from leafembed.ship.licence_ids import hub_licence
from leafembed.ship.markdown import fixed, table
from leafembed.ship.templates import fill_markdown
from leafembed.types import ModelRef

__all__ = ["Exported", "render_page"]

_COSINES = ("cosine_mean", "cosine_min")

_USE_ONNX = """\
JavaScript, with `@huggingface/transformers`; `dtype` is `fp32` or `q8`:

```js
import { AutoModel, AutoTokenizer } from "@huggingface/transformers";

const tokenizer = await AutoTokenizer.from_pretrained(FOLDER);
const model = await AutoModel.from_pretrained(FOLDER, { dtype: "q8" });
const inputs = await tokenizer(["Hello world", "Machine learning"], { padding: true, truncation: true });
const { sentence_embedding } = await model(inputs);
```

The pipeline `feature-extraction` is not the way: it looks for the states of tokens, and pools them itself.

Python, with `onnxruntime` and `tokenizers`:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("onnx/model_quantized.onnx")
batch = tokenizer.encode_batch(["Hello world", "Machine learning"])
(embeddings,) = session.run(
    ["sentence_embedding"],
    {
        "input_ids": np.array([text.ids for text in batch]),
        "attention_mask": np.array([text.attention_mask for text in batch]),
    },
)
```"""

_USE_PT = """\
The calls of the first attempt's card, with the packages that it names:

```python
import torch
from transformers import AutoTokenizer

model = torch.load("model_quantized.pt", map_location="cpu", weights_only=False)["model"]
model.set_tokenizer(AutoTokenizer.from_pretrained("."))
embeddings = model.encode(["Hello world", "Machine learning"], device="cpu", normalize=True)
```

That card's own snippet fetches the files with `hf_hub_download` and works as it stands once this folder is what its
`repo_id` names."""

_KINDS: Mapping[str, Mapping[str, Any]] = {
    "onnx": {
        "kind": "ONNX, from token ids to the unit vector",
        "library": "transformers.js",
        "tags": ["onnx"],
        "use": _USE_ONNX,
        "measured": "measured with ONNX Runtime on these files",
        "int8": "matrices as MatMulNBits in blocks of 128, tables with a scale for each row.",
    },
    "pt": {
        "kind": "pickled PyTorch models, a legacy format",
        "library": "pytorch",
        "tags": ["pickle"],
        "use": _USE_PT,
        "measured": "measured before the files were written, since nothing here opens a pickle",
        "int8": "a scale for each row; the arithmetic is fp32.",
    },
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What the page says.

    Attributes:
        format: ``onnx`` or ``pt``.
        ref: The student.
        max_seq_length: Tokens it reads.
        files: Of each model file ``file``, ``mb``, and ``cosine_mean`` and ``cosine_min`` to the student.
        texts: Texts that the cosines are over.
        cut: Whether one of them was longer than the model reads.
        verdict: The gate's; ``None``: the student was not judged, and there is no card.
        stage: What the gate judged.
        notice: Sentence that a licence asks for; may be empty.
    """

    format: Literal["onnx", "pt"]
    ref: ModelRef
    max_seq_length: int
    files: Sequence[Mapping[str, Any]]
    texts: int
    cut: bool
    verdict: GateResult | None = None
    stage: str = ""
    notice: str = ""


def render_page(export: Exported) -> str:
    """Return the page as Markdown with the front matter of a model hub.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    ref, kind, verdict = export.ref, _KINDS[export.format], export.verdict
    rows = [[f["file"], fixed(f["mb"], 2), *(fixed(f[key], 5) for key in _COSINES)] for f in export.files]
    prompts = [[name, json.dumps(text, ensure_ascii=False)] for name, text in ref.prompts.items()]
    prompts = prompts if any(ref.prompts.values()) else []  # empty ones are nothing to put before a text
    values = {
        **kind,
        "export": export,
        "reads": f"Reads up to {export.max_seq_length:,} tokens; the rest of a text is cut."
        if export.max_seq_length < NO_LIMIT
        else "Reads texts of any length.",
        "front_matter": _front_matter(ref, kind),
        "failed": verdict.failed if verdict else (),
        "files": table(["file", "MB", "cosine, mean", "cosine, least"], rows),
        "prompts": table(["prompt", "text"], prompts, words=2) if prompts else "",
    }
    return fill_markdown("export.md.jinja", values)


def _front_matter(ref: ModelRef, kind: Mapping[str, Any]) -> str:
    items: dict[str, Any] = {
        "library_name": kind["library"],
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-similarity", "feature-extraction", *kind["tags"]],
        **hub_licence(ref.licence),
    }
    # JSON is YAML, as on the card.
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in items.items() if value)
