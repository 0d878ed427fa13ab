"""Which records of the sources are trained on: shares of languages, weights of sources and lengths. Numbers only.

A language gets its share of the rows by the exponential smoothing of multilingual BERT (Devlin et al. 2018) and XLM
(arXiv 1901.07291, eq. 1), times its own factor. Within a language, a record is drawn with a chance in proportion to
the weight of its source times that of its length. Both are independent: a source with much weight does not shift
languages.

Chance comes from a hash of the record and the seed (:func:`uniform`), not from its place: one record more or fewer, or
a larger draw, changes nothing about the others, so that the teacher's vectors of a corpus serve the next one too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import require
from leafembed.recipe_text import DataConfig
from leafembed.text import normalise_lang

__all__ = ["LENGTH_LIMITS", "by_language", "draw", "first_seen", "idle_weights", "length_class", "quotas", "uniform"]

LENGTH_LIMITS = {"short": 100, "medium": 500}
"""Characters below which a text is of that class; longer ones are ``long``."""


def length_class(lengths: NDArray[np.int64], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Weights ``(n,)`` of texts of the given lengths in characters; 1 for a class that is not named."""
    names = [*LENGTH_LIMITS, "long"]
    classes = np.searchsorted(list(LENGTH_LIMITS.values()), lengths, side="right")
    table = np.array([weights.get(name, 1.0) for name in names])
    result: NDArray[np.float64] = table[classes]
    return result


def quotas(sizes: Mapping[str, int], total: int, temperature: float, factors: Mapping[str, float]) -> dict[str, int]:
    """How many of ``total`` records each language gives.

    Shares are in proportion to ``factor * n^(1/temperature)``. A language that has fewer records than its share gives
    all it has, and the rest is shared by the others.

    Args:
        sizes: Records there are, by language.
        total: Records wanted.
        temperature: At least 1; 1 keeps the proportions.
        factors: Factor by language; 1 for those not named.
    """
    weights = {lang: factors.get(lang, 1.0) * n ** (1 / temperature) for lang, n in sizes.items()}
    wanted = {lang: weight for lang, weight in weights.items() if weight > 0}
    # The scarcest for its weight first, so that what they cannot fill flows on to the others.
    todo = sorted(wanted, key=lambda lang: (sizes[lang] / wanted[lang], sizes[lang], lang))
    left, rest, result = total, sum(wanted.values()), dict.fromkeys(sizes, 0)
    for lang in todo:
        share = round(left * wanted[lang] / rest) if lang != todo[-1] else left
        result[lang] = min(sizes[lang], share)
        left -= result[lang]
        rest -= wanted[lang]
    return result


def draw(
    langs: Sequence[str],
    codes: NDArray[np.int64],
    weights: NDArray[np.float64],
    total: int,
    *,
    temperature: float,
    factors: Mapping[str, float],
    chance: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Draw ``total`` records without replacement and return their indices, ascending.

    Args:
        langs: Names of the languages.
        codes: Language of each record ``(n,)``, an index into ``langs``.
        weights: Weight of each record ``(n,)``; records of weight 0 are never drawn.
        total: Records wanted; fewer come back where there are not as many.
        temperature: As in :func:`quotas`.
        factors: As in :func:`quotas`.
        chance: A number of its own for each record ``(n,)``, between 0 and 1, as :func:`uniform` gives them. A larger
            ``total`` draws the same records and more.
    """
    members = {lang: np.flatnonzero((codes == i) & (weights > 0)) for i, lang in enumerate(langs)}
    members = {lang: found for lang, found in members.items() if len(found)}
    shares = quotas({lang: len(found) for lang, found in members.items()}, total, temperature, factors)
    chosen = [np.empty(0, dtype=np.int64)]
    for lang in sorted(members):
        # The largest log(weight) + Gumbel noise are a draw without replacement by weight (arXiv 1903.06059, sec. 2.2).
        keys = np.log(weights[members[lang]]) - np.log(-np.log(chance[members[lang]]))
        chosen.append(members[lang][np.argsort(-keys, kind="stable")[: shares[lang]]])
    return np.sort(np.concatenate(chosen))


def first_seen(hashes: NDArray[np.uint64], owners: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Whether each of ``n`` records holds a text that no earlier record held, ``(n,)``.

    Args:
        hashes: Hash of each text of each record, in the order of the records.
        owners: Record of each text, ascending.
        n: Number of records.
    """
    _, first = np.unique(hashes, return_index=True)
    new = np.zeros(n, dtype=np.bool_)
    new[owners[first]] = True
    return new


def by_language(factors: Mapping[str, float]) -> dict[str, float]:
    """Factors by the short tags that rows have: ``deu`` and ``de-AT`` both mean ``de``.

    Raises:
        RecipeError: If a language has two factors.
    """
    short = {normalise_lang(tag): factor for tag, factor in factors.items()}
    require(len(short) == len(factors), "data.language_weights", list(factors), f"each of {', '.join(short)} once")
    return short


def idle_weights(config: DataConfig, langs: Collection[str]) -> list[str]:
    """Sentences about weights that change nothing: those of languages without text, and all where nothing is drawn.

    Args:
        config: The recipe's ``[data]``.
        langs: Languages of the training text.
    """
    if config.max_rows is None:
        sources = [source.weight for source in config.sources]
        idle = {*sources, *config.language_weights.values(), *config.length_weights.values()} - {0.0, 1.0}
        text = "the weights of data change nothing: data.max_rows is not set, so all rows are taken"
        return [text] if idle else []
    absent = [lang for lang, factor in by_language(config.language_weights).items() if factor and lang not in langs]
    return [f"data.language_weights: there is no text in {', '.join(absent)}"] if absent else []


def uniform(hashes: NDArray[np.uint64], seed: int, use: int) -> NDArray[np.float64]:
    """Numbers between 0 and 1, both excluded, that look drawn at random and depend on hash, seed and ``use`` alone.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195) over their sum.

    Args:
        hashes: A hash of each record ``(n,)``.
        seed: Seed of the corpus.
        use: Tells apart draws that must not depend on each other.
    """
    stream = np.random.SeedSequence([seed, use]).generate_state(1, np.uint64)[0]
    mixed = hashes.astype(np.uint64) + stream  # wraps around, as meant
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    result: NDArray[np.float64] = ((mixed >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    return result
