# make demo    record, import, train a tiny model on cached answers, evaluate it live; ten minutes on two cores
# make test    lint, types, import contracts, tests
# make check   the same without the tests
# make bench   how fast the cache service is; a quarter of an hour, writes benchmarks/results/cache.json
# make bench-search  where a paraphrased search may be answered by another one's result, and where it may not
# make image   the cache service as a container image
# All but the image set themselves up in .venv. PYTHON=... picks the interpreter (3.11).

PYTHON ?= python3.11
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES := services/client services/cache[openvino,torch] trainer

.PHONY: demo test check format bench bench-search image clean

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
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache
