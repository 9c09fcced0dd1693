# Everything runs in .venv, made here from Python 3.11 or newer and pip; nothing else is needed.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
WORKDIR ?= runs/demo
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all test-parity lint format clean

demo: $(VENV)/.run  ## pre-train on embedded images; Ctrl-C and `make demo` again goes on
	@$(PY) -m mim_jax.train --config configs/mae.py:demo --workdir $(WORKDIR)

test: lint  ## the test suite CI runs: no PyTorch, no network, no data beyond the clone
	$(PY) -m pytest -n 2 --dist loadscope

test-all: lint  ## with the slow tests
	$(PY) -m pytest -n 2 --dist loadscope -m 'not parity'

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.run: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-parity runs
