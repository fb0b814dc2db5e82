# make demo    a real answer over gRPC, from nothing        make test    every test        make help    the rest
# Needs python3 (3.10 or newer, with venv), a C compiler and make. Everything else goes into .venv.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

# What the wheel is made of: a change in any of these builds it anew, compiling only what changed.
SOURCES := pyproject.toml setup.py $(shell find csrc pyruntime -type f \
	\( -name '*.[ch]' -o -name '*.inc' -o -name '*.def' -o -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' \))

.PHONY: help demo test build wheel lint protos bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     build and install into .venv, pull SmolLM2-135M, serve it, stream one chat answer over gRPC"
	@echo "make test     install what the tests need into .venv and run them all; ARGS='-k store' picks some"
	@echo "make build    the compiled modules in the tree, the package installed in .venv"
	@echo "make wheel    dist/pyruntime_llm-*.whl"
	@echo "make lint     ruff and mypy"
	@echo "make protos   generate pyruntime/server/pb anew from protos/"
	@echo "make bench    decode and prefill speed of SmolLM2 beside this machine's limits"
	@echo "make clean    remove everything built, .venv included"

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A Python file that was removed must not live on in build/lib.
build/.wheel: $(SOURCES) | $(VENV)/.made
	@echo "building the wheel"
	@rm -rf dist && mkdir -p build && find build -path 'build/lib*' -name '*.py*' ! -name '*.so' -delete
	@$(PIP) wheel -q --no-deps -w dist .
	@touch $@

# The compiled modules are copied into the tree too: tests and tools that run from it find the same binaries.
$(VENV)/.installed: build/.wheel
	@echo "installing it into $(VENV)"
	@$(PIP) uninstall -q -y pyruntime-llm 2>/dev/null
	@$(PIP) install -q dist/pyruntime_llm-*.whl
	@rm -f pyruntime/_core/*.so
	@cp $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/pyruntime/_core/*.so pyruntime/_core/
	@touch $@

# torch comes first, at the version the tests pin, so that nothing else picks another.
$(VENV)/.tests: pyproject.toml | $(VENV)/.installed
	@echo "installing what the tests need: torch first, the largest"
	@$(PIP) install -q torch==2.13.0
	@$(PIP) install -q "$$(ls dist/pyruntime_llm-*.whl)[test]"
	@touch $@

# One header-only package lets the tests run instruction sets that this processor lacks. Not required: they skip without it.
$(VENV)/.simde: | $(VENV)/.made
	@test -e /usr/include/simde/x86/avx512.h || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get install -y -qq libsimde-dev >/dev/null 2>&1; } || echo "no libsimde-dev here: its tests will skip"
	@touch $@

build: $(VENV)/.installed

wheel: build/.wheel
	@ls dist/*.whl

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed $(VENV)/.tests $(VENV)/.simde
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/mypy pyruntime

protos: $(VENV)/.tests
	$(BIN)/python protos/generate.py

bench: $(VENV)/.installed
	@$(BIN)/pyruntime pull smollm2:135m
	@$(BIN)/pyruntime bench smollm2:135m

clean:
	rm -rf build dist $(VENV) $(VENV)-* *.egg-info pyruntime/_core/*.so pyruntime/_core/*.c
