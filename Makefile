# kvtier: `make` alone prints its targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GEN := .venv-gen
ARGS ?=
# Processes that tests run in. 0: one, as pytest alone does; auto: as many as there are cores, four at most.
JOBS ?= 0
# Services that tests start find their modules compiled.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest test-versions test-cluster check fmt bench types proto proto-check clean

help:  ## print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv with everything pinned (done by the other targets when needed)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"kvtier needs Python 3.11 or newer, this is {v[0]}.{v[1]}; try make PYTHON=python3.11") if v < (3, 11) else 0'
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] pinned packages from constraints.txt (torch is the large one; a few minutes)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --requirement requirements-dev.txt
	@echo "[3/3] kvtier itself"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,plot,postgres,parquet,shared]'
	@touch $@

demo: $(STAMP)  ## the main job on embedded defaults; ARGS="--json demo.json" passes arguments on
	@$(BIN)/kvtier demo $(ARGS)

test: $(STAMP)  ## ruff, mypy, generated code, all tests, and the models with the oldest transformers
	@echo "== ruff" && $(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@$(MAKE) --no-print-directory --jobs 2 --output-sync types proto-check $(OTHER_TRANSFORMERS)/$(OLDEST_TRANSFORMERS)/.ready
	@echo "== pytest" && $(PYTEST) $(ARGS)
	@$(MAKE) --no-print-directory test-oldest

OTHER_TRANSFORMERS := .venv-transformers
OLDEST_TRANSFORMERS := 5.17.0
NEWER_TRANSFORMERS := 5.24.0
# 5.17 wants an older hub and its HTTP client. Without dependencies: torch and the rest stay as pinned.
WITH_5.17.0 := huggingface-hub==1.33.0 httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 certifi==2026.10.19.post1
# Laid over .venv, and proved to be what is imported.
laid_over = export PYTHONPATH=$(CURDIR)/$(OTHER_TRANSFORMERS)/$(1)$${PYTHONPATH:+:$$PYTHONPATH} && \
  $(BIN)/python -c 'import transformers as t; assert t.__version__ == "$(1)", t.__version__'

.PRECIOUS: $(OTHER_TRANSFORMERS)/%/.ready
$(OTHER_TRANSFORMERS)/%/.ready: | $(STAMP)
	@echo "[transformers $*] in $(@D)"
	@rm -rf $(@D)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) transformers==$* $(WITH_$*)
	@touch $@

test-oldest: $(OTHER_TRANSFORMERS)/$(OLDEST_TRANSFORMERS)/.ready  ## the matrix of models with the oldest transformers
	@echo "== the models with transformers $(OLDEST_TRANSFORMERS)" && $(call laid_over,$(OLDEST_TRANSFORMERS)) && \
	$(PYTEST) --quiet tests/contract/test_architectures.py

test-versions: $(patsubst %,$(OTHER_TRANSFORMERS)/%/.ready,$(OLDEST_TRANSFORMERS) $(NEWER_TRANSFORMERS))  ## all of the models' tests with the oldest and a newer one
	@set -e; $(foreach version,$(OLDEST_TRANSFORMERS) $(NEWER_TRANSFORMERS),echo "== transformers $(version)"; \
	  ($(call laid_over,$(version)) && $(PYTEST) $(ARGS) tests/unit/worker_engine tests/contract/test_adapters.py \
	    tests/contract/test_added_adapters.py tests/contract/test_deterministic.py \
	    tests/contract/test_architectures.py tests/contract/test_more_architectures.py tests/contract/test_rope_by_length.py);)

test-cluster: $(STAMP)  ## docker-compose.yml in real containers, on a Docker engine that is there or can be started
	@KVTIER_CLUSTER=$${KVTIER_CLUSTER:-1} $(BIN)/python -m pytest -v tests/cluster $(ARGS)

check: $(STAMP)  ## ruff and mypy only
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

fmt: $(STAMP)  ## format and fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(STAMP)  ## every benchmark, one after the other
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done
	@set -e; for name in path lookup metering gateway ttft; do echo "== kvtier bench $$name"; $(BIN)/kvtier bench $$name $(ARGS); done

$(GEN)/.ready: pyproject.toml
	@test -x $(GEN)/bin/python || $(PYTHON) -m venv $(GEN)
	@$(GEN)/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.80.0 mypy-protobuf==5.0.0
	@touch $@

OUT ?= .
PROTOC = ../$(GEN)/bin/python -m grpc_tools.protoc -I . \
  --plugin=protoc-gen-mypy_grpc=../$(GEN)/bin/protoc-gen-mypy_grpc
proto: $(GEN)/.ready  ## regenerate the code beside the .proto files, byte for byte repeatable
	@cd proto && $(PROTOC) --python_out=$(OUT) --pyi_out=$(OUT) kvtier/v1/*.proto
	@cd proto && $(PROTOC) --grpc_python_out=$(OUT) --mypy_grpc_out=quiet:$(OUT) \
	  kvtier/v1/cache.proto kvtier/v1/usage.proto kvtier/v1/inference.proto \
	  kvtier/v1/events.proto kvtier/v1/bulk.proto kvtier/v1/explain.proto \
	  kvtier/v1/describe.proto kvtier/v1/control.proto kvtier/v1/budget.proto \
	  kvtier/v1/receipt.proto kvtier/v1/receipt_opening.proto \
	  kvtier/v1/attestation.proto

types: $(STAMP)
	@echo "== mypy" && $(BIN)/mypy

proto-check: $(GEN)/.ready
	@echo "== generated code"
	@out=$$(mktemp -d) && $(MAKE) --no-print-directory proto OUT=$$out && \
	for file in $$out/kvtier/v1/*; do cmp $$file proto/kvtier/v1/$$(basename $$file) || \
	  { echo "generated code is stale: run make proto and commit"; rm -rf $$out; exit 1; }; done; rm -rf $$out

clean:  ## remove environments and caches, never data
	rm -rf $(VENV) $(GEN) $(OTHER_TRANSFORMERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis
