# Each target that needs an environment makes it: .venv, or .venv-paddle-X.Y.Z with PADDLE=X.Y.Z.
# Needed beforehand: Linux and Python 3.10 to 3.13.
PYTHON ?= python3
PADDLE ?=
VENV ?= .venv$(addprefix -paddle-,$(PADDLE))
BIN := $(VENV)/bin
OUTPUT ?= demo_output
SIZE ?= full
# Test processes, each with one thread; more than cores, since tests wait for processes that they start.
WORKERS ?= $(shell echo $$(($$(nproc) + 2)))
TESTS ?= tests
# What runs a second time with a GPU played by the CPU.
FAKE_GPU_TESTS := $(addprefix tests/gpu/test_,collectives.py head.py training.py) tests/checkpoint/test_checkpoint.py tests/distributed/test_replica.py \
    $(addprefix tests/engine/test_,judge.py loss_scale.py optimizer.py precision.py resume.py soundness.py state.py) \
    $(addprefix tests/engine/test_,tensor_rows.py trainer.py) \
    $(addprefix tests/losses/test_,classifier.py fused.py ops.py precision.py row_optimizers.py sampled.py shard.py)
# Of these not: what differs from another one of them in what no GPU computes.
FAKE_GPU_LEFT_OUT := not (bit_for_bit and (10 or extra0)) and not whole_gradient and not handed_in
# The source folder is that of the repository, see docs/conf.py.
SPHINX := $(BIN)/python -m sphinx -q -W --keep-going -n -c docs -d docs/_build/doctrees
# Of `make soak`, divided among its tests.
SECONDS ?= 600

.PHONY: help demo test docs docs-links fake-gpu-test gpu-check soak faults bench lint format serving-env clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
ifeq ($(PADDLE),)
	$(BIN)/python -m pip install -q -e '.[cpu,test]'
else
	$(BIN)/python -m pip install -q -e '.[test]' 'paddlepaddle==$(PADDLE)'
endif
	touch $@

demo: $(VENV)/.installed  ## train, verify, resume, export and embed on the built-in glyphs
	$(BIN)/plsc demo --output $(OUTPUT) --size $(SIZE)

test: $(VENV)/.installed  ## run the tests (PADDLE=3.2.2: with that Paddle; TESTS=tests/data: a part; WORKERS=1: one by one)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not alone" $(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone $(TESTS) || [ $$? -eq 5 ]  # 5: none of these is in TESTS

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

docs: $(VENV)/.docs-installed  ## build the documentation as a site, docs/_build/html/index.html; warnings are errors
	OMP_NUM_THREADS=1 $(SPHINX) -b html . docs/_build/html

docs-links: $(VENV)/.docs-installed  ## check the links of the documentation to other sites (needs the network)
	OMP_NUM_THREADS=1 $(SPHINX) -b linkcheck . docs/_build/links

fake-gpu-test: $(VENV)/.installed  ## run the code of GPUs on the CPU: the tests of head, precision, trainer, checkpoints and two ranks
	PLSC_FAKE_GPU=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -k "$(FAKE_GPU_LEFT_OUT)" $(FAKE_GPU_TESTS)

gpu-check:  ## on GPUs: run their tests and benchmarks, write gpu-check.json and .md (PYTHON: has paddlepaddle-gpu; docs/gpu.md)
	$(PYTHON) -m tests.gpu.check

soak: $(VENV)/.installed  ## stress models and other shared objects by threads and processes (ten minutes; SECONDS=60: one)
	OMP_NUM_THREADS=1 PLSC_SOAK_SECONDS=$(SECONDS) $(BIN)/python -m pytest -m soak $(TESTS)

faults: $(VENV)/.installed  ## kill and stop runs at 140 random moments, damage checkpoints and fill disks (quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m faults tests/faults

bench: $(VENV)/.installed  ## measure the head beside the bare matrix products (five minutes)
	$(BIN)/python benchmarks/head.py

lint: $(VENV)/.installed  ## check style, format and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## apply the style and the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serving-env:  ## build the environment of the real Paddle Serving in .venv-serving, for its tests
	PYTHON=$(PYTHON) plsc/export/formats/pipeline_service/install.sh .venv-serving
	.venv-serving/bin/python -m pip install -q --no-deps --target .venv-serving/client --python-version 39 \
	    --implementation cp --abi none --only-binary=:all: paddle-serving-client==0.9.0

clean:  ## remove the virtual environment (outputs stay)
	rm -rf $(VENV)
