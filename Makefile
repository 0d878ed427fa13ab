# What people run. CI runs the same targets and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux, PyPI's torch brings CUDA. For the CPU build: make run PIP_ARGS="--extra-index-url <torch's CPU index>"
PIP_ARGS ?=
RECIPE ?= recipes/quick.toml
# Everything runs from local files: a stray look-up on a model hub should fail at once, not hang.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: install run test test-slow test-js bench bench-memory bench-training check-int8 compare-mteb check fix clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

run: install ## the whole line on shipped data: teacher in, judged INT8 bundle out; then the model of this repository
	$(BIN)/leaf run $(RECIPE)
	@echo "Where is the bank?" | $(BIN)/leaf encode --truncate-dim 4

check: install ## style, types
	$(BIN)/ruff format --check leafembed tests tools
	$(BIN)/ruff check leafembed tests tools
	$(BIN)/mypy

WORKERS ?= 2
test: check ## everything CI runs, in WORKERS processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile

test-slow: install ## real models
	$(BIN)/pytest -q -m slow --timeout 3600

JS := tests/js
test-js: install ## exported students in transformers.js, the server with clients of npm; needs node and npm
	npm install --prefix $(JS) --ignore-scripts --no-package-lock --no-audit --no-fund
	$(BIN)/pytest -q -m slow --timeout 3600 tests/test_transformers_js.py tests/test_serve_npm.py

BUNDLE ?= models/leaf-embeddinggemma-int8
BENCH_ARGS ?=
bench: install ## BUNDLE beside what others would use, and its teacher (BENCH_ARGS="--teacher FOLDER"): table, plot
	$(BIN)/leaf benchmark $(BUNDLE) --out runs/benchmark $(BENCH_ARGS)

bench-memory: install ## a million short texts through BUNDLE: memory on the way
	$(BIN)/python tools/bench_memory.py $(BUNDLE)

STUDENT ?= runs/embeddinggemma/student
CHECK_TEXTS ?= ../shared/data/eval/bitext/tatoeba.jsonl.gz --text sentence1 --lang lang_pair
check-int8: install ## what INT8 keeps of STUDENT in BUNDLE, by language, and a text alone beside one in a batch
	$(BIN)/python tools/check_int8.py $(BUNDLE) $(STUDENT) $(CHECK_TEXTS) --out runs/check-int8.json

TEACHER ?= ~/.cache/leafembed/teachers/embeddinggemma-300m
TEXTS ?= data/train/common_voice_sentences.jsonl.gz
bench-training: install ## a training step with stock and with fused layers, in turn; TEACHER and TEXTS say on what
	OMP_NUM_THREADS=2 $(BIN)/python tools/bench_training.py --teacher $(TEACHER) --texts $(TEXTS)

EVAL_DATA ?= ../shared/data/eval
compare-mteb: install ## our scores beside mteb's on the same files; EVAL_DATA is the folder of evaluation data
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tools/compare_with_mteb.py --data $(EVAL_DATA)

fix: install ## format and fix what can be fixed
	$(BIN)/ruff format leafembed tests tools
	$(BIN)/ruff check --fix leafembed tests tools

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache dist
