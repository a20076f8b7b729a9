# make demo      build, train and measure a small multimodal model, then talk to it
# make test      lint, types and the suite; make test-all adds the full products of parts
# make lint      ruff and mypy
# make clean     remove the environment
#
# Every target makes its own environment in .venv first; the second call finds it and starts at once.
#   PYTHON=python3.12   the interpreter to start from (3.11 or later)
#   TORCH_INDEX=URL     a package index to look for torch in, where the default one would bring a CUDA build
#   GPU=1               leave constraints.txt out and take the torch build that the index offers
#   ARGS="..."          more arguments for `weft demo` or for pytest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed$(if $(GPU),-gpu)
PIP_OPTIONS := $(if $(GPU),,-c constraints.txt) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' on this machine; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Weft needs Python 3.11 or later, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/weft demo $(ARGS)

test: lint
	$(PYTEST) --dist loadfile -m "not exhaustive" $(ARGS)

test-all: test
	$(PYTEST) --dist worksteal -m exhaustive $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
