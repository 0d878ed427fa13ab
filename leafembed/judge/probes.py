"""Scores of what is fitted to embeddings: few-shot classification and k-means, as mteb fits, random draws included.

Embeddings are ``(n, dim)`` float32 of unit length. The draws are of mteb's seed and in its order, since they belong to
the definition of the scores: others move an accuracy by one to four points (``docs/method.md``).
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from leafembed.judge.intervals import Items, Scored
from leafembed.judge.metrics import IntArray, check_arrays
from leafembed.types import FloatArray

__all__ = ["SEED", "classification", "clustering", "draw_documents", "draw_examples", "pick_documents"]

SEED = 42
"""Seed of mteb's draws and of its k-means."""

_MOST_DOCUMENTS = 2_048


def draw_examples(
    labels: Sequence[str], *, seed: int = SEED, samples_per_label: int = 8, n_experiments: int = 10
) -> list[IntArray]:
    """Return, for each experiment, the indices of ``samples_per_label`` random examples of every label, as mteb draws.

    A label with fewer examples gives all that it has. Encoders compared under one seed get the same examples.
    """
    order, draws = list(range(len(labels))), []
    for _ in range(n_experiments):
        # The same seed each time: what differs is the order that is shuffled once more.
        np.random.RandomState(seed).shuffle(order)
        taken: Counter[str] = Counter()
        chosen = []
        for i in order:
            if taken[labels[i]] < samples_per_label:
                taken[labels[i]] += 1
                chosen.append(i)
        draws.append(np.array(chosen, dtype=np.int64))
    return draws


def pick_documents(n: int) -> list[int]:
    """Return which of ``n`` documents are clustered, in the order drawn: 2,048 at most, as most of mteb's tasks do."""
    return random.Random(SEED).sample(range(n), k=min(n, _MOST_DOCUMENTS))


def draw_documents(n: int, *, drawn: int = 16_384, n_experiments: int = 10) -> list[IntArray]:
    """Return, for each experiment, ``(drawn,)`` places in what :func:`pick_documents` picks, with replacement.

    Args:
        n: Documents that were picked from, at least 1.
        drawn: Documents of one experiment.
        n_experiments: Clusterings.
    """
    rng = random.Random(SEED)
    places = range(len(rng.sample(range(n), k=min(n, _MOST_DOCUMENTS))))  # mteb's generator goes on from there
    return [np.array(rng.choices(places, k=drawn)) for _ in range(n_experiments)]


def classification(
    train: FloatArray,
    train_labels: Sequence[str],
    test: FloatArray,
    test_labels: Sequence[str],
    *,
    draws: Sequence[IntArray],
) -> Scored:
    """Return ``accuracy`` and macro ``f1``, in 0..1, as means over logistic regressions on few examples.

    Resampled are the texts that are scored: of each, the share of the regressions that label it right.

    Args:
        train: ``(n_train, dim)``, the examples that are drawn from.
        train_labels: ``n_train`` labels, at least two different.
        test: ``(n_test, dim)``, what is scored.
        test_labels: ``n_test`` labels.
        draws: Rows of ``train`` for each regression, as :func:`draw_examples` picks them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    check_arrays(train, test)
    if (len(train), len(test)) != (len(train_labels), len(test_labels)):
        sizes = f"{len(train)} and {len(test)} vectors, {len(train_labels)} and {len(test_labels)} labels"
        raise ValueError(f"classification: got {sizes}, expected a label for each vector")
    labels, gold = np.asarray(train_labels), np.asarray(test_labels)
    right, f1s = [], []
    for draw in draws:
        model = LogisticRegression(max_iter=100)
        with _quiet_on_one_thread():
            predicted = model.fit(train[draw], labels[draw]).predict(test)
        right.append(predicted == gold)
        f1s.append(f1_score(gold, predicted, average="macro", zero_division=0))
    return Scored({"accuracy": float(np.mean(right)), "f1": float(np.mean(f1s))}, Items("mean", np.mean(right, axis=0)))


def clustering(vectors: FloatArray, labels: Sequence[str], *, draws: Sequence[IntArray]) -> Scored:
    """Return ``v_measure``, in 0..1, the mean over k-means clusterings of draws, and ``v_measure_std``.

    There are as many clusters as labels. V-measure is the harmonic mean of how pure the clusters are and how whole the
    labels stay (Rosenberg and Hirschberg, 2007). Documents are what is resampled; their clusters stay.

    Args:
        vectors: ``(n, dim)``, the documents.
        labels: ``n`` labels, at least two different.
        draws: Rows of ``vectors`` for each clustering, as :func:`draw_documents` picks them.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    check_arrays(vectors)
    names, gold = np.unique(np.asarray(labels), return_inverse=True)
    if len(gold) != len(vectors) or len(names) < 2:
        raise ValueError(
            f"clustering: got {len(vectors)} vectors and {len(gold)} labels, {len(names)} different; expected as many "
            "labels as vectors and at least 2 different"
        )
    found = []
    clusters_ND = np.zeros((len(gold), len(draws)), dtype=np.int64)  # 0 also for what a draw leaves out
    for i, draw in enumerate(draws):
        model = MiniBatchKMeans(len(names), batch_size=512, init="k-means++", n_init=1, random_state=SEED)
        with _quiet_on_one_thread():
            clusters_ND[draw, i] = predicted = model.fit_predict(vectors[draw])
        found.append(v_measure_score(gold[draw], predicted))
    drawn_ND = np.stack([np.bincount(draw, minlength=len(gold)) for draw in draws], axis=1)
    items = Items("v_measure", np.column_stack([gold, clusters_ND, drawn_ND]))
    return Scored({"v_measure": float(np.mean(found)), "v_measure_std": float(np.std(found))}, items)


@contextmanager
def _quiet_on_one_thread() -> Iterator[None]:
    """MTEB caps the steps of its solvers, converged or not, and clusters what holds too few points; neither is news.

    One thread, since handing out the rows of such small matrices costs more than it saves, and the sums of k-means
    would depend on how many there are.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
