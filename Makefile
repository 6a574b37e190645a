# make demo: a simulated sky to runs/demo/report.html; make test: the tests, without the long ones of make test-long;
# make lint: format, lint and types; make coverage: what the tests run; make docs: docs/_build/index.html.
# Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
SAMPLES := 40000

.PHONY: demo test test-long lint coverage docs clean
.DELETE_ON_ERROR:

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11 ...")'
	@echo "setting up .venv (1 to 3 minutes, 1.5 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Every command goes on where it was when it is run again.
demo: .venv/ready
	$(BIN)/python -m data_tools.simulate $(DEMO)/dataset --samples $(SAMPLES) --size 32 --seed 0
	$(BIN)/python -m jaxz.train --config=configs/demo_pretrain.py --workdir=$(DEMO)/pretrain
	$(BIN)/python -m jaxz.train --config=configs/demo_finetune.py --workdir=$(DEMO)/pretrained
	$(BIN)/python -m jaxz.train --config=configs/demo_direct.py --workdir=$(DEMO)/direct
	$(BIN)/python -m jaxz.photometry --dataset $(DEMO)/dataset --workdir $(DEMO)/photometry_knn --model knn
	$(BIN)/python -m jaxz.photometry --dataset $(DEMO)/dataset --workdir $(DEMO)/photometry_gbt --model gbt
	$(BIN)/python -m jaxz.evaluate --workdir=$(DEMO)/pretrain --dataset=$(DEMO)/dataset
	$(BIN)/python -m jaxz.evaluate --workdir=$(DEMO)/pretrained --dataset=$(DEMO)/dataset
	$(BIN)/python -m jaxz.evaluate --workdir=$(DEMO)/direct --dataset=$(DEMO)/dataset
	$(BIN)/python -m jaxz.report $(DEMO)/pretrained $(DEMO)/direct $(DEMO)/photometry_gbt $(DEMO)/photometry_knn $(DEMO)/pretrain --out $(DEMO)/report.html

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What of jaxz and data_tools the tests run, line by line; takes as long as both kinds of tests, and a half more.
coverage: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slurm" --cov --cov-report=term --cov-report=html:runs/coverage

.venv/docs: docs/requirements.txt .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: .venv/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build

clean:
	rm -rf .venv runs docs/_build
