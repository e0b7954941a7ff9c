# On a bare machine with Python >= 3.11 and git each target works alone: the first one called makes .venv and installs
# stedm into it; the next ones reuse it until pyproject.toml changes.
#
#   make demo     the whole method on a procedural cohort; ARGS="--seed 1" passes options on
#   make test     the tests; ARGS="-m slow" for the long ones
#   make nnunet   whether nnU-Net reads our export: what `make test` skips
#   make lint     style, types, layers
#   make format   mend the style
#   make docs     the documentation as a site, in site/
#
#   PYTHON=/path/to/python3.12 with any of them: the interpreter for .venv

BIN := .venv/bin
INSTALLED := .venv/.installed
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)

.PHONY: help demo test nnunet lint format docs
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(INSTALLED)
	$(BIN)/stedm demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

nnunet: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/nnunet -r tests/nnunet.txt
	PYTHONPATH=$(CURDIR)/.venv/nnunet $(BIN)/python -c "import nnunetv2" # without it the test would skip
	PYTHONPATH=$(CURDIR)/.venv/nnunet $(BIN)/python -m pytest -n 0 tests/test_export.py -k nnunet_itself

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict
	@echo "open site/index.html; served, with its search: $(BIN)/mkdocs serve"

# Each candidate is run, not just looked up: version managers put launchers on the path that start nothing.
$(INSTALLED): pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  recent=; python=; \
	  for candidate in $(CANDIDATES); do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    recent=$${recent:-$$candidate}; \
	    if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$recent" ]; then \
	    echo "stedm needs Python >= 3.11, and none of these is one: $(CANDIDATES)." >&2; \
	    echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv) or name another:" >&2; \
	    echo "make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  if [ -z "$$python" ]; then \
	    echo "$$recent cannot make a virtual environment: its venv or ensurepip module is missing." >&2; \
	    echo "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make again." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$($$python --version)"; \
	  "$$python" -m venv --clear .venv; \
	fi
	@echo "Installing stedm and its packages into .venv: several gigabytes, once"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@
