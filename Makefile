# Everything a fresh machine needs:  make demo | make test | make docs | make lint | make clean
# Another interpreter:  PYTHON=python3.12 make test        Part of the tests:  make test ARGS="-k spin"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --constraint constraints.txt
ARGS   ?=

# One thread for each of pytest's workers: small matrices gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test docs lint clean gpaw
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	$(BIN)/eac demo

test: $(VENV)/.test gpaw
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

docs: $(VENV)/.docs gpaw
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build dist docs/_build docs/generated docs/jupyter_execute
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are renewed whenever the requirements change.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another interpreter, for instance: PYTHON=python3.12 make $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)."; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev,bader]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@

# GPAW is compiled here. Without libxc's header it would build all the same, and lack most
# functionals, so look for the header first. GPAW's C++ sources need the C++ driver as CC, too.
gpaw: $(VENV)/.test
	@if $(BIN)/python -c 'import gpaw, gpaw_data, phonopy, matscipy' 2>/dev/null; then \
	  :; \
	elif ! echo '#include <xc.h>' | $(CXX) -E -x c++ - >/dev/null 2>&1; then \
	  echo "GPAW is not installed: $(CXX) finds no header xc.h. Tests that need GPAW are skipped."; \
	  echo "Debian, Ubuntu: apt install g++ libxc-dev libopenblas-dev, then make test again."; \
	elif ! CC="$(CXX)" CXX="$(CXX)" $(PIP) -e '.[reference]'; then \
	  echo "GPAW could not be built (see above). Tests that need GPAW are skipped."; \
	  echo "Debian, Ubuntu: apt install g++ libxc-dev libopenblas-dev, then make test again."; \
	fi
