from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import HashEncoder, write_rows

from leafembed.errors import DataError
from leafembed.judge.floors import RandomEncoder
from leafembed.judge.tasks import Task, check_disjoint, load_tasks
from leafembed.types import FloatArray

ALL = ["sts/*", "bitext/*", "classification/*", "retrieval/*"]
NEW = ["clustering/*", "pair/*", "reranking/*"]


def scores(task: Task, encoder: Any) -> dict[str, dict[str, float]]:
    def encode(texts: Sequence[str], prompt_name: str | None) -> FloatArray:
        vectors: FloatArray = encoder.encode(texts, prompt_name=prompt_name)
        return vectors

    return {part.lang: part.score(encode).scores for part in task.parts}


def sts(text: str, score: float, lang: str = "en") -> dict[str, Any]:
    return {"sentence1": text, "sentence2": f"{text} too", "score": score, "lang": lang}


def test_globs_find_every_format_once_in_the_order_named(eval_data: Path) -> None:
    tasks = load_tasks(eval_data, ["retrieval/toy_*", "agreement", "sts/toy.test", "retrieval/toy_en", *ALL])
    assert [task.id for task in tasks] == [
        "retrieval/toy_de",
        "retrieval/toy_en",
        "sts/toy.test",
        "bitext/toy",
        "classification/toy",
    ]
    assert {task.type: (task.metric, [(part.lang, part.n) for part in task.parts]) for task in tasks[1:]} == {
        "Retrieval": ("ndcg_at_10", [("en", 30)]),
        "STS": ("cosine_spearman", [("de", 60), ("en", 60)]),
        "BitextMining": ("f1", [("de-en", 40)]),
        "Classification": ("accuracy", [("en", 60)]),
    }


def test_word_overlap_solves_the_tasks_and_chance_does_not(eval_data: Path) -> None:
    for task in load_tasks(eval_data, [*ALL, *NEW]):
        for lang, found in scores(task, HashEncoder()).items():
            chance = scores(task, RandomEncoder(128))[lang]
            assert found[task.metric] > 0.8, (task.id, lang)
            assert chance[task.metric] < 0.5, (task.id, lang)


def test_each_type_encodes_with_its_prompt(eval_data: Path) -> None:
    prompts = {}
    for task in load_tasks(eval_data, ["sts/toy.dev", *ALL[1:3], "retrieval/toy_en", *NEW], languages=["en", "de"]):
        encoder = HashEncoder()
        scores(task, encoder)
        prompts[task.type] = set(encoder.prompts_seen)
    assert prompts == {
        "STS": {"STS"},
        "BitextMining": {"BitextMining"},
        "Classification": {"Classification"},
        "Retrieval": {"Retrieval-query", "Retrieval-document"},
        "Clustering": {"Clustering"},
        "PairClassification": {"PairClassification"},
        "Reranking": {"Reranking-query", "Reranking-document"},
    }


def test_languages_filter_in_any_spelling_and_english_is_the_pivot_of_pairs(eval_data: Path) -> None:
    tasks = load_tasks(eval_data, ["sts/toy.test", "bitext/toy", "retrieval/*"], languages=["deu_Latn"])
    assert [(task.id, [part.lang for part in task.parts]) for task in tasks] == [
        ("sts/toy.test", ["de"]),
        ("bitext/toy", ["de-en"]),
        ("retrieval/toy_de", ["de"]),
    ]
    for name, lang in (("bitext/toy", "fr"), ("bitext/toy", "en"), ("retrieval/*", "fr")):
        with pytest.raises(DataError, match="holds no row to score in the languages"):
            load_tasks(eval_data, [name], languages=[lang])


