# `make demo` and `make test` need only Python 3.11 or later and a package index; they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -qq --constraint constraints.txt

# litellm would fetch its price map from the network when it is imported
export LITELLM_LOCAL_MODEL_COST_MAP := True

.PHONY: help demo test test-slow bench quality lint clean

help:
	@echo "make demo       route a varied set of requests, train a router on an example table, route with it"
	@echo "make test       all tests but the slow ones"
	@echo "make test-slow  all tests; installs torch"
	@echo "make bench      speed and memory, against their targets"
	@echo "make quality    routing quality on the evaluation tables, against its targets"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove what these made, .venv too"

demo: $(VENV)/installed-demo
	@$(BIN)/router-ml demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/installed-test-slow
	$(BIN)/python -m pytest

bench: $(VENV)/installed-test
	@$(BIN)/python -m training.bench $(ARGS)
	@$(BIN)/python -m training.acting_bench
	@$(BIN)/python -m training.gateway_bench

quality: $(VENV)/installed-demo
	@$(BIN)/python -m training.quality $(ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist temp .hypothesis .mypy_cache .pytest_cache .ruff_cache

# A stamp for each set of packages, so that a second run installs nothing.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "router-ml needs Python 3.11 or later: make PYTHON=/path/to/it")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/installed-demo: pyproject.toml constraints.txt $(VENV)/created
	@echo "Setting up $(VENV), a minute or two the first time ..."
	@$(INSTALL) --editable ".[train]"
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt $(VENV)/created
	@echo "Setting up $(VENV) for the tests, a minute or two the first time ..."
	@$(INSTALL) --editable ".[act,cache,gateway,test,tracing,train]"
	@touch $@ $(VENV)/installed-demo

# torch by itself and first: what is found for that version may be a CPU build, a fraction of the default one's size
$(VENV)/installed-test-slow: $(VENV)/installed-test
	@$(INSTALL) torch
	@$(INSTALL) --editable ".[embed]"
	@touch $@
