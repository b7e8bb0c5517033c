# The book and its tests, from nothing: `make book`, then `make test`. `make` alone explains the rest.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PORT ?= 8000

# Every run under make has the quick scale, one thread per process (two processes run side by side),
# and its Jupyter and matplotlib files under _build, so that nobody's own settings change a page.
export NORMSURVEY_SCALE := quick
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export MPLCONFIGDIR := $(CURDIR)/_build/matplotlib
export PYTHONHASHSEED := 0
unexport PYTHONPATH
unexport PYTHONDONTWRITEBYTECODE  # nothing is compiled on installation: what is imported is, once

.DEFAULT_GOAL := help
.PHONY: help book test serve lint links outputs stamp clean

help:  ## explain the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12   the Python (3.11 to 3.13) that creates $(VENV)"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu   torch without CUDA, a much smaller download"
	@echo "  PYTEST_ARGS='-k iternorm'   further options of pytest, for make test"
	@echo "  PORT=8000           the port of make serve"

book: $(INSTALLED)  ## execute every chapter freshly and build the book, warnings are errors
	@$(PY) book/_tools/make_book.py

test: book  ## unit tests, doctests, every notebook under nbval, the built book in a browser
	$(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

serve: book  ## serve the book at http://127.0.0.1:8000
	@echo "The book is at http://127.0.0.1:$(PORT)/ - stop with Ctrl-C."
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lint: $(INSTALLED)  ## ruff: style, imports, a docstring on every public name
	$(PY) -m ruff check .

links: book  ## check the links to other sites (needs the network)
	$(VENV)/bin/jupyter-book build _build/source --path-output _build/links --all --builder linkcheck

outputs: $(INSTALLED)  ## execute the chapters and rewrite the outputs that are committed in notebooks/
	@$(PY) book/_tools/make_book.py --write-outputs

stamp: $(INSTALLED)  ## write address and version from pyproject.toml wherever they are shown
	@$(PY) book/_tools/stamp.py

clean:  ## remove what was built; the environment stays
	rm -rf _build

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or not Python 3.11, 3.12 or 3.13: name one, as in 'make book PYTHON=python3.12'."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(PY) || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "Installing requirements.lock"
	@$(PY) -m pip install --quiet --no-compile --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
