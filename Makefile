PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test test-all lint format bench

setup:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	$(BIN)/pre-commit install

test:
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-all:
	$(BIN)/pytest -n 2 --dist worksteal

lint:
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format:
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench:
	$(BIN)/python -m benchmarks.speed
