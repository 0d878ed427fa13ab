"""Runs a model that someone exported to ONNX, so that it can be judged beside others. Needs onnxruntime.

    model.onnx or onnx/model.onnx          the graph
    tokenizer.json                         beside it or one folder up, as the other files
    modules.json, 1_Pooling/config.json    how token vectors become one; not needed where the graph does it
    sentence_bert_config.json, tokenizer_config.json, config.json      the length limit, the padding side
    config_sentence_transformers.json      prompts

The graph is run as it is. What comes after pooling may be a normalisation and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leafembed.errors import MissingExtraError, ModelError, first_line
from leafembed.ship.folder import read_prompts
from leafembed.ship.machine import usable_cores
from leafembed.ship.texts import batches_by_length, check_texts, open_tokenizer
from leafembed.stages import file_sha256, fingerprint
from leafembed.types import FloatArray, ModelRef, check_vectors

__all__ = ["OnnxEncoder", "find_graph"]

_BATCH = 32
_LIMITS = (
    ("sentence_bert_config.json", "max_seq_length"),
    ("tokenizer_config.json", "model_max_length"),
    ("config.json", "max_position_embeddings"),
)
"""Where a length limit may stand; the first that states one counts."""
_NO_LIMIT = 10**6  # tokenizers without a limit state a huge number

_Mask = NDArray[np.int64]


def _mean(tokens: FloatArray, mask: _Mask) -> FloatArray:
    weights = mask[:, :, None].astype(np.float32)
    pooled: FloatArray = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
    return pooled


def _last(tokens: FloatArray, mask: _Mask) -> FloatArray:
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    pooled: FloatArray = tokens[np.arange(len(tokens)), last]
    return pooled


_POOLINGS: Mapping[str, Callable[[FloatArray, _Mask], FloatArray]] = {
    "mean": _mean,
    "cls": lambda tokens, mask: tokens[np.arange(len(tokens)), mask.argmax(axis=1)],
    "max": lambda tokens, mask: np.where(mask[:, :, None] > 0, tokens, -np.inf).max(axis=1),
    "lasttoken": _last,
}
_OLD_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


def find_graph(path: Path) -> Path | None:
    """Return the graph that a ``.onnx`` file or a folder names; ``None``: there is none."""
    if path.suffix == ".onnx":
        return path if path.is_file() else None
    return next((file for file in (path / "model.onnx", path / "onnx" / "model.onnx") if file.is_file()), None)


class OnnxEncoder:
    """An ONNX graph with its tokenizer; implements :class:`leafembed.types.Encoder`.

    Args:
        path: Folder, or one graph of a folder that has several.
        name: What people call it.
        threads: CPU threads; ``None``: every core the process may use.

    Raises:
        ModelError: If a file is missing or damaged, or the graph is of a kind that is not run here.
        MissingExtraError: If onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, name: str, threads: int | None = None) -> None:
        graph = find_graph(path)
        if graph is None:
            raise ModelError(f"{path}: no ONNX graph; expected model.onnx or onnx/model.onnx")
        self._root = _root(graph)
        limit = _max_seq_length(self._root)
        self._tokenizer = open_tokenizer(self._root / "tokenizer.json", limit)
        self._pad, self._left = _padding(self._root, self._tokenizer)
        self._lower = bool(_read(self._root / "sentence_bert_config.json").get("do_lower_case"))
        self._session = _open(graph, threads or usable_cores())
        self._inputs = {port.name: port.type for port in self._session.get_inputs()}
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        if unknown or "input_ids" not in self._inputs:
            raise ModelError(f"{graph}: its inputs are {sorted(self._inputs)}, expected input_ids and attention_mask")
        self._output, self._pool = _output(self._session, graph, self._root)
        probe = self._infer([self._ids(["a"])[0]])
        self.ref = ModelRef(
            name=name,
            dim=probe.shape[1],
            fingerprint=_fingerprint(graph, self._root),
            max_seq_length=limit,
            prompts=read_prompts(self._root),
        )

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None) -> FloatArray:
        """Embeddings ``(n_texts, dim)`` float32, unit length, in the order of the texts."""
        check_texts(texts)
        prompt = self.ref.prompts.get(prompt_name or "", "")
        ids = self._ids([prompt + text for text in texts])
        result = np.empty((len(ids), self.ref.dim), dtype=np.float32)
        for rows in batches_by_length(ids, _BATCH):
            result[rows] = self._infer([ids[row] for row in rows])
        result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.float32(1e-12))
        return check_vectors(result, n=len(texts), what=f"vectors of {self.ref.name}")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens of each text the model reads, special tokens included."""
        return [len(ids) for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        plain = [text.lower() for text in texts] if self._lower else list(texts)
        # A text without any token is read as one token of padding, as elsewhere.
        return [np.array(item.ids or [self._pad], np.int64) for item in self._tokenizer.encode_batch_fast(plain)]

    def _infer(self, ids: Sequence[NDArray[np.int64]]) -> FloatArray:
        longest = max(map(len, ids))
        tokens, mask = np.full((len(ids), longest), self._pad, np.int64), np.zeros((len(ids), longest), np.int64)
        for row, own in enumerate(ids):
            place = slice(longest - len(own), None) if self._left else slice(len(own))
            tokens[row, place], mask[row, place] = own, 1
        every = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
        }
        feed = {name: every[name].astype(_DTYPES.get(kind, np.int64)) for name, kind in self._inputs.items()}
        try:
            (output,) = self._session.run([self._output], feed)
        except Exception as error:  # onnxruntime's own have no common base but this
            raise ModelError(f"{self._root}: ONNX Runtime cannot run the graph: {first_line(error)}") from error
        vectors: FloatArray = np.asarray(output, dtype=np.float32)
        return vectors if self._pool is None else self._pool(vectors, mask)


_DTYPES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


def _open(graph: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "compare") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base but this, and a damaged file raises several
        raise ModelError(f"{graph}: onnxruntime cannot open it: {first_line(error)}") from error


def _root(graph: Path) -> Path:
    found = [folder for folder in (graph.parent, graph.parent.parent) if (folder / "tokenizer.json").is_file()]
    if not found:
        raise ModelError(f"{graph}: no tokenizer.json beside it or one folder up")
    return found[0]


def _output(session: Any, graph: Path, root: Path) -> tuple[str, Callable[[FloatArray, _Mask], FloatArray] | None]:
    """The output to read, and how it is pooled; ``None``: it is pooled already."""
    ranks = {port.name: len(port.shape) for port in session.get_outputs()}
    if ranks.get("sentence_embedding") == 2:
        return "sentence_embedding", None
    tokens = [name for name, rank in ranks.items() if rank == 3]
    if not tokens:
        raise ModelError(f"{graph}: its outputs are {ranks} (name and rank), expected sentence_embedding of rank 2 or "
                         "token vectors of rank 3")  # fmt: skip
    return tokens[0], _pooling(root)


def _pooling(root: Path) -> Callable[[FloatArray, _Mask], FloatArray]:
    modules = _read_list(root / "modules.json")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds or set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"{root / 'modules.json'}: got the modules {kinds or 'none'}, expected Transformer, Pooling and at most "
            "Normalize, since the graph gives token vectors; export it with sentence_embedding as an output"
        )
    path = root / str(modules[kinds.index("Pooling")].get("path")) / "config.json"
    config = _read(path)
    modes = config.get("pooling_mode") or [mode for key, mode in _OLD_NAMES.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS or not config.get("include_prompt", True):
        raise ModelError(f"{path}: got {config}, expected one pooling of {sorted(_POOLINGS)} that includes the prompt")
    return _POOLINGS[modes[0]]


def _max_seq_length(root: Path) -> int | None:
    for name, key in _LIMITS:
        limit = _read(root / name).get(key)
        if isinstance(limit, int) and 0 < limit < _NO_LIMIT:
            return limit
    return None


def _padding(root: Path, tokenizer: Any) -> tuple[int, bool]:
    """The padding token's id, and whether it goes to the left."""
    config = _read(root / "tokenizer_config.json")
    token = config.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    pad = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return pad or 0, config.get("padding_side") == "left"


def _fingerprint(graph: Path, root: Path) -> str:
    weights = sorted(graph.parent.glob(f"{graph.stem}.onnx*"))
    settings = [*sorted(root.glob("*.json")), *sorted(root.glob("*/config.json"))]
    return fingerprint([(path.relative_to(root).as_posix(), file_sha256(path)) for path in (*weights, *settings)])


def _read(path: Path) -> dict[str, Any]:
    content = _json(path, {})
    return content if isinstance(content, dict) else {}


def _read_list(path: Path) -> list[dict[str, Any]]:
    content = _json(path, [])
    return content if isinstance(content, list) and all(isinstance(item, dict) for item in content) else []


def _json(path: Path, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON file: {error}") from error
