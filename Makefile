# Everything from a fresh machine with Python 3.11, pip and make: the targets set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-core test-export plugin plugin-newest lint docs docs-serve dist install install-dev browser clean

# Train on real coins and find them in the untouched photograph (some four minutes on two idle cores, the installation apart).
quickstart: $(VENV)/.quickstart
	$(BIN)/nextdetr quickstart

# The whole suite, a process on each of two cores. The exports run apart: with their runtimes and all other tests in one process,
# the interpreter crashed once of three times.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: test-core test-export

test-core: $(VENV)/.dev browser
	$(PYTEST) --ignore=tests/export

test-export: $(VENV)/.dev browser
	$(PYTEST) tests/export

# The plug-in for ultralytics, with the release that it is pinned to, in an environment of its own; and with the newest.
plugin: $(VENV)/.dev
	$(BIN)/python plugins/ultralytics/check.py

plugin-newest: $(VENV)/.dev
	$(BIN)/python plugins/ultralytics/check.py --newest

lint: $(VENV)/.dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src docs website examples plugins $(wildcard *.md) .github

# The site, in build/site. Warnings are errors; with --quiet MkDocs would not count them. `make docs-serve` shows it.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)/.dev
	$(BIN)/python website/stage.py
	$(SITE) build --strict --config-file website/mkdocs.yml

docs-serve: docs
	$(SITE) serve --config-file website/mkdocs.yml

# Wheel and sdist, in dist; the wheel is built from the sdist, so that nothing that it needs is missing there.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build

install: $(VENV)/.quickstart
install-dev: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[quickstart]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[all,dev,docs]'
	touch $@ $(VENV)/.quickstart

# The server's page and the exported one are tested in Debian's Chromium; without a browser those tests fail and say so.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || ! command -v apt-get >/dev/null || \
		($(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist
