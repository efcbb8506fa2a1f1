# `make demo` runs the main job, `make test` the tests, `make check` the linter and the type checker,
# `make docs` builds the documentation.
# Each creates what it needs in .venv. Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check docs faults nightly fuzz kills audit release clean

demo: $(INSTALLED)
	$(BIN)/python run_edit.py --editor roselora --hparams smollm2.yaml --limit 48

# One thread for each of the processes that share the tests.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov=loredit --cov=engine --cov=editors --cov=data --cov=evaluation --cov=hparams

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

# The documentation, in site/; only pip needs a network.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build

clean:
	rm -rf site .venv .venv-nightly build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv .venv

# torch comes first and alone, so that a build put there by hand (PyTorch's CPU wheels, another CUDA) is kept.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

# The tests of what is assumed about transformers, against the newest releases that pip finds.
nightly: | $(BIN)/python
	$(PYTHON) -m venv .venv-nightly
	.venv-nightly/bin/pip install --quiet --upgrade torch transformers
	.venv-nightly/bin/pip install --quiet --upgrade -e . pytest
	OMP_NUM_THREADS=1 .venv-nightly/bin/python -m pytest -q tests/engine/model -W default

# Attacks every reader and command with new examples, for an hour or until one breaks something.
MINUTES ?= 60
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --minutes $(MINUTES)

# 50 kills of each command, at random moments; full disks where a small one can be mounted.
kills: $(INSTALLED)
	LOREDIT_KILLS=50 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/hostile/test_kills.py

# Known vulnerabilities of what is installed, and the licences that it comes under.
audit: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[release]'
	$(BIN)/pip-audit --skip-editable
	$(BIN)/pip-licenses --format=markdown --with-urls --fail-on="$(UNWANTED)" --partial-match

# Licences that must not come in with a dependency.
UNWANTED := AGPL;GNU Affero

release: $(INSTALLED) check
	$(BIN)/pip install --quiet -c constraints.txt -e '.[release]'
	.ci/release

# Plants each fault of tests/faults.py alone in a copy of the checkout; the tests beside it have to fail.
faults: $(INSTALLED)
	$(BIN)/python tests/faults.py --jobs 2
