"""One contender in a process of its own: ``python -m leafembed.bench_worker ENTRANT THREADS``.

So memory and cold start are its own, its threads are those it was given, and the parent can let one after the other
work. Speaks JSON, a line a message, over standard input and output; ``bench.py`` is the other end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafembed.types import Encoder, FloatArray, ModelRef

if TYPE_CHECKING:
    import torch

    from leafembed.ship.engine import ProductWeights

__all__ = ["COMMANDS", "Worker", "main", "open_entrant"]

_BATCH = 32


class _Torch:
    """A sentence-transformers model as people run it, in fp32 or with the whole model in bf16."""

    def __init__(self, folder: Path, *, bf16: bool) -> None:
        from leafembed.learn.models import describe, load_sentence_transformer

        self.model = load_sentence_transformer(folder)
        self.ref: ModelRef = describe(self.model, folder, name=folder.name)
        if bf16:
            self.model.bfloat16()

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        import numpy as np

        prompt = self.ref.prompts.get(prompt_name or "", "")
        vectors = self.model.encode(
            list(texts), prompt=prompt, batch_size=_BATCH, show_progress_bar=False, convert_to_tensor=True
        )
        plain = vectors.float().numpy()
        result: FloatArray = plain / np.linalg.norm(plain, axis=1, keepdims=True)
        return result

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        tokens = self.model[0].tokenizer(list(texts), truncation=True, max_length=self.model.max_seq_length)
        return [len(ids) for ids in tokens["input_ids"]]

    def product_weights(self) -> ProductWeights:
        """Weights of the linear layers that run, by what their input has a row for: each token, or each text."""
        import torch

        from leafembed.ship.engine import ProductWeights

        texts, counts = ["How do I reset my card?"] * 2, {True: 0, False: 0}

        def count(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
            of_text = inputs[0].numel() == len(texts) * module.in_features
            counts[of_text] += module.weight.numel()

        linear = [module for module in self.model.modules() if isinstance(module, torch.nn.Linear)]
        hooks = [module.register_forward_pre_hook(count) for module in linear]
        try:
            self.encode(texts)
        finally:
            for hook in hooks:
                hook.remove()
        return ProductWeights(token=counts[False], text=counts[True])


def open_entrant(entrant: dict[str, Any], threads: int) -> Encoder:
    """Open an entrant, given as plain data, with so many threads."""
    path, kind = Path(entrant["path"]), entrant["kind"]
    if kind == "bundle":
        from leafembed.ship.bundle import open_bundle
        from leafembed.ship.card import MANIFEST
        from leafembed.ship.encoder import BundleEncoder

        options = {"threads": threads, "batch_size": _BATCH, "exit": entrant["exit"]}
        if (path / MANIFEST).is_file():  # as users open it: every hash and the verdict are checked
            return open_bundle(path, allow_failed=True, **options)
        return BundleEncoder(path, **options)
    if kind == "torch":
        import torch

        torch.set_num_threads(threads)
        return _Torch(path, bf16=entrant["bf16"])
    if kind == "onnx":
        from leafembed.ship.onnx_folder import OnnxEncoder

        return OnnxEncoder(path, name=entrant["name"], threads=threads)
    from leafembed.ship.model2vec_folder import Model2VecEncoder

    return Model2VecEncoder(path, name=entrant["name"])


class Worker:
    """Answers the parent.

    Attributes:
        encoder: The contender.
        entrant: What it is, as plain data.
    """

    def __init__(self, encoder: Encoder, entrant: dict[str, Any]) -> None:
        self.encoder = encoder
        self.entrant = entrant

    def time(self, wanted: dict[str, Any]) -> float:
        """Seconds of encoding ``texts`` with the prompt that the encoder has for the ``role``, as it is scored."""
        prompt = self._prompt(wanted["role"])
        start = time.perf_counter()
        self.encoder.encode(wanted["texts"], prompt_name=prompt)
        return time.perf_counter() - start

    def latencies(self, wanted: dict[str, Any]) -> list[float]:
        """Seconds of each text, one at a time, after one uncounted."""
        one_by_one = [{**wanted, "texts": [text]} for text in wanted["texts"]]
        self.time(one_by_one[0])
        return [self.time(one) for one in one_by_one]

    def facts(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Tokens of the texts where it has tokens, weights in matrix products where that is known, dimensions."""
        counted = getattr(self.encoder, "count_tokens", None)
        counted_weights = getattr(self.encoder, "product_weights", None)
        before = self.encoder.ref.prompts.get(self._prompt(wanted["role"]) or "", "")
        tokens = sum(counted([before + text for text in wanted["texts"]])) if counted else None
        weights: ProductWeights | None = counted_weights() if counted_weights else None
        if self.entrant["kind"] == "bundle":
            from leafembed.ship.engine import product_weights
            from leafembed.ship.folder import EncoderConfig

            folder = Path(self.entrant["path"])
            weights = product_weights(folder / "model.xml", EncoderConfig.read(folder), self.entrant["exit"])
        return {
            "tokens": tokens,
            "token_weights": weights and weights.token,
            "text_weights": weights and weights.text,
            "dim": self.encoder.ref.dim,
        }

    def _prompt(self, role: str) -> str | None:
        from leafembed.judge.kinds import find_prompt

        return find_prompt(self.encoder.ref.prompts, role)

    def memory(self, _: Any) -> float | None:
        """Most resident memory so far, MB."""
        from leafembed.ship.machine import peak_memory_mb

        return peak_memory_mb()

    def score(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Mean score and scores by type on local tasks."""
        from leafembed.judge.evaluate import evaluate
        from leafembed.judge.tasks import load_tasks

        tasks = load_tasks(Path(wanted["data"]), wanted["tasks"], max_rows=wanted["max_rows"])
        report = evaluate(self.encoder, tasks)
        return {"mean": report.mean, "types": report.by_type()}


COMMANDS: dict[str, Callable[[Worker, Any], Any]] = {
    "time": Worker.time,
    "latencies": Worker.latencies,
    "facts": Worker.facts,
    "memory": Worker.memory,
    "score": Worker.score,
}


def main() -> None:
    """Open the entrant of the command line, embed one text, and answer until standard input ends."""
    entrant, out = json.loads(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not be taken for an answer
    worker = Worker(open_entrant(entrant, int(sys.argv[2])), entrant)
    worker.encoder.encode(["How do I reset my card?"])

    def answer(message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    answer("ready")
    for line in sys.stdin:
        command, argument = json.loads(line)
        answer(COMMANDS[command](worker, argument))


if __name__ == "__main__":
    main()
