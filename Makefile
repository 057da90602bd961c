# Each target does all set-up it needs; `make tour` and `make test` work on a bare machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help tour test check docs bench gpu fuzz results clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

tour: .venv/ready  ## a real model on an emulated slow network, under stock DDP and under the chosen plans
	$(BIN)/tightwire tour

test: .venv/gpu check  ## lint, types and all tests
	$(BIN)/pytest --numprocesses 2 --dist worksteal

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: .venv/ready  ## the documentation, in build/site
	$(BIN)/mkdocs build --strict

results: .venv/ready  ## makes what is stale in results/ anew, for hours; started again, it goes on
	$(BIN)/python results/make.py

bench: .venv/ready  ## collectives and kernels against the stock alternative and the physical bound
	$(BIN)/tightwire bench collectives
	$(BIN)/tightwire bench kernels

fuzz: .venv/gpu  ## a million damaged messages for each decoder
	$(BIN)/pytest --numprocesses 2 tests/laws/test_mutations.py --many

gpu:  ## everything that a GPU has to show, with the Python that is there: nothing is installed
	$(PYTHON) -m tightwire bench gpu

clean:
	rm -rf .venv out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Kernels for CUDA are tested by Triton's interpreter: 200 MB to download that a tour need not wait for.
.venv/gpu: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[gpu]"
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
