PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env check test
env: $(VENV)/.done

$(VENV)/.done: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
