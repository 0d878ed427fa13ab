"""Which texts of the sources a corpus holds: by seed, limits and weights; the arithmetic is in test_draw."""

from __future__ import annotations

import dataclasses

from conftest import write_rows
from corpora import both, corpus, lines, texts

from leafembed.recipe_text import Source


def test_a_text_beside_itself_is_drawn_as_any_other(tmp_path):
    """Lines that nobody translated are pairs of equal texts, which must not all have the same chance."""
    pairs = [{"text": line, "pair": line if i % 2 else f"the other {i}"} for i, line in enumerate(lines(600))]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    for seed in range(3):
        found = corpus(tmp_path, Source(path="pairs.jsonl", positive="pair"), seed=seed, max_rows=300)
        equal = [row for row in found.train if row.pair is not None and row.text.startswith("word")]
        assert 120 < len(equal) < 190  # a half of 300 pairs


def test_max_rows_limits_a_source_and_the_corpus(text_folder):
    (text_folder / "other.txt").write_text("\n".join(lines(100, "andere")), encoding="utf-8")
    found = corpus(text_folder, Source(path="plain.txt", max_rows=30), Source(path="other.txt"))
    assert len(found.train) + len(found.validation) == 130
    assert len(corpus(text_folder, Source(path="plain.txt"), max_rows=40).train) == 40


def test_the_same_seed_gives_the_same_corpus_and_another_another(text_folder):
    one, two, three = (corpus(text_folder, Source(path="plain.txt"), seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.fingerprint != three.fingerprint
    assert sorted(texts([*one.train, *one.validation])) == sorted(texts([*three.train, *three.validation]))


def test_weights_leave_out_and_prefer(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(600)), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(lines(600, "other")), encoding="utf-8")
    (tmp_path / "long.txt").write_text("\n".join(f"long {i} " + "x" * 600 for i in range(600)), encoding="utf-8")
    a, b, long = (Source(path=f"{name}.txt", lang="en") for name in ("a", "b", "long"))

    def share(found, word):
        return sum(row.text.startswith(word) for row in both(found)) / len(both(found))

    gone = corpus(tmp_path, a, dataclasses.replace(b, weight=0))
    assert share(gone, "word") == 1
    assert [source["path"] for source in gone.sources] == ["a.txt"]
    thrice = corpus(tmp_path, dataclasses.replace(a, weight=3), b, max_rows=200)
    assert 0.65 < share(thrice, "word") < 0.83
    assert 0.4 < share(corpus(tmp_path, a, b, max_rows=200), "word") < 0.6
    assert share(corpus(tmp_path, a, long, max_rows=200, length_weights={"long": 9.0}), "long") > 0.8
    short = corpus(tmp_path, a, long, length_weights={"long": 0.0})
    assert (share(short, "long"), short.counts["left out: weight 0"]) == (0, 600)


def test_languages_get_their_factor_however_their_tags_are_written(tmp_path):
    for lang in ("en", "de", "fr"):
        (tmp_path / f"{lang}.txt").write_text("\n".join(lines(400, lang)), encoding="utf-8")
    sources = [Source(path=f"{lang}.txt", lang=lang) for lang in ("en", "de", "fr")]
    found = corpus(tmp_path, *sources, max_rows=184, language_weights={"deu": 3.0, "fr-FR": 0.0})
    counts = {lang: sum(row.lang == lang for row in both(found)) for lang in ("en", "de", "fr")}
    assert counts == {"en": 50, "de": 150, "fr": 0}


def test_a_record_more_or_a_larger_draw_leaves_the_others_as_they_were(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(lines(400)), encoding="utf-8")
    base = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=100, validation_rows=20)
    more = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=200, validation_rows=20)
    (tmp_path / "a.txt").write_text("a line that was not there before\n" + "\n".join(lines(400)), encoding="utf-8")
    moved = corpus(tmp_path, Source(path="a.txt", lang="en"), max_rows=100, validation_rows=20)
    assert set(texts(base.train)) < set(texts(more.train)) | set(texts(more.validation))
    assert not set(texts(base.train)) & set(texts(more.validation))  # what was learned from is never held out later
    assert len(set(texts(base.train)) & set(texts(moved.train))) >= 98
