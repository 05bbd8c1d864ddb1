# Needs GNU make and Python >= 3.11; everything else is installed into .venv.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo app test lint clean

help:
	@echo "make demo   edit the shipped pictures with the tiny model; results in outputs/"
	@echo "make app    a page to paint edits in; ARGS=\"--checkpoint ...\" for more (docs/app.md)"
	@echo "make test   lint, then the whole test suite"
	@echo "make lint   ruff: rules and formatting"
	@echo "make clean  remove .venv and caches; pictures in outputs/ stay"
	@echo "WORKERS=N   processes of make test, about 1 GB each (now: $(WORKERS))"
	@echo "PYTHON=...  the interpreter that .venv is made from (now: $(PYTHON))"

demo: $(VENV)/.installed
	$(BIN)/python -m tools.demo

app: $(VENV)/.installed-app
	$(BIN)/python -m sgm.app $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than its requirements file only if the installation went through to the end.
# An environment whose pip does not run (an interrupted or half-made one) is made anew.
$(VENV)/.installed: requirements.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=..." \
	    if sys.version_info < (3, 11) else 0)' && \
	  echo "Making $(VENV) ..." && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing requirements.txt (PyTorch is large; this is done once) ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-app: requirements-app.txt $(VENV)/.installed
	@echo "Installing requirements-app.txt ..."
	@$(PIP) -r requirements-app.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-diffusers.txt requirements-app.txt $(VENV)/.installed
	@echo "Installing requirements-dev.txt ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@
