"""Time a training step with stock and with fused layers, in turn, on a student of EmbeddingGemma's size.

    python tools/bench_training.py --teacher DIR --texts FILE.jsonl.gz [--losses] [--json FILE]

Rounds alternate between the routes over the same batches, so that a slow spell of the machine falls on all of them.
With ``--stock-batches random`` the stock route takes batches of the same texts that were not sorted, as a plain loop
does: then the ratio is of both at once, layers and batches. A round holds as many texts then but not the same ones;
all rounds together hold the same, and ``whole`` is the ratio of all seconds.
Seconds of the processor are given beside those of the clock: on a shared machine they are the steadier of the two.
With ``--losses`` every route also trains from the same start on the same batches, and the curves are compared. The
control is the stock route with the texts within each batch in reverse: the same sums, rounded in another order.
"""

import argparse
import copy
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leafembed.learn.fused import fused
from leafembed.learn.models import has_bf16, load_sentence_transformer
from leafembed.learn.student import Sample, init_student
from leafembed.recipe_learn import StudentConfig
from leafembed.ship.machine import machine_facts

ROUTES: dict[str, dict[str, Any]] = {
    "stock": {"mode": "off"},
    "plain": {"mode": "on", "compiled": False},
    "compiled": {"mode": "on", "compiled": True},
}
BATCHES_A_CHUNK = 50
LOSS_BATCHES = 20  # gone through again and again


@dataclass(frozen=True)
class Batch:
    """Token ids and mask ``(B, L)`` with targets ``(B, dim)``."""

    features: dict[str, torch.Tensor]
    targets: torch.Tensor

    @property
    def texts(self) -> int:
        """B."""
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.features["attention_mask"].sum())

    def reversed(self) -> "Batch":
        """The same texts, last one first."""
        return Batch({name: value.flip(0) for name, value in self.features.items()}, self.targets.flip(0))


class Trainee:
    """A student with its optimizer."""

    def __init__(self, model: Any, *, learning_rate: float, bf16: bool) -> None:
        self.model = model.train()
        self.model[0].auto_model.get_input_embeddings().weight.requires_grad_(False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, fused=True)
        self.bf16 = bf16

    def step(self, batch: Batch) -> float:
        """One step of the cosine objective, its gradient clipped as the trainer clips it; returns the loss."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            vectors = self.model(dict(batch.features))["sentence_embedding"]
        loss = (1 - torch.cosine_similarity(vectors.float(), batch.targets)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def read_texts(path: Path, args: argparse.Namespace) -> list[str]:
    """Lines in random order, ``args.join`` of them a text."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line)["text"] for line in islice(file, 200_000)]
    random.Random(args.seed).shuffle(lines)
    texts = [" ".join(lines[i : i + args.join]) for i in range(0, len(lines), args.join)]
    return texts[: BATCHES_A_CHUNK * args.batch_size]


def make_batches(
    model: Any,
    texts: Sequence[str],
    target_of: Callable[[list[str]], torch.Tensor],
    args: argparse.Namespace,
    sort: str,
) -> list[Batch]:
    """Batches of like length or, unsorted, of any, in random order as in training; ``args.batches`` of them."""
    lengths = [len(text) for text in texts]
    if sort == "tokens":
        lengths = [len(ids) for ids in model.tokenizer(list(texts))["input_ids"]]
    order = np.arange(len(texts)) if sort == "random" else np.argsort(lengths, kind="stable")
    starts = list(range(0, len(order) - args.batch_size + 1, args.batch_size))
    random.Random(args.seed).shuffle(starts)
    batches = []
    for start in starts[: args.batches]:
        chosen = [texts[i] for i in order[start : start + args.batch_size]]
        features = {name: value for name, value in model.preprocess(chosen).items() if isinstance(value, torch.Tensor)}
        batches.append(Batch(features, target_of(chosen)))
    return batches


