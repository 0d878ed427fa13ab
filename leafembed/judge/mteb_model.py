"""Any encoder as a model of mteb: a student, a bundle, a part of one, a server.

    mteb.evaluate(MtebModel(leafembed.load("runs/quick/bundle")), mteb.get_tasks(...))

mteb is imported when a model is made and not before; neither that nor anything here asks the network.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from leafembed.errors import MissingExtraError, ModelError
from leafembed.judge.evaluate import Candidate
from leafembed.judge.floors import BagOfWords
from leafembed.judge.views import View
from leafembed.types import Encoder, FloatArray, check_vectors

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["MtebModel", "import_mteb", "model_meta"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def import_mteb() -> ModuleType:
    """Return mteb.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise MissingExtraError("mteb", "mteb") from error
    module: ModuleType = mteb
    return module


def model_meta(encoder: Candidate) -> Any:
    """Return what mteb keeps of a model, its ``ModelMeta``.

    Its name is the hub id, or ``leafembed/NAME`` for what has none; its revision the hub commit or the hash of its
    files. A part of a model (a :class:`View`, or a bundle opened at an exit or with fewer dimensions) has the name of
    the whole and says which part in ``experiment_kwargs``, as mteb's own models of several dimensions do, so that mteb
    puts it into a folder of its own.
    """
    import_mteb()
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import Licenses

    ref = encoder.whole if isinstance(encoder, View) else encoder.ref
    plain = re.sub(r"[^\w.-]+", "-", ref.name.removeprefix("package:").rstrip("/").rpartition("/")[2]).strip("-")
    licence = (ref.licence or "").lower()
    return ModelMeta.create_empty(
        {
            "name": ref.name if _HUB_ID.fullmatch(ref.name) else f"leafembed/{plain or 'model'}",
            "revision": ref.revision or ref.fingerprint or None,
            "embed_dim": encoder.ref.dim,
            "max_tokens": ref.max_seq_length,
            "license": licence if licence in get_args(Licenses) else None,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": bool(ref.prompts),
            "experiment_kwargs": dict(getattr(encoder, "part", {})) or None,
        }
    )


class MtebModel:
    """An encoder as mteb's ``EncoderProtocol`` wants it.

    Attributes:
        mteb_model_meta: What mteb keeps of it.

    Raises:
        ModelError: If it is a bag of words.
    """

    def __init__(self, encoder: Candidate) -> None:
        if isinstance(encoder, BagOfWords):
            raise ModelError(f"{encoder.ref.name}: got mteb's tasks, expected local ones, whose words it can count")
        self.mteb_model_meta = model_meta(encoder)
        self._encoder: Encoder = encoder

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> FloatArray:
        """Return embeddings ``(n_texts, dim)`` float32, unit length, of the texts of a data loader.

        The prompt is the one that mteb chooses by the names of the model's prompts. What else mteb passes (subset,
        split, batch size) is not needed: the encoder batches by itself.

        Raises:
            NonFiniteError: If a vector holds NaN or infinity or is not of unit length; names the task.
        """
        from mteb.models.abs_encoder import get_prompt_name

        texts = [text for batch in inputs for text in batch["text"]]
        prompt_name = get_prompt_name(dict(self._encoder.ref.prompts), task_metadata, prompt_type)
        vectors = self._encoder.encode(texts, prompt_name=prompt_name)
        return check_vectors(vectors, n=len(texts), what=f"{self._encoder.ref.name} on {task_metadata.name}")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines ``(n, m)`` of all pairs."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines ``(n,)`` of rows with the same number."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)
