# Everything is run from here, with git, make and Python >= 3.11 alone, and stays inside this folder:
# the environment in .venv, caches and temporary files in .cache.

PYTHON ?= python3
# Worker processes of pytest: a number, "auto" for one per core, 0 for none.
JOBS ?= auto
# More arguments for the command behind demo, test*, torture and bench: make test ARGS="-k resume"
ARGS ?=
# make lock LOCK_FLAGS=--upgrade takes newer versions; without it only what pyproject.toml asks for changes.
LOCK_FLAGS ?=

export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export XDG_CACHE_HOME := $(CURDIR)/.cache/xdg
export TMPDIR := $(CURDIR)/.cache/tmp
export HYPOTHESIS_STORAGE_DIRECTORY := $(CURDIR)/.cache/hypothesis

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup
UV := uv==0.13.8

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick torture check format bench lock clean ready

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ready ## start a server with the built-in agents; no key, no service
	@$(BIN)/runstone demo $(ARGS)

test: check ## check, then all tests but torture (under 10 minutes on 2 cores)
	@$(PYTEST) -m "not torture" $(ARGS)

test-quick: ready ## the tests that are neither slow nor torture (about 2 minutes)
	@$(PYTEST) -m "not slow and not torture" $(ARGS)

torture: ready ## kills, cuts and floods (about 30 minutes)
	@$(PYTEST) -m torture --timeout 1800 $(ARGS)

check: ready ## lint, format, types and import layers
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check || { echo "Not formatted; 'make format' does it."; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@out=$$($(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter 2>&1) || { echo "$$out"; exit 1; }
	@echo "check: lint, format, types and import layers hold"

format: ready ## format the code, and repair what lint can repair
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format --quiet

bench: ready ## measure; prints ratios to a baseline of the same run
	@$(BIN)/python -m benches $(ARGS)

lock: | .cache/tmp ## make requirements.lock again from pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet $(UV)
	@$(BIN)/uv pip compile --quiet pyproject.toml --extra openai --group dev --universal --python-version 3.11 \
		--generate-hashes --custom-compile-command "make lock" $(LOCK_FLAGS) --output-file requirements.lock

clean: ## remove what make has made (.venv, .cache, build output)
	@rm -rf .venv .cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

ready: .venv/.ready | .cache/tmp

.cache/tmp:
	@mkdir -p $@

# An environment does not survive being moved or losing its interpreter: then it is made again.
ifneq ($(shell test -x .venv/bin/python && cat .venv/.ready 2>/dev/null),$(CURDIR))
.PHONY: .venv/.ready
endif

.venv/.ready: requirements.lock pyproject.toml | .cache/tmp
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Runstone needs Python 3.11 or newer, and '$(PYTHON)' is not (or is not there)." \
		"Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Preparing .venv (once, about a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@printf '%s\n' "$(CURDIR)" > $@