def time_steps(trainee: Trainee, batches: Sequence[Batch], route: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor for a step on each batch."""
    with fused(trainee.model, **ROUTES[route]):
        clock, processor = time.perf_counter(), time.process_time()
        for batch in batches:
            trainee.step(batch)
        return time.perf_counter() - clock, time.process_time() - processor


def race(
    trainee: Trainee, batches: Sequence[Batch], stock: Sequence[Batch], args: argparse.Namespace
) -> dict[str, Any]:
    """Alternate between the routes; rates by route, and ratios to the stock route of the same round."""
    first = {route: time_steps(trainee, batches[:3], route)[0] for route in args.routes}  # compiles, or finds it cached
    taken = {route: stock if route == "stock" else batches for route in args.routes}
    rounds: dict[str, list[tuple[float, float]]] = {route: [] for route in args.routes}
    per_round = len(batches) // args.rounds
    for i in range(args.rounds):
        for route in args.routes if i % 2 == 0 else args.routes[::-1]:
            rounds[route].append(time_steps(trainee, taken[route][i * per_round : (i + 1) * per_round], route))
    result: dict[str, Any] = {"steps_a_round": per_round, "stock_batches": args.stock_batches}
    for route, timed in rounds.items():
        parts = [taken[route][i * per_round : (i + 1) * per_round] for i in range(args.rounds)]
        texts = [sum(batch.texts for batch in part) for part in parts]
        tokens = [sum(batch.tokens for batch in part) for part in parts]
        padded = sum(batch.features["input_ids"].numel() for part in parts for batch in part)
        result[route] = {
            "tokens_a_text": sum(tokens) / sum(texts),
            "padding": 1 - sum(tokens) / padded,
            "texts_per_second": _spread([n / clock for n, (clock, _) in zip(texts, timed, strict=True)]),
            "tokens_per_second": _spread([n / clock for n, (clock, _) in zip(tokens, timed, strict=True)]),
            "texts_per_processor_second": _spread([n / cpu for n, (_, cpu) in zip(texts, timed, strict=True)]),
            "whole": sum(s[0] for s in rounds["stock"]) / sum(clock for clock, _ in timed),
            "ratio": _spread([s[0] / t[0] for s, t in zip(rounds["stock"], timed, strict=True)]),
            "processor_ratio": _spread([s[1] / t[1] for s, t in zip(rounds["stock"], timed, strict=True)]),
            "compile_seconds": max(0.0, first[route] - 3 * statistics.median(clock for clock, _ in timed) / per_round),
        }
    return result


def compare_losses(make: Any, batches: Sequence[Batch], args: argparse.Namespace) -> dict[str, float]:
    """Mean and largest difference to the stock route's losses over the last half of the steps."""
    curves: dict[str, list[float]] = {}
    for name in ["stock", "control", *args.routes[1:]]:
        trainee = make()
        with fused(trainee.model, **ROUTES.get(name, ROUTES["stock"])):
            order = [batches[i % len(batches)] for i in range(args.loss_steps)]
            curves[name] = [trainee.step(b.reversed() if name == "control" else b) for b in order]
    result = {"first_loss": curves["stock"][0], "last_loss": curves["stock"][-1]}
    for name in [*curves][1:]:
        both = list(zip(curves["stock"], curves[name], strict=True))
        differences = [abs(a - b) for a, b in both[len(both) // 2 :]]
        result[f"{name}_mean"], result[f"{name}_max"] = statistics.fmean(differences), max(differences)
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of EmbeddingGemma")
    parser.add_argument("--texts", type=Path, required=True, help="gzip of JSON lines with a field text")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3, 22, 23], help="layers to keep")
    parser.add_argument("--join", type=int, default=1, help="lines a text: 8 give about 120 tokens")
    parser.add_argument("--batch-size", type=int, default=96, help="texts a step")
    parser.add_argument("--sort", choices=["tokens", "characters"], default="characters", help="batches of like what")
    parser.add_argument("--stock-batches", choices=["same", "random"], default="same", help="those of the stock route")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for each route")
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of the products")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--routes", nargs="+", choices=[*ROUTES][1:], default=[*ROUTES][1:], help="against stock")
    parser.add_argument("--losses", action="store_true", help="compare loss curves instead of rates")
    parser.add_argument("--loss-steps", type=int, default=100, help="steps of a curve")
    parser.add_argument("--seed", type=int, default=0, help="of texts and targets")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    if args.losses and args.stock_batches != "same":
        parser.error("--losses compares routes on the same batches: leave --stock-batches out")
    args.routes = ["stock", *args.routes]
    return args


def main() -> None:
    """Build the student, run, print and write."""
    args = _parse()
    torch.set_num_threads(args.threads)
    bf16 = has_bf16(args.precision, "cpu")
    teacher = load_sentence_transformer(args.teacher.expanduser())
    with tempfile.TemporaryDirectory() as folder:
        sample = Sample([], np.zeros((0, teacher.get_embedding_dimension()), np.float32))
        init_student(StudentConfig(layers=tuple(args.layers)), teacher, sample, Path(folder))
        start = load_sentence_transformer(Path(folder))

    def vectors(texts: list[str]) -> torch.Tensor:
        if not args.losses:  # rates do not depend on them
            return torch.ones(len(texts), teacher.get_embedding_dimension())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            result: torch.Tensor = teacher.encode(texts, prompt_name="STS", convert_to_tensor=True).clone()
        return result.float()

    args.batches = LOSS_BATCHES if args.losses else args.rounds * args.steps
    texts = read_texts(args.texts, args)
    if not args.losses:  # every text is in one batch of each route
        texts = texts[: args.batches * args.batch_size]
    batches = make_batches(start, texts, vectors, args, args.sort)
    stock = batches if args.stock_batches == "same" else make_batches(start, texts, vectors, args, "random")

    def trainee() -> Trainee:
        return Trainee(copy.deepcopy(start), learning_rate=1e-4, bf16=bf16)

    result: dict[str, Any] = {
        "machine": machine_facts(),
        "torch": torch.__version__,
        "threads": args.threads,
        "precision": "bf16" if bf16 else "fp32",
        "batch_size": args.batch_size,
        "sort": args.sort,
        "layers": args.layers,
    }
    found = {"losses": compare_losses(trainee, batches, args)} if args.losses else race(trainee(), batches, stock, args)
    result |= found
    text = json.dumps(result, indent=2, default=str)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
