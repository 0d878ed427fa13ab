"""The clients that people have, as they come from PyPI, pointed at a server of ours."""

import gc

import numpy as np
import pytest
from served import make_bundle, serving

import leafembed

TEXTS = ["red", "green two", "blue"]

# Theirs: connections that they leave open, and what they find old in themselves and others.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def connections_end_here():
    """What a client left open is collected under the filters above, and not in whatever test runs next."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def served(bundle):
    with serving({"leaf": bundle}) as running:
        yield running


@pytest.fixture(scope="module")
def vectors(bundle):
    return leafembed.load(bundle).encode(TEXTS)


def near(got, want):
    assert np.array(got) == pytest.approx(want, abs=1e-6)


def test_ollama(served, vectors):
    import ollama

    client = ollama.Client(host=served.url)
    answer = client.embed("leaf", TEXTS)
    near(answer.embeddings, vectors)
    assert answer.prompt_eval_count == 7
    near(client.embed("leaf", "red", dimensions=8, truncate=True, keep_alive="5m").embeddings[0], vectors[0])
    near(client.embeddings("leaf", "red").embedding, vectors[0])
    assert [model.model for model in client.list().models] == [
        "leaf:latest",
        "leaf-query:latest",
        "leaf-document:latest",
    ]
    assert client.show("leaf").modelinfo["leaf.embedding_length"] == 8
    assert client.ps().models[0].model == "leaf:latest"
    with pytest.raises(ollama.ResponseError, match='model "no" not found') as caught:
        client.embed("no", "red")
    assert caught.value.status_code == 404


def test_openai(served, vectors):
    import openai

    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="leaf", input=TEXTS)  # asks for base64
    near([item.embedding for item in answer.data], vectors)
    assert answer.usage.total_tokens == 7
    plain = client.embeddings.create(model="leaf", input=TEXTS, encoding_format="float", dimensions=8)
    near([item.embedding for item in plain.data], vectors)
    assert next(model.id for model in client.models.list()) == "leaf"
    assert client.models.retrieve("leaf").owned_by == "leafembed"
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="no", input="red")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tokens:
        client.embeddings.create(model="leaf", input=[[1, 2]])
    assert tokens.value.param == "input"


def test_langchain_ollama(served, vectors):
    from langchain_ollama import OllamaEmbeddings

    model = OllamaEmbeddings(model="leaf", base_url=served.url, validate_model_on_init=True)
    near(model.embed_documents(TEXTS), vectors)
    near(model.embed_query("red"), vectors[0])


def test_langchain_openai(served, vectors):
    from langchain_openai import OpenAIEmbeddings

    model = OpenAIEmbeddings(
        model="leaf", base_url=f"{served.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    near(model.embed_documents(TEXTS), vectors)
    near(model.embed_query("red"), vectors[0])


def test_llama_index(served, vectors):
    from llama_index.embeddings.ollama import OllamaEmbedding

    model = OllamaEmbedding(model_name="leaf", base_url=served.url)
    near(model.get_text_embedding_batch(TEXTS), vectors)
    near(model.get_query_embedding("red"), vectors[0])


def test_chromadb(served, vectors):
    from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OllamaEmbeddingFunction
    from chromadb.utils.embedding_functions.openai_embedding_function import OpenAIEmbeddingFunction

    near(OllamaEmbeddingFunction(url=served.url, model_name="leaf")(TEXTS), vectors)
    near(OpenAIEmbeddingFunction(api_key="none", api_base=f"{served.url}/v1", model_name="leaf")(TEXTS), vectors)
    near(HuggingFaceEmbeddingServer(url=f"{served.url}/embed")(TEXTS), vectors)


def test_hub_client(served, vectors, monkeypatch):
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # it takes any server for the hub
    client = InferenceClient(model=f"{served.url}/embed")
    near(client.feature_extraction("red", normalize=True, truncate=True), vectors[:1])


def test_our_own_judge_scores_a_served_model_as_the_bundle(served, bundle, eval_data, tmp_path):
    from leafembed.comparing import judge_all, read_tasks

    tasks = read_tasks(eval_data, ["sts/toy.test"], languages=[], max_rows=None)
    specs = [str(bundle), f"leaf@{served.url}/v1", f"leaf@{served.url}/api/embed"]
    folder, *others = judge_all(specs, tasks, cache_dir=tmp_path, allow_failed=False)
    for other in others:
        assert other.report.mean == pytest.approx(folder.report.mean, abs=1e-6)


def test_mteb_s_client_scores_as_the_bundle(served, bundle, tmp_path):
    import mteb
    from mteb.mocks import mock_tasks
    from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper

    from leafembed.judge.mteb_run import run_mteb

    theirs = OpenAIAPIEncodeWrapper(served.url, "leaf", modalities=["text"], use_chat_template=False)
    found = mteb.evaluate(theirs, mock_tasks.MockSTSTask(), cache=mteb.ResultCache(tmp_path), show_progress_bar=False)
    ours = run_mteb(leafembed.load(bundle), [mock_tasks.MockSTSTask()])
    assert [result.get_score() for result in found.task_results] == pytest.approx(
        [result.main_score for result in ours.results], abs=1e-6
    )
