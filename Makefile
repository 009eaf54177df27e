PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Fails a run that leaves a process behind, and kills it, also after Ctrl-C.
PYTEST := $(BIN)/python tests/orphans.py $(BIN)/python -m pytest -q
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llmd
MODELS := $(CACHE)/models

.PHONY: env check demo test test-fast bench peers soak pictures clean

# llmd's own environment: light, locked, never with vLLM or torch in it.
env: $(VENV)/.done

$(VENV)/.done: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The main job for real: three vLLM engines on demand, a chat, an embedding, a rerank.
demo: env
	vllm=$$(packaging/engine_env.sh) && \
	"$$(dirname "$$vllm")/python" packaging/tiny_models.py $(MODELS) && \
	$(BIN)/python packaging/demo.py "$$vllm" $(MODELS)

# Everything, with a real vLLM in an environment of its own.
test: check
	vllm=$$(packaging/engine_env.sh) && \
	"$$(dirname "$$vllm")/python" packaging/tiny_models.py $(MODELS) && \
	LLMD_REAL_VLLM="$$vllm" LLMD_REAL_MODELS=$(MODELS) $(PYTEST)

# What needs no vLLM, on all cores: minutes.
test-fast: env
	$(PYTEST) -n auto --dist loadscope -m "not real"

# What waiting costs under each policy, what a decision costs, what the router costs beside nginx, and what people who look on cost.
bench: env
	$(BIN)/python -m benchmarks.scheduling
	$(BIN)/python -m benchmarks.deciding
	$(BIN)/python benchmarks/router
	$(BIN)/python -m benchmarks.dashboard

# Other people's routers, for the router's benchmark to measure beside: optional, a gigabyte in the cache.
peers:
	for peer in vllm-router 'litellm[proxy]'; do \
		place=$(CACHE)/peers/$${peer%%[*} && \
		$(PYTHON) -m venv $$place && $$place/bin/pip install --quiet "$$peer" || exit 1; \
	done

# Fifty times the chaos that `make test` plays; a seed that fails is named with the command that plays it again.
soak: env
	$(BIN)/python -m tests.simulation.replay --soak 10000

# The pictures in docs/, of a daemon on stand-in cards, by Debian's chromium: two minutes.
pictures: env
	$(BIN)/python -m docs.pictures

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
