# Two commands do everything from a bare checkout: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := $(wildcard src/langwright/infer/native/*.cpp src/langwright/infer/native/*.h src/langwright/infer/native/*.inl)
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

.PHONY: install quickstart test test-all lint format bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Langwright needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/langwright quickstart

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not network"

test-all: $(INSTALLED)
	$(BIN)/langwright models pull smollm2-135m-instruct
	$(BIN)/langwright models pull all-minilm-l6-v2
	$(PYTEST)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python -m bench.train --config char10m --peers --json
	$(BIN)/python -m bench.train --config small30m --peers --json
	$(BIN)/python -m bench.train --config gpt2-124m --peers --json
	$(BIN)/python -m bench.infer --model smollm2-135m-instruct --peers --json

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