def test_max_rows_draws_by_seed_and_keeps_corpus_and_probe_set(eval_data: Path) -> None:
    names = ["sts/toy.test", "retrieval/toy_en", "classification/toy"]
    whole, some, again = (load_tasks(eval_data, names, max_rows=m, seed=1) for m in (None, 20, 20))
    other = load_tasks(eval_data, names, max_rows=20, seed=2)
    assert [part.n for task in some for part in task.parts] == [20, 20, 20, 20]
    hashes = [[part.data for task in tasks for part in task.parts] for tasks in (whole, some, again, other)]
    assert hashes[1] == hashes[2]
    assert not set(hashes[0]) & set(hashes[1])
    assert not set(hashes[1]) & set(hashes[3])
    assert all(small.scored < large.scored for small, large in zip(some, whole, strict=True))
    assert [task.texts for task in some] == [task.texts for task in whole]
    seen: list[int] = []

    class Counting(HashEncoder):
        def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
            seen.append(len(texts))
            return super().encode(texts, prompt_name=prompt_name)

    scores(some[1], Counting())
    assert seen == [20, 30]


def test_the_hash_follows_the_rows(tmp_path: Path) -> None:
    hashes = []
    for score in (1.0, 2.0, 1.0):
        write_rows(tmp_path / "sts/a.jsonl", [sts("one", 0), sts("two", score)])
        hashes.append(load_tasks(tmp_path, ["sts/a"])[0].parts[0].data)
    assert hashes[0] == hashes[2] != hashes[1]


def test_languages_are_crossed_where_their_rows_are_translations(tmp_path: Path, hash_encoder: HashEncoder) -> None:
    rows = [
        {"sentence1": f"{lang} a{i}", "sentence2": f"{lang} b{i}", "score": i, "lang": lang}
        for lang in ("en", "deu", "fr")
        for i in range(4)
    ]
    write_rows(tmp_path / "sts/toy.test.jsonl", rows)
    (task,) = load_tasks(tmp_path, ["sts/toy.test@cross"])
    assert [part.lang for part in task.parts] == ["en-de", "en-fr"]
    assert (("deu b2", "en a2")) in task.scored
    assert ("en a2", "en b2") not in task.scored
    assert [part.n for part in task.parts] == [4, 4]
    (french,) = load_tasks(tmp_path, ["sts/toy.test@cross"], languages=["fr"])
    assert [part.lang for part in french.parts] == ["en-fr"]
    write_rows(tmp_path / "sts/toy.test.jsonl", [*rows[:-1], {**rows[-1], "score": 9}])
    with pytest.raises(DataError, match="the rows in fr are not those in en"):
        load_tasks(tmp_path, ["sts/toy.test@cross"])
    write_rows(tmp_path / "sts/toy.test.jsonl", rows[:4])
    with pytest.raises(DataError, match="expected en and another one"):
        load_tasks(tmp_path, ["sts/toy.test@cross"])


def test_a_split_is_chosen_by_name_and_train_is_never_scored(eval_data: Path) -> None:
    test, dev = load_tasks(eval_data, ["classification/toy", "classification/toy@dev"])
    assert dev.id == "classification/toy@dev"
    assert not dev.scored & test.scored
    for split in ("valid", "train"):
        with pytest.raises(DataError, match=rf"got split '{split}'.*\['dev', 'test', 'train'\]"):
            load_tasks(eval_data, [f"classification/toy@{split}"])
    with pytest.raises(DataError, match=r"only tasks in classification/, clustering/, pair/, reranking/ have splits"):
        load_tasks(eval_data, ["sts/toy@dev"])


