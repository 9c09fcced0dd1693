# Everything runs in .venv, made here from Python 3.11 or newer and pip; nothing else is needed.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
PY := $(VENV)/bin/python
WORKDIR ?= runs/demo
export JAX_PLATFORMS ?= cpu

# Elsewhere than here torch may bring CUDA packages; to avoid them: make test-parity PIP_TORCH='--index-url <the CPU index>'
PIP_TORCH ?=
PIP := -m pip install --quiet --disable-pip-version-check
.PHONY: demo test test-all test-parity lint format clean

demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.run  ## pre-train on embedded images; Ctrl-C and `make demo` again goes on
	@$(PY) -m mim_jax.train --config configs/mae.py:demo --workdir $(WORKDIR)

test: lint  ## the test suite CI runs: no PyTorch, no network, no data beyond the clone
	$(PY) -m pytest -n 2 --dist loadscope

test-all: lint  ## with the slow tests
	$(PY) -m pytest -n 2 --dist loadscope -m 'not parity'

test-parity: $(PARITY)/.done  ## against transformers and timm, live, in an environment of its own
	$(PARITY)/bin/python -m pytest -m parity tests/parity

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.run: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) $(PIP) -r requirements.txt
	$(PY) $(PIP) --no-deps --editable .
	@touch $@

$(PARITY)/.done: requirements.txt requirements-dev.txt requirements-gcs.txt requirements-parity.txt pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python $(PIP) --no-deps $(PIP_TORCH) $$(grep -E '^(torch|torchvision)==' requirements-parity.txt)
	$(PARITY)/bin/python $(PIP) -r requirements-parity.txt
	$(PARITY)/bin/python $(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt requirements-gcs.txt
	$(PY) $(PIP) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY) runs
