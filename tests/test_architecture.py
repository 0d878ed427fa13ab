from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from import_table import ALLOWED, COMPOSING, HELPERS, NOUNS, TOP

import leafembed

ROOT = Path(leafembed.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in FILES}
HEAVY = {
    *("torch", "transformers", "sentence_transformers", "openvino", "nncf"),
    *("sklearn", "scipy", "matplotlib", "jinja2", "mteb", "datasets", "huggingface_hub", "onnx", "onnxruntime"),
}


def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree):
    """Every module imported anywhere in the file, as a full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _ours(tree):
    for name in _imports(tree):
        found = [module for module in MODULES if f"{name}.".startswith(f"leafembed.{module}.")]
        if found:
            yield max(found, key=len)


def _type_checking_only(tree):
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {name for block in blocks for name in _ours(block)}


def _run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_above_it(module):
    imported = set(_ours(_tree(MODULES[module]))) - {module}
    if module == "errors":
        assert imported <= _type_checking_only(_tree(MODULES[module]))
    elif module in NOUNS | HELPERS:
        assert imported <= NOUNS | {"progress"}
    elif module in COMPOSING:
        assert not imported & (TOP - {"__init__"})
    elif module not in TOP:
        assert imported <= NOUNS | HELPERS | ALLOWED.get(module, set())


def test_nothing_imports_the_pipeline_but_the_command_line():
    users = {module for module, path in MODULES.items() if "pipeline" in set(_ours(_tree(path)))}
    assert users == {"cli"}


def test_every_exception_is_used():
    unused = {module: wanted - set(_ours(_tree(MODULES[module]))) for module, wanted in ALLOWED.items()}
    assert not {module: names for module, names in unused.items() if names}


# What turns a torch model into something else runs torch when it is called; whoever runs a bundle never calls it.
EXPORTERS = {
    *(
        "ship.companions",
        "ship.graph",
        "ship.onnx_dynamic",
        "ship.onnx_format",
        "ship.quantize",
        "ship.token_graph",
        "ship.weights",
        "ship.seed_format",
        "ship.seed_model",
    )
}


def test_judge_ship_and_serve_never_import_torch():
    torch_free = [m for m in MODULES if m.startswith(("judge", "serve", "ship")) and m not in EXPORTERS]
    for module in torch_free:
        roots = {name.partition(".")[0] for name in _imports(_tree(MODULES[module]))}
        assert not roots & {"torch", "transformers", "sentence_transformers"}, module
    every = [*torch_free, *sorted(EXPORTERS)]
    names = ", ".join(f"leafembed.{module}".removesuffix(".__init__") for module in every)
    loaded = _run(f"import sys, {names}; print(*sorted({HEAVY!r} & set(sys.modules)))")
    assert loaded == ""


def test_importing_the_package_or_asking_for_help_loads_nothing_heavy():
    code = "import sys, time; start = time.perf_counter(); import leafembed; end = time.perf_counter() - start; "
    seconds, *loaded = _run(f"{code} print(end, *sorted({HEAVY | {'numpy'}!r} & set(sys.modules)))").split()
    assert loaded == []
    assert float(seconds) < 1  # a few milliseconds on a quiet machine
    helped = f"""
import sys
from leafembed.cli import main
try:
    main(["run", "--help"])
except SystemExit as error:
    assert error.code == 0
print(*sorted({HEAVY!r} & set(sys.modules)), sep="", end="|")
"""
    assert _run(helped).endswith("|")
    assert _run(helped).splitlines()[-1] == "|"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300


def _length(function):
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    return lines - (first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0)


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module):
    functions = [n for n in ast.walk(_tree(MODULES[module])) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {f.name: _length(f) for f in functions if _length(f) > 50} == {}


def _defined(tree):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith(("__init__", "__main__"))])
def test_all_is_what_is_public(module):
    tree = _tree(MODULES[module])
    (exported,) = (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _names_all(n))
    assert sorted(exported) == sorted({name for name in _defined(tree) if not name.startswith("_")})


def _names_all(node):
    return ast.unparse(node.targets[0]) == "__all__"


def test_the_package_exports_what_it_says():
    assert sorted(leafembed.__all__) == ["__version__", "load"]
    assert all(hasattr(leafembed, name) for name in leafembed.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_and_no_environment_is_read(module):
    tree = _tree(MODULES[module])
    assert not {name.partition(".")[0] for name in _imports(tree)} & {"pickle", "joblib", "dill", "cloudpickle"}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # A secret belongs in no shell history: the command line reads LEAF_API_KEY, and nothing else.
    reads = {"os.environ"} if module == "cli_bundles" else set()
    assert not (attributes - reads) & {"torch.load", "os.environ", "os.getenv"}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "np.load":
            assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in call.keywords)
