"""The .pt files work with the first attempt's card as it stands; the card's section is in ``seed_usage.txt``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families import gemma, qwen, toy_texts

from leafembed.exporting import export
from leafembed.learn.models import describe, load_sentence_transformer
from leafembed.learn.teacher import TorchEncoder
from leafembed.ship.seed_model import SeedModel

USAGE = (Path(__file__).parent / "seed_usage.txt").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"^```python\n(.*?)^```", USAGE, flags=re.MULTILINE | re.DOTALL)
(REPO,) = set(re.findall(r'"([\w-]+/[\w-]+)"', SNIPPET))
(PACKAGES,) = re.findall(r"^pip install (.*)$", USAGE, flags=re.MULTILINE)
# What the card does not name is not there. That of a text longer than the tiny model reads is in its right place.
ALONE = "import sys\nfor name in ('leafembed', 'sentence_transformers', 'onnxruntime'):\n    sys.modules[name] = None\n"
MORE = f"\nimport json\nprint(json.dumps(model.encode({toy_texts(5)!r} + ['', 'en1 ' * 400, 'x']).tolist()))\n"


@pytest.fixture(scope="module", params=[gemma, qwen], ids=lambda build: build.__name__)
def exported(request, tmp_path_factory):
    """A student as .pt files, in the place of a hub cache that belongs to the card's repository."""
    root = tmp_path_factory.mktemp("seed")
    student, commit = request.param(root / "student"), "0" * 40
    export(student, root / "out", format="pt", texts=toy_texts(8))
    repository = root / "hub" / f"models--{REPO.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(root / "out", repository / "snapshots" / commit)
    return student, root / "hub"


def run(code, hub):
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=250
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_snippet_is_the_one_of_the_card():
    assert "torch.load(model_path, map_location='cpu', weights_only=False)" in SNIPPET
    assert PACKAGES.split() == ["torch>=2.6.0", "transformers>=4.57.0", "huggingface-hub"]


@pytest.mark.parametrize("name", ["model_quantized.pt", "model_fp32.pt"])
def test_the_cards_snippet_works_unchanged_and_gives_the_students_vectors(exported, name):
    student, hub = exported
    assert "model_quantized.pt" in SNIPPET
    shape, vectors = run(ALONE + SNIPPET.replace("model_quantized.pt", name) + MORE, hub)
    assert shape == "torch.Size([2, 32])"
    model = load_sentence_transformer(student)
    own = TorchEncoder(model, describe(model, student, name="s"), precision="fp32").encode(
        [*toy_texts(5), "", "en1 " * 400, "x"]
    )
    cosines = np.sum(np.array(json.loads(vectors)) * own, axis=1)
    assert cosines.min() > (0.99999 if name == "model_fp32.pt" else 0.998)
    assert cosines.max() < (1.00001 if name == "model_fp32.pt" else 1 - 1e-7)


def test_the_pages_own_snippet_works(exported):
    (folder,) = exported[1].glob("models--*/snapshots/*")
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S
    )
    lines = run(f"{ALONE}import os\nos.chdir({str(folder)!r})\n{code}print(tuple(embeddings.shape))\n", exported[1])
    assert lines == ["(2, 32)"]


def test_a_file_that_was_opened_can_be_saved_again(exported):
    code = SNIPPET + "import io; file = io.BytesIO(); torch.save(checkpoint, file); file.seek(0)\n"
    code += "again = torch.load(file, weights_only=False)['model']\nagain.set_tokenizer(tokenizer)\n"
    code += "print(bool(torch.equal(again.encode(texts), embeddings)), again.tokenizer is tokenizer)"
    assert run(ALONE + code, exported[1])[1] == "True True"


class _Letters:
    """A tokenizer of letters."""

    pad_token_id, padding_side = 9, "right"

    def __call__(self, texts, *, truncation, max_length):
        return {"input_ids": [[ord(letter) - ord("a") for letter in text][:max_length] for text in texts]}


def test_texts_are_padded_cut_and_batched():
    seen = []

    def graph(ids, mask):
        seen.append((ids.tolist(), mask.tolist()))
        return ids[:, :1].float()

    model = SeedModel(graph, 3, "")
    model.set_tokenizer(_Letters())
    assert model.eval().encode(["abcd", "b", "c"], batch_size=2).tolist() == [[0.0], [1.0], [2.0]]
    assert seen == [([[0, 1, 2], [1, 9, 9]], [[1, 1, 1], [1, 0, 0]]), ([[2, 9]], [[1, 0]])]
    assert model.encode("d").tolist() == [[3.0]]
    assert model.encode([""]).tolist() == [[9.0]]
    assert seen[-1] == ([[9, 9]], [[1, 0]])
    model.tokenizer.padding_side = "left"
    model.encode(["ab", "c"])
    assert seen[-1] == ([[0, 1], [9, 2]], [[1, 1], [0, 1]])


def test_what_the_model_cannot_do_is_an_error():
    model = SeedModel(None, 3, "")
    with pytest.raises(RuntimeError, match="set_tokenizer"):
        model.encode(["a"])
    model.set_tokenizer(_Letters())
    for options in ({"device": "cuda"}, {"normalize": False}):
        with pytest.raises(ValueError, match="expected 'cpu' and True"):
            model.encode(["a"], **options)
    with pytest.raises(ValueError, match="no text"):
        model.encode([])