def test_an_unknown_name_lists_near_ones(eval_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no task 'sts/toi\.test'.*'sts/toy\.test'"):
        load_tasks(eval_data, ["sts/toi.test"])
    with pytest.raises(DataError, match="holds no task"):
        load_tasks(tmp_path, ["sts/toy"])
    assert load_tasks(tmp_path, ["agreement"]) == ()


def test_variants_of_a_language_stay_apart_beside_the_plain_one(tmp_path: Path) -> None:
    rows = [sts(f"{lang} {i}", i, lang) for lang in ("EN", "EN-ext", "zh-CN", "jpn") for i in range(3)]
    write_rows(tmp_path / "sts/a.jsonl", rows)
    assert [part.lang for part in load_tasks(tmp_path, ["sts/a"])[0].parts] == ["en", "en_ext", "ja", "zh"]
    (task,) = load_tasks(tmp_path, ["sts/a"], languages=["en"])
    assert [part.lang for part in task.parts] == ["en", "en_ext"]


def test_two_languages_in_small_letters_are_a_pair(tmp_path: Path) -> None:
    tags = ("en", "en-de", "de-fr", "deu-eng", "es-es", "pt-BR", "zh-tw", "ko-kr", "hi-in")
    write_rows(tmp_path / "sts/a.jsonl", [sts(f"{lang} {i}", i, lang) for lang in tags for i in range(3)])
    parts = {part.lang: part.n for part in load_tasks(tmp_path, ["sts/a"])[0].parts}
    assert parts == dict.fromkeys(("de-en", "de-fr", "en", "en-de", "es", "hi", "ko", "pt", "zh"), 3)
    (task,) = load_tasks(tmp_path, ["sts/a"], languages=["de"])
    assert [part.lang for part in task.parts] == ["de-en", "en-de"]


def test_a_pair_that_is_judged_in_two_ways_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "retrieval" / "a"
    write_rows(folder / "queries.jsonl", [{"id": "q", "text": "red", "lang": "en"}])
    write_rows(folder / "corpus.jsonl", [{"id": "d", "text": "red"}, {"id": "e", "text": "blue"}])
    judged = {"qid": "q", "did": "d", "score": 1}
    write_rows(folder / "qrels.jsonl", [judged, judged])
    assert load_tasks(tmp_path, ["retrieval/a"])
    write_rows(folder / "qrels.jsonl", [judged, {**judged, "score": 0}])
    with pytest.raises(DataError, match=r"qrels\.jsonl:2: judges 'q' with 'd' again and otherwise"):
        load_tasks(tmp_path, ["retrieval/a"])


def test_damaged_files_name_file_and_line(tmp_path: Path) -> None:
    good = {"id": "q", "text": "a", "lang": "en"}
    cases: list[tuple[str, list[dict[str, Any]], str]] = [
        ("sts/a.jsonl", [sts("a", 1), {**sts("b", 1), "score": float("nan")}], r"a\.jsonl:2: got score = 'nan'"),
        ("sts/a.jsonl", [sts("a", 1), sts("b", 1)], "all 2 pairs have the same score"),
        ("bitext/a.jsonl", [{"sentence1": "a", "sentence2": "b", "lang_pair": "deu"}], r":1: got lang_pair 'deu'"),
        ("classification/a.jsonl", [{"text": "a", "label": 1, "lang": "en"}], r":1: .* expected \['split'\] too"),
        (
            "classification/a.jsonl",
            [{"text": s, "label": 1, "lang": "en", "split": s} for s in ("train", "test")],
            "fewer than two labels",
        ),
        ("retrieval/a/queries.jsonl", [good, good], r"queries\.jsonl:2: id 'q' occurs twice"),
        ("retrieval/a/corpus.jsonl", [{"id": "d", "title": " "}], "1 documents hold neither title nor text"),
        ("retrieval/a/qrels.jsonl", [{"qid": "q", "did": "x", "score": 1}], r"qrels\.jsonl:1: judges 'q' with 'x'"),
    ]
    for number, (name, rows, message) in enumerate(cases):
        root = tmp_path / str(number)
        if name.startswith("retrieval"):
            write_rows(root / "retrieval/a/queries.jsonl", [good])
            write_rows(root / "retrieval/a/corpus.jsonl", [{"id": "d", "text": "b"}])
            write_rows(root / "retrieval/a/qrels.jsonl", [{"qid": "q", "did": "d", "score": 1}])
        write_rows(root / name, rows)
        with pytest.raises(DataError, match=message):
            load_tasks(root, ["*"])


def test_two_files_for_one_task_or_none_are_errors(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        write_rows(tmp_path / "one/sts" / name, [sts("a", 1)])
    with pytest.raises(DataError, match=r"got both a\.jsonl and a\.jsonl\.gz"):
        load_tasks(tmp_path / "one", ["sts/a"])
    write_rows(tmp_path / "two/retrieval/a/queries.jsonl", [{"id": "q", "text": "a", "lang": "en"}])
    with pytest.raises(DataError, match="corpus: got 0 files"):
        load_tasks(tmp_path / "two", ["retrieval/a"])


def test_queries_without_a_relevant_document_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "retrieval/a"
    write_rows(folder / "queries.jsonl", [{"id": i, "text": f"text {i}", "lang": "en"} for i in range(3)])
    write_rows(folder / "corpus.jsonl", [{"id": "d", "title": "Head", "text": "body"}])
    write_rows(folder / "qrels.jsonl", [{"qid": 0, "did": "d", "score": 1}, {"qid": 1, "did": "d", "score": 0}])
    (task,) = load_tasks(tmp_path, ["retrieval/a"])
    assert (task.parts[0].n, task.scored) == (1, {("text 0",)})
    assert task.texts == {"text 0", "text 1", "text 2", "head body"}


def test_dev_and_test_must_not_share_scored_items(eval_data: Path, tmp_path: Path) -> None:
    dev = load_tasks(eval_data, ["sts/toy.dev", "classification/toy@dev", "retrieval/toy_de"])
    test = load_tasks(eval_data, ["sts/toy.test", "classification/toy", "retrieval/toy_en", "bitext/toy"])
    check_disjoint(dev, test)
    with pytest.raises(DataError, match=r"classification/toy \(dev\) and classification/toy \(test\) share 60"):
        check_disjoint(test[1:2], test)
    # The same pair the other way round and in other case is the same pair; one text in common is not.
    pair = {"sentence1": "A cat", "sentence2": "a dog", "lang": "en"}
    swapped = {"sentence1": "A  DOG", "sentence2": "a cat", "lang": "en"}
    write_rows(tmp_path / "sts/a.jsonl", [{**pair, "score": 1}, sts("x", 2)])
    write_rows(tmp_path / "sts/b.jsonl", [{**swapped, "score": 3}, sts("y", 2)])
    write_rows(tmp_path / "sts/c.jsonl", [{**pair, "sentence2": "a fox", "score": 1}, sts("z", 2)])
    a, b, c = load_tasks(tmp_path, ["sts/a", "sts/b", "sts/c"])
    check_disjoint([a, b], [c])
    with pytest.raises(DataError, match=r"sts/a \(dev\) and sts/b \(test\) share 1 .*'a cat', 'a dog'"):
        check_disjoint([a], [c, b])


def test_a_language_of_which_nothing_is_left_is_an_error(eval_data: Path) -> None:
    (task,) = load_tasks(eval_data, ["bitext/toy"])
    assert len(task.parts[0].texts) == 2 * task.parts[0].n
    with pytest.raises(DataError, match=r"bitext/toy \(de-en\): got no row to score, expected at least 1"):
        load_tasks(eval_data, ["bitext/toy"], excluded=task.scored)


def test_languages_with_too_few_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [sts(f"text {i}", i % 4) for i in range(30)] + [sts(f"wort {i}", 3, "de") for i in range(29)]
    write_rows(tmp_path / "sts/a.test.jsonl", rows)
    (task,) = load_tasks(tmp_path, ["sts/*"], min_rows=30)
    assert ([part.lang for part in task.parts], dict(task.too_few)) == (["en"], {"de": 29})
    assert len(task.scored) == 59  # what is not scored is still no training text
    with pytest.raises(DataError, match=r"too few rows in every language, .*'en': 30.* in sts/a\.test, expected 31"):
        load_tasks(tmp_path, ["sts/*"], min_rows=31)


def test_the_split_of_pairs_is_test_or_the_one_that_is_named(eval_data: Path) -> None:
    test, dev = load_tasks(eval_data, ["pair/toy", "pair/toy@dev"])
    assert [(part.lang, part.n) for part in test.parts] == [("de", 40)]
    assert [(part.lang, part.n) for part in dev.parts] == [("de", 40), ("en", 40)]
    assert not dev.scored & test.scored
    assert dev.texts == test.texts
    with pytest.raises(DataError, match=r"got split 'valid' to score, .* \['dev', 'test'\]"):
        load_tasks(eval_data, ["pair/toy@valid"])
    with pytest.raises(DataError, match="got split 'dev' to score, expected one that its rows name: none"):
        load_tasks(eval_data, ["clustering/toy@dev"])
    with pytest.raises(DataError, match=r"pair/toy: holds no row to score in the languages \['en'\]"):
        load_tasks(eval_data, ["pair/toy"], languages=["en"])


def test_some_rows_without_a_split_are_an_error(tmp_path: Path) -> None:
    row = {"text": "a", "label": 1, "lang": "en"}
    write_rows(tmp_path / "clustering/a.jsonl", [{**row, "split": "test"}, row])
    with pytest.raises(DataError, match="either all rows name one, or none does"):
        load_tasks(tmp_path, ["clustering/a"])


def test_clustering_scores_at_most_as_many_texts_as_it_embeds(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 3, "lang": "en"} for i in range(2_100)]
    write_rows(tmp_path / "clustering/a.jsonl", rows)
    (task,) = load_tasks(tmp_path, ["clustering/a"])
    assert task.parts[0].n == len(task.scored) == 2_048
    assert len(task.texts) == 2_100
    (few,) = load_tasks(tmp_path, ["clustering/a"], max_rows=100)
    assert few.parts[0].n == 100


def test_reranking_holds_every_candidate_against_training(eval_data: Path) -> None:
    (task,) = load_tasks(eval_data, ["reranking/toy"])
    assert (task.type, task.metric, task.parts[0].n) == ("Reranking", "map_at_1000", 20)
    assert len(task.scored) == 20
    assert len(task.texts) > 20 * 8


def test_damaged_rows_of_the_newer_types_name_file_and_line(tmp_path: Path) -> None:
    pair = {"sentence1": "a", "sentence2": "b", "lang": "en"}
    query = {"query": "a", "positive": ["b"], "negative": ["c"], "lang": "en"}
    cases: list[tuple[str, list[dict[str, Any]], str]] = [
        ("pair/a.jsonl", [{**pair, "label": 2}], r"a\.jsonl:1: got label '2', expected 1 for the same meaning"),
        ("pair/a.jsonl", [{**pair, "label": 1}] * 2, "all 2 pairs have the same score"),
        ("clustering/a.jsonl", [{"text": "a", "label": 1, "lang": "en"}] * 2, "all 2 texts have the same label"),
        ("reranking/a.jsonl", [query, {**query, "positive": []}], r":2: got positive = '\[\]', expected a list"),
        ("reranking/a.jsonl", [{**query, "negative": "c"}], r":1: got negative = 'c', expected a list"),
        ("reranking/a.jsonl", [{**query, "negative": ["c", " "]}], r":1: got negative = .* expected text that"),
    ]
    for number, (name, rows, message) in enumerate(cases):
        write_rows(tmp_path / str(number) / name, rows)
        with pytest.raises(DataError, match=message):
            load_tasks(tmp_path / str(number), ["*"])


def test_a_glob_leaves_out_what_models_are_chosen_on_unless_it_says_so(eval_data, capsys):
    assert [task.id for task in load_tasks(eval_data, ["sts/*"])] == ["sts/toy.test"]
    assert "leaves out sts/toy.dev: models are chosen on these" in capsys.readouterr().err
    assert [task.id for task in load_tasks(eval_data, ["sts/*.dev"])] == ["sts/toy.dev"]
    assert [task.id for task in load_tasks(eval_data, ["sts/toy.dev", "sts/*"])] == ["sts/toy.dev", "sts/toy.test"]
    assert capsys.readouterr().err.count("leaves out") == 1
    # What text must not contain are all of them.
    assert len(load_tasks(eval_data, ["sts/*"], dev=True)) == 2
    assert "leaves out" not in capsys.readouterr().err
