# fastgan: the commands of its developers and of whoever tries it.
#   make demo    train on 1,797 handwritten digits on the CPU, in minutes, from nothing
#   make test    everything that CI runs; K=name for the tests that match a name
#   make soak    50 kills of a run, and of packing, at random moments and in every stage of a checkpoint; half an hour
#   make bench   side by side with plain PyTorch; K=name for one subject
#   make gallery train every system for minutes on the CPU, and put their pictures into docs/gallery.md
#   make gpu     on a machine with a GPU: build, test, measure, with the Python that is there; K='build bench_sweep'
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# The GPU architectures of this machine, else one to see that it compiles: nvcc takes a minute for each.
# `pip install .` compiles for all that nvcc knows.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sed 's/^90$$/90a/' | sort -u)
export FASTGAN_ARCHS ?= $(or $(GPUS),90a)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.h csrc/*.cpp csrc/*/*)

.PHONY: demo test lint check soak gallery bench gpu clean install
.DELETE_ON_ERROR:

install: $(STAMP)

$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || { echo "fastgan needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "making $(VENV) and installing $(TORCH) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt "$(TORCH)"
	@touch $@

$(STAMP): $(VENV)/.torch $(SOURCES)
	@echo "installing fastgan and building its native part"
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/fastgan train --preset digits --out runs/digits

test: $(STAMP) lint
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist worksteal -q --durations=12 $(if $(K),-k "$(K)")

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -q tests/test_layering.py

soak: $(STAMP)
	$(BIN)/python tests/soak.py --kills 50

gallery: $(STAMP)
	$(BIN)/python tools/gallery.py

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks $(if $(K),-k "$(K)")

gpu:
	@bash tools/gpu.sh $(K)

clean:
	rm -rf build *.egg-info fastgan/*.so fastgan/_build.json
