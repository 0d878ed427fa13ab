"""The load test itself, for a moment: that it measures and writes all that its page says."""

import importlib.util
import json
import sys
from pathlib import Path

from served import make_bundle

ROOT = Path(__file__).parents[1]


def _tool():
    spec = importlib.util.spec_from_file_location("load_test", ROOT / "tools" / "load_test.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules["load_test"] = tool
    spec.loader.exec_module(tool)
    return tool


def test_a_short_run_writes_the_page(tmp_path, monkeypatch):
    tool, texts = _tool(), tmp_path / "texts.txt"
    texts.write_text("red green blue one two three " * 10 + "\n", encoding="utf-8")
    bundle = make_bundle(tmp_path, max_seq_length=64)
    options = ["--out", tmp_path / "out", "--texts", texts, "--seconds", "0.3", "--clients", "1", "4"]
    monkeypatch.setattr(sys, "argv", ["load_test.py", str(bundle), *map(str, options)])
    tool.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["exit_status"] == 0
    assert [loop["clients"] for loop in results["loops"]] == [1, 4]
    assert all(set(loop["statuses"]) == {"200"} for loop in results["loops"])
    assert set(results["overload"]["statuses"]) <= {"200", "503"}
    assert set(results["query_beside_2000_texts"]["statuses"]) == {"200"}
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert page.count("\n* ") == 4
