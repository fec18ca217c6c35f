# Two commands matter: `make demo` and `make test`. Each sets up what it needs and says nothing unless something fails.
SHELL := /bin/bash
BIN := .venv/bin
HOST ?= 127.0.0.1
PORT ?= 3000
N ?= 20
T ?= tests/system
.DEFAULT_GOAL := help
.PHONY: help demo test repeat coverage lint format bench soak docs changelog clean

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## serve the FastAPI example with two workers on http://127.0.0.1:3000/ (HOST=, PORT=)
	@scripts/setup examples
	@exec $(BIN)/cluster2 run examples/fastapi_app.py:app --workers 2 --host $(HOST) --port $(PORT)

test: ## set up, check the style, run all tests
	@scripts/setup --apt wrk --apt nginx --apt haproxy --apt ip=iproute2 --apt chromium dev
	@scripts/lint
	@scripts/test

repeat: ## repeat the system tests N times alone and N times with all cores loaded (N=20, T=tests/system)
	@scripts/setup --apt wrk --apt nginx --apt haproxy --apt ip=iproute2 --apt chromium dev
	@$(BIN)/python scripts/repeat.py --times $(N) $(T)

coverage: ## the same tests under coverage, subprocesses included: twice as long
	@scripts/setup --apt wrk --apt nginx --apt haproxy --apt ip=iproute2 --apt chromium dev
	@scripts/coverage

lint: ## ruff, mypy, import-linter, the rules of prose
	@scripts/setup dev
	@scripts/lint

format: ## let ruff format and mend what it can
	@scripts/setup dev
	@$(BIN)/ruff check --quiet --fix-only src tests examples
	@$(BIN)/ruff format --quiet src tests examples

bench: ## measure beside the others; see bench/README.md
	@scripts/setup --apt wrk --apt nginx --apt haproxy --apt redis-server dev bench
	@$(BIN)/python -m bench

soak: ## the tests that run for minutes
	@scripts/setup --apt wrk --apt nginx --apt haproxy --apt slowhttptest --apt ip=iproute2 --apt chromium dev
	@$(BIN)/python -m pytest -m soak --timeout 3600 -o faulthandler_timeout=3700

docs: ## build the docs into site/
	@scripts/setup docs
	@$(BIN)/mkdocs build --quiet

changelog: ## show what the next release would say
	@scripts/setup changelog
	@$(BIN)/towncrier build --draft

clean: ## remove all that the other commands made
	@rm -rf .venv .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site
	@find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
