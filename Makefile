# `make train` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint test-slow bench clean

train: .venv/installed  ## learn two memory tasks on this machine; the second one with a GRU too, which fails
	@run=runs/$$(date +%Y-%m-%d_%H%M%S); set -ex; \
	$(BIN)/ssmrl train demo run.dir=$${run}_demo; \
	$(BIN)/ssmrl train popgym/repeat_previous_medium wandb=off run.dir=$${run}_medium_s5; \
	$(BIN)/ssmrl train popgym/repeat_previous_medium wandb=off model=gru run.dir=$${run}_medium_gru; \
	$(BIN)/ssmrl plot $${run}_medium_s5 $${run}_medium_gru --output $${run}_s5_and_gru.png

test: .venv/installed-dev lint  ## every gate and every test; the short files come last, so that both workers end together
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: .venv/installed-dev  ## the learning claims of the README, hours
	$(BIN)/python -m pytest -m slow

bench: .venv/installed
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/convolution.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/envs.py
	$(BIN)/python benchmarks/acting.py
	$(BIN)/python benchmarks/world_model.py --lengths 64 256 1024 --backbones s5 gru none
	$(BIN)/python benchmarks/dreamer.py --backbones s5 gru --presets tiny --compare

clean:
	rm -rf .venv .cache build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssmrl needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch .venv/installed $@
