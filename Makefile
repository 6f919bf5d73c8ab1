# Everything below makes its own virtual environment in .venv; nothing else is needed but Python 3.9+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= demo_output
SIZE ?= full

.PHONY: help demo test bench lint serving-env clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[cpu,demo,test]'
	touch $@

demo: $(VENV)/.installed  ## train, verify, resume, export and embed on the built-in glyphs
	$(BIN)/plsc demo --output $(OUTPUT) --size $(SIZE)

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest

bench: $(VENV)/.installed  ## measure the head beside the bare matrix products (five minutes)
	$(BIN)/python benchmarks/head.py

lint: $(VENV)/.installed  ## check style and imports
	$(BIN)/ruff check .

serving-env:  ## build the environment of the real Paddle Serving in .venv-serving, for its tests
	PYTHON=$(PYTHON) plsc/export/formats/pipeline_service/install.sh .venv-serving
	.venv-serving/bin/python -m pip install -q --no-deps --target .venv-serving/client --python-version 39 \
	    --implementation cp --abi none --only-binary=:all: paddle-serving-client==0.9.0

clean:  ## remove the virtual environment (keeps every output)
	rm -rf $(VENV)
