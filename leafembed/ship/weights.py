"""Lets a bundle become a student again, with the few bytes that its graph does not hold.

A captured graph has lost the names of its parameters. Matrices are found in it by their values before anything is
rounded, and the node that reads one is named after it: what that node reads is the matrix, however it is stored.
Vectors (norms, biases) are folded into other numbers, so they lie in ``student.safetensors`` as they are, and so do
small matrices that the graph does not use; in its header are the small files that say of which modules the student is
made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafembed.errors import BundleError, ModelError
from leafembed.ship.folder import PROMPTS
from leafembed.ship.openvino_errors import engine_error
from leafembed.types import FloatArray

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["REST", "mark_matrices", "unpack_student", "write_rest"]

REST = "student.safetensors"
"""File of a model folder with what a student is made of besides the graph's matrices."""

_MARK = "parameter "
_MATRICES = "matrices"
_TRANSFORMER = ("model.", "auto_model.")
"""What stands before the names of a transformer's parameters, but not in its file."""

_SHARED = ("tokenizer.json", "tokenizer_config.json", "config.json", PROMPTS)
"""Files that a student has as its bundle has them."""

_OF_MODULES = ("modules.json", "sentence_bert_config.json")
"""Files beside them that say what the student is made of."""

_MOST_BYTES = 8_000_000
"""Of matrices that are not in the graph: room for a BERT's pooler, and not for a token table."""


def mark_matrices(graph: Any, model: SentenceTransformer) -> None:
    """Name the readers of a model's matrices in its graph, in place, of those that are found in it.

    Args:
        graph: The OpenVINO graph of the model, in fp32.
        model: The model.
    """
    stored: dict[bytes, Any] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32":
            stored.setdefault(_digest(node.data), node)
    readers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            constant = stored.get(_digest(parameter.detach().cpu().numpy()))
            targets = constant.output(0).get_target_inputs() if constant is not None else ()
            if targets:
                readers[name] = next(iter(targets)).get_node()
    times = Counter(node.get_friendly_name() for node in readers.values())
    for name, node in readers.items():
        if times[node.get_friendly_name()] == 1:  # of matrices of equal values it cannot be said which is which
            node.set_friendly_name(_MARK + name)


def write_rest(student: Path, folder: Path) -> bool:
    """Write :data:`REST` of a student's sentence-transformers folder into a bundle that is being put together.

    Returns:
        Whether the student can be made of the bundle then; if its graph lacks too much, nothing is written.
    """
    import openvino
    from safetensors import safe_open
    from safetensors.numpy import save

    places = _places(json.loads((student / "modules.json").read_text(encoding="utf-8")))
    marked = {_key(name, places) for name, _ in _marked(openvino.Core().read_model(folder / "model.xml"))}
    rest: dict[str, FloatArray] = {}
    matrices: list[str] = []
    for file in sorted(student.rglob("*.safetensors")):
        place = file.parent.relative_to(student).as_posix()
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():
                if f"{place}/{name}" in marked:
                    matrices.append(f"{place}/{name}")
                else:
                    rest[f"{place}/{name}"] = tensors.get_tensor(name)
    if sum(values.nbytes for values in rest.values() if values.ndim > 1) > _MOST_BYTES:
        return False
    files = {
        path.relative_to(student).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(student.rglob("*.json"))
        if path.parent != student or path.name in _OF_MODULES
    }
    (folder / REST).write_bytes(save(rest, metadata={**files, _MATRICES: json.dumps(matrices)}))
    return True


def unpack_student(bundle: Path, target: Path) -> None:
    """Write the student of a bundle as a sentence-transformers folder: its weights as INT8 and 4 bits hold them.

    Args:
        bundle: Folder of a bundle, verified.
        target: Folder to create.

    Raises:
        BundleError: If the bundle lacks what that needs, or names a file outside its folder.
        ModelError: If its graph cannot be read.
    """
    from safetensors.numpy import save

    if not (bundle / REST).is_file():
        raise BundleError(f"{bundle}: has no {REST}, so no student can be made of it; expected a bundle of a newer run")
    files, tensors = _read_rest(bundle / REST)
    try:
        expected = set(json.loads(files.pop(_MATRICES)))
        places = _places(json.loads(files["modules.json"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle / REST}: does not say what the student is made of ({error!r})") from error
    matrices = {_key(name, places): values for name, values in _matrices(bundle / "model.xml").items()}
    if matrices.keys() != expected:
        lost = sorted(matrices.keys() ^ expected)
        raise BundleError(f"{bundle}: its graph does not hold each matrix of the student by itself, e.g. {lost[0]}")
    parts: dict[str, dict[str, FloatArray]] = {}
    for key, values in (tensors | matrices).items():
        place, _, name = key.rpartition("/")
        parts.setdefault(f"{place}/model.safetensors", {})[name] = np.ascontiguousarray(values)
    for name in (*files, *parts):
        path = (target / name).resolve()
        if not path.is_relative_to(target.resolve()) or path.suffix not in (".json", ".safetensors"):
            raise BundleError(f"{bundle / REST}: names the file {name!r}, expected .json files within the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name].encode() if name in files else save(parts[name], metadata={"format": "pt"}))
    for name in _SHARED:
        shutil.copyfile(bundle / name, target / name)


def _read_rest(path: Path) -> tuple[dict[str, str], dict[str, FloatArray]]:
    """Small files by name, and tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as rest:
            return dict(rest.metadata() or {}), {name: rest.get_tensor(name) for name in rest.keys()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} cannot be read ({error})") from error


def _places(modules: Any) -> dict[str, str]:
    """Folder of each module by its number."""
    return {str(entry["idx"]): entry["path"] or "." for entry in modules}


def _key(parameter: str, places: Mapping[str, str]) -> str:
    """Folder and name, as in a student's files, of a parameter named as in its modules."""
    module, name = parameter.split(".", 1)
    if places[module] == ".":
        name = next((name.removeprefix(prefix) for prefix in _TRANSFORMER if name.startswith(prefix)), name)
    return f"{places[module]}/{name}"


def _matrices(path: Path) -> dict[str, FloatArray]:
    """Marked matrices by name in fp32, as the engine reads them."""
    import openvino

    core = openvino.Core()
    try:
        graph = core.read_model(path)
        ports = dict(_marked(graph))
        values = core.compile_model(
            openvino.Model(list(ports.values()), [], "weights"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )({})
    except RuntimeError as error:
        raise ModelError(f"{path}: its weights cannot be read: {engine_error(error)}") from error
    return {name: np.array(values[i], dtype=np.float32) for i, name in enumerate(ports)}


def _marked(graph: Any) -> Iterator[tuple[str, Any]]:
    """Name and stored value of each marked matrix."""
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if name.startswith(_MARK):
            inputs = [node.input_value(i) for i in range(node.get_input_size())]
            yield name.removeprefix(_MARK), next(port for port in inputs if _is_stored(port.get_node()))


def _is_stored(node: Any) -> bool:
    """Whether a node is a matrix and depends on nothing but constants."""
    if node.get_type_name() == "Constant":
        return len(node.get_output_shape(0)) > 1
    unpacks = node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract")
    return unpacks and _is_stored(node.input_value(0).get_node())


def _digest(values: Any) -> bytes:
    array = np.ascontiguousarray(values, dtype=np.float32)
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest()
