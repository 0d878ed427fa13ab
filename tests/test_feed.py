from __future__ import annotations

import numpy as np
import pytest
from families import FAMILIES, bert, gemma, toy_texts

from leafembed.learn.batches import plan_batches
from leafembed.learn.feed import Collator, PlannedBatches, Texts, count_tokens
from leafembed.learn.models import load_sentence_transformer
from leafembed.learn.rows import Rows
from leafembed.learn.student import Sample, init_student
from leafembed.learn.trainer import _workers
from leafembed.recipe_learn import Phase, StudentConfig, TrainConfig
from leafembed.types import Corpus, Row

TEXTS = toy_texts(30, words=(1, 40))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_sentence_transformer(gemma(tmp_path_factory.mktemp("feed") / "gemma"))


def corpus(prompt_name=None):
    rows = tuple(Row(text, text[:2], prompt_name) for text in TEXTS)
    return Corpus(rows[:20], rows[20:], {}, "f" * 16)


def true_counts(model, texts):
    return [model.preprocess([text])["attention_mask"].sum().item() for text in texts]


@pytest.mark.parametrize("family", ["gemma", "qwen", "bert", "xlm_roberta"])
def test_tokens_are_counted_as_the_student_reads_them(tmp_path, family):
    model = load_sentence_transformer(FAMILIES[family].build(tmp_path / family))
    texts = Texts(corpus("query"), model.prompts)
    model.preprocess(TEXTS)  # leaves padding switched on
    counts = count_tokens(texts, model, tmp_path / "tokens.npy")
    assert counts.dtype == np.int32
    assert counts.tolist() == true_counts(model, [model.prompts.get("query", "") + text for text in TEXTS])


def test_counts_are_kept(tmp_path, student):
    texts = Texts(corpus(), {})
    first = count_tokens(texts, student, tmp_path / "tokens.npy")
    np.save(tmp_path / "tokens.npy", first + 1)
    assert np.array_equal(count_tokens(texts, student, tmp_path / "tokens.npy"), first + 1)
    np.save(tmp_path / "tokens.npy", first[:-1])  # of another corpus
    assert np.array_equal(count_tokens(texts, student, tmp_path / "tokens.npy"), first)


def test_counting_does_not_end_the_cut(tmp_path, student):
    count_tokens(Texts(corpus(), {}), student, tmp_path / "tokens.npy")
    before, student.max_seq_length = student.max_seq_length, 9
    try:
        assert student.preprocess(TEXTS)["input_ids"].shape[1] == 9
    finally:
        student.max_seq_length = before


def test_validation_rows_follow_and_prompts_come_first():
    texts = Texts(corpus("query"), {"query": "q: "})
    assert len(texts) == 30
    assert texts[(3, 64)] == (3, 64, "q: " + TEXTS[3], 3)
    assert texts.text(25) == "q: " + TEXTS[25]
    assert Texts(corpus("other"), {"query": "q: "}).text(0) == TEXTS[0]


def test_each_batch_is_cut_to_the_limit_of_its_phase_and_the_student_keeps_its_own(student):
    lengths = np.array(true_counts(student, TEXTS[:20]), dtype=np.int32)
    phases = (Phase(tokens=8, share=0.5), Phase(tokens=200, share=0.5))
    plan = plan_batches(lengths, None, config=TrainConfig(max_steps=6, batch_size=8, curriculum=phases),
                        limit=student.max_seq_length, seed=0)  # fmt: skip
    texts, collate = Texts(corpus(), {}), Collator(student)
    full = student.max_seq_length
    for i, batch in enumerate(PlannedBatches(plan, 8)):
        inputs = collate([texts[visit] for visit in batch])
        rows, limit = plan[i]
        assert inputs["label"].tolist() == rows.tolist()
        assert inputs["sentence_attention_mask"].sum(dim=1).tolist() == np.minimum(lengths[rows], limit).tolist()
        assert student.max_seq_length == full
    assert len(PlannedBatches(plan, 8)) == 6


def test_a_token_table_reads_texts_of_any_length(tmp_path):
    teacher = load_sentence_transformer(bert(tmp_path / "teacher"))
    init_student(StudentConfig(init="static"), teacher, Sample(TEXTS, teacher.encode(TEXTS)), tmp_path / "static")
    model = load_sentence_transformer(tmp_path / "static")
    texts = Texts(corpus(), {})
    counts = count_tokens(texts, model, tmp_path / "tokens.npy")
    inputs = Collator(model)([texts[(i, 8)] for i in range(4)])
    assert len(inputs["sentence_input_ids"]) == counts[:4].sum()


def test_a_batch_is_read_as_its_texts_are(tmp_path):
    rows = [Row(text, "en", "query" if i % 3 else None) for i, text in enumerate(TEXTS)]
    for train, validation in ((rows[:20], rows[20:]), (Rows.of(rows[:20]), Rows.of(rows[20:]))):
        texts = Texts(Corpus(train, validation, {}, "f" * 16), {"query": "q: "})
        visits = [(29, 8), (3, 16), (3, 8), (20, 8), (0, 8)]
        expected = [(i, limit, "q: " + TEXTS[i], 3) if i % 3 else (i, limit, TEXTS[i], 0) for i, limit in visits]
        assert texts.__getitems__(visits) == expected
        assert [texts[visit] for visit in visits] == expected


def test_a_gpu_gets_processes_that_tokenise_ahead_and_a_cpu_none(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert _workers("cpu") == {}
    assert _workers("cuda")["num_workers"] == 3  # one core is left for the loop itself
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert _workers("cuda") == {}
