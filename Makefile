# Two commands on a fresh machine (python3 of 3.11 or newer, and make): `make demo` and `make test`.
# TORCH chooses the torch build, for example TORCH="torch==2.13.0 --index-url URL-OF-A-WHEEL-INDEX".
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY = 1
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup demo test lint format types check clean

help:
	@echo "make demo    set everything up, then tune and try the four pilgrims (about 7 minutes on 2 cores)"
	@echo "make test    set everything up, then run all tests, offline"
	@echo "make setup   only the set-up: .venv with pinned versions"
	@echo "make check   lint, format and type checks"
	@echo "make clean   remove .venv and runs/ (base models stay in the user's cache)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: mRP-LLM needs Python 3.11 or newer"; echo "  where: $$($(PYTHON) --version 2>&1) ($(PYTHON))"; \
	    echo "  fix:   make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "== setting up $(VENV) (torch is a large download; the bars below are pip's)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: no venv module"; echo "  fix:   install it (Debian: apt install python3-venv)"; exit 2; }
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt  # TORCH says which torch
	$(BIN)/python -m pip install --disable-pip-version-check -c $(VENV)/constraints.txt $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[train,data,report,eval,serve,modelscope,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/mrp run examples/pilgrims

test: $(READY)
	$(BIN)/mrp pull smollm2-135m-instruct
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .

format: $(READY)
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: lint format types

clean:
	rm -rf $(VENV) runs
