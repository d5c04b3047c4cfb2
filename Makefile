# The two commands: `make demo` and `make test`. Both need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
RESULTS ?= outputs
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# Tests start many processes, and each would compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fuzz test-docs test-browser docs results throughput clean

demo: $(VENV)/installed
	$(BIN)/himalaya demo $(RESULTS)/three-tasks

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

# 2,500 mutated inputs of each kind: configs, overrides, plans, streams (ten thousand together), and files.
fuzz: $(VENV)/installed-test
	HIMALAYA_FUZZ=2500 $(BIN)/pytest tests/test_fuzz.py tests/test_mutated_files.py

# All tests that are marked slow: the commands of README and tutorials, the notebook, the site, the stream of 25 tasks,
# the real backbone in each placement, processes under torchrun and accelerate, and more models for each method.
test-docs: $(VENV)/installed-test-docs
	$(BIN)/pytest -m slow --numprocesses=0

# The reports in Chromium, with the rules of axe-core; on Debian first: apt-get install chromium npm
test-browser: $(VENV)/installed-test node_modules/axe-core
	HIMALAYA_TEST_BROWSER=1 $(BIN)/pytest --numprocesses=0 tests/report/test_browser.py

node_modules/axe-core:
	npm install --no-save --no-package-lock --silent axe-core@4

# The site; then: python -m http.server -d build/site
docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build

results: $(VENV)/installed
	$(BIN)/python benchmarks/run_missing.py
	$(BIN)/python docs/generate_results.py

throughput: $(VENV)/installed
	$(BIN)/python benchmarks/throughput.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[lab]'
	touch $@

# With what the demo needs, too: a new environment asks the index once.
$(VENV)/installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[test]'
	touch $(VENV)/installed $@

$(VENV)/installed-test-docs: $(VENV)/installed-test
	$(PIP) --editable '.[test-docs]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) outputs build
