PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready  ## run jobs/demo.yaml on a local Ray and show what came out
	$(BIN)/batchgen run jobs/demo.yaml
	$(BIN)/batchgen head out/demo

test: $(VENV)/.ready  ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.ready  ## format, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(VENV)/.ready  ## ratios against peers, overhead and memory of the flow
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.flow
	$(BIN)/python -m benchmarks.memory

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:  ## remove the environment and the demo's output
	rm -rf $(VENV) out/demo
