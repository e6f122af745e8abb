# `make demo` and `make test` each set up what they need in .venv, from a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo data test check slow format browser

help:
	@echo "make demo   real parallel text to a served translation model, in about 15 minutes"
	@echo "make test   set up, then format, lint, types, import order and quick tests"
	@echo "make check  the same without set-up;  make slow: the slow tests"
	@echo "make data   fetch the real data sets;  make setup: everything for development"

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/core
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/dev

demo: .venv/core
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/demo.sh

data: .venv/core
	$(BIN)/chinchilla data get libreoffice-help
	$(BIN)/chinchilla data get ddtp-en-fr
	$(BIN)/chinchilla data get ddtp-en
	$(BIN)/chinchilla data get smollm2

# The page's tests drive Debian's Chromium; without it they are skipped, and say so.
browser:
	@command -v chromedriver >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && apt-get update -qq >/dev/null && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	|| echo "no Chromium here, and not root to install it: the browser tests will be skipped"

test: setup browser
	@$(MAKE) --no-print-directory check

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	# A process a core, each with one thread: two processes of two threads each wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

slow:
	$(BIN)/pytest -m slow

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
