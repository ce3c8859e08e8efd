PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test chaos fuzz fuzz-inputs oracle lint docs docs-update bench peers clean

demo: $(VENV)/.ready  ## run jobs/demo.yaml on a local Ray and show what came out
	$(BIN)/batchgen run jobs/demo.yaml
	$(BIN)/batchgen head out/demo

WORKERS ?= 2
test: $(VENV)/.ready  ## all tests, in so many processes, each file in one
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

RUNS ?= 225
SEED ?= 0
chaos: $(VENV)/.ready  ## kill -9 everything at any moment, then run again, so many times, e.g. SEED=7
	$(BIN)/python -m tests.chaos --seed $(SEED) --runs $(RUNS)

FUZZ_JOBS ?= 2000
fuzz: $(VENV)/.ready  ## so many random jobs against transformers and as many against the references, e.g. SEED=7
	FUZZ_JOBS=$(FUZZ_JOBS) $(BIN)/python -m pytest tests/test_fuzz.py --timeout=0 --hypothesis-seed=$(SEED) \
		--hypothesis-show-statistics

fuzz-inputs: $(VENV)/.ready  ## hostile input files at random, for minutes
	$(BIN)/python -m pytest -m fuzz tests/test_input_fuzz.py

oracle: $(VENV)/.ready .oracle/.ready  ## the strategies that transformers dropped, against 4.41.2 in an environment of its own
	$(BIN)/python -m pytest tests/test_oracle.py

lint: $(VENV)/.ready  ## format, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(VENV)/.ready  ## the site, in docs/_build
	$(BIN)/python -m sphinx -q -E -a -W --keep-going docs docs/_build

docs-update: $(VENV)/.ready  ## put what comes out into README.md and docs/: outputs, tables, pictures
	$(BIN)/python -m tests.strategies_page
	$(BIN)/python -m tests.combinations --write
	$(BIN)/python -m docs.generate_pictures
	$(BIN)/python -m docs.generate_screenshot
	$(BIN)/python -m tests.handbook

BENCHMARKS = limit uniform ragged recording shared_prefill beams pipeline growth flow replicas memory engine_memory weights report scale gpu
bench: $(VENV)/.ready  ## speed beside peers and the machine's limit, for hours; one piece e.g. BENCHMARKS=uniform
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

peers: .vllm/.ready .ctranslate2/.ready .oracle/.ready  ## environments of the programs that `bench` compares with

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.oracle/.ready: tests/oracle/constraints.txt
	$(PYTHON) -m venv .oracle
	.oracle/bin/python -m pip install --quiet --constraint tests/oracle/constraints.txt torch transformers numpy
	touch $@

.vllm/.ready: benchmarks/peers/vllm.txt
	$(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --no-deps --requirement benchmarks/peers/vllm.txt
	touch $@

.ctranslate2/.ready: benchmarks/peers/ctranslate2.txt
	$(PYTHON) -m venv .ctranslate2
	.ctranslate2/bin/python -m pip install --quiet --no-deps --requirement benchmarks/peers/ctranslate2.txt
	touch $@

clean:  ## remove the environments and what was made with them
	rm -rf $(VENV) .oracle .vllm .ctranslate2 out/demo out/benchmarks docs/_build docs/reference
