# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROJECT := pyproject.toml setup.py constraints.txt
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check format proto bench-kernels bench-als bench-quality bench-client bench-serving bench-overload bench-events bench-swaps bench-smoke bench-variants bench-tables fuzz soak gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"Python is {v}; expected 3.11 or newer. Run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(PROJECT) | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	@touch $@

$(VENV)/.dev: $(PROJECT) | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@ $(VENV)/.train

demo: $(VENV)/.train  ## train, evaluate, export, serve and ask, on ml-100k
	$(BIN)/recserve demo

test: $(VENV)/.dev  ## the fast tests
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test-all: $(VENV)/.dev  ## every test, the slow ones too
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.dev  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

format: $(VENV)/.dev  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.dev  ## regenerate the protobuf code from proto/*.proto
	$(BIN)/python proto/generate.py

$(VENV)/.bench: $(PROJECT) | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@ $(VENV)/.train

bench-kernels: $(VENV)/.bench  ## time top-K search against its peers and the machine and plot recall against latency
	$(BIN)/recserve bench kernels --out benchmarks/results/kernels.json $(ARGS)
	$(BIN)/recserve bench kernels --data gaussian,als --items 100000 --batch 1 -k 10 --seconds 0.5 --plot docs/kernels.png --out benchmarks/results/kernels_approximate.json

$(VENV)/.cuda: $(PROJECT) | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cuda]'
	@touch $@

gpu-check: $(VENV)/.cuda  ## check the GPU's answers against the CPU's, and time them (ARGS="--bundle FOLDER": the engine too); fails without a GPU
	$(BIN)/python -m recserve.benchmarks.gpu_check $(ARGS)

bench-client: $(VENV)/.dev  ## how far the load generator can be trusted, next to h2load
	$(BIN)/python -m recserve.benchmarks.load_check

bench-serving: $(VENV)/.dev  ## every promise of the server's speed, in minutes (ARGS=--quick; needs h2load)
	$(BIN)/python -m recserve.benchmarks.serving $(ARGS)

bench-overload: $(VENV)/.dev  ## ten times more requests than the model can answer
	$(BIN)/python -m recserve.benchmarks.overload $(ARGS)

bench-events: $(VENV)/.dev  ## time the event log against its promises (BUNDLE=folder)
	$(BIN)/python -m recserve.benchmarks.events $(BUNDLE) $(ARGS)

bench-als: $(VENV)/.dev  ## time ALS against implicit
	$(BIN)/python -m recserve.benchmarks.als_speed

bench-quality: $(VENV)/.dev  ## hold models against their bars, next to their peers: hours (make bench-quality ARGS=--quick)
	$(BIN)/recserve bench quality $(ARGS)

bench-swaps: $(VENV)/.dev  ## latency while versions of BUNDLE are swapped: make bench-swaps BUNDLE=…
	$(BIN)/python -m recserve.benchmarks.swaps $(BUNDLE)

soak: $(VENV)/.dev  ## whether a server keeps memory, files and threads: make soak BUNDLE=… (two minutes a transport)
	$(BIN)/python -m recserve.benchmarks.soak $(BUNDLE) --transport grpcio $(ARGS)
	$(BIN)/python -m recserve.benchmarks.soak $(BUNDLE) --transport native $(ARGS)

fuzz: $(VENV)/.dev  ## a million wrong inputs on every way into the server: make fuzz BUNDLE=… ARGS="--way JSON"
	$(BIN)/python -m tests.engine.server.fuzzing $(BUNDLE) $(ARGS)

bench-smoke: $(VENV)/.dev  ## ratios that should not move, in two minutes; tells changes, never fails on them
	$(BIN)/python -m recserve.benchmarks.smoke

bench-variants: $(VENV)/.bench  ## forms of encoders (RUNS="RUN BUNDLE …") and rankers (RANKERS="RUN …") next to torch and a plain export
	$(if $(RUNS),$(BIN)/python -m recserve.benchmarks.encoder_forms $(RUNS) --out benchmarks/results/variants.json --html benchmarks/results/variants.html $(ARGS))
	$(if $(RANKERS),$(BIN)/python -m recserve.benchmarks.ranker_forms $(RANKERS) --out benchmarks/results/variants_rankers.json $(ARGS))

bench-tables: $(VENV)/.dev  ## write the tables of docs/performance.md from benchmarks/results
	$(BIN)/python -m recserve.benchmarks.tables

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) demo build dist *.egg-info
