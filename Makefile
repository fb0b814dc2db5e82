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

.PHONY: help demo test build wheel lint protos bench asan tsan fuzz clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     build and install into .venv, pull SmolLM2-135M, serve it, stream one chat answer over gRPC"
	@echo "make test     install what the tests need into .venv and run them all; ARGS='-k store' picks some"
	@echo "make build    the compiled modules in the tree, the package installed in .venv"
	@echo "make wheel    dist/pyruntime_llm-*.whl"
	@echo "make lint     ruff and mypy"
	@echo "make protos   generate pyruntime/server/pb anew from protos/"
	@echo "make bench    decode and prefill speed of SmolLM2 beside this machine's limits"
	@echo "make asan     the tests of the C core under the address and undefined-behaviour sanitizers"
	@echo "make tsan     the tests of pool and executor under the thread sanitizer"
	@echo "make fuzz     mutated files, vocabularies and batches under the sanitizers: a million and more; ARGS='--runs 5000'"
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

# SIMDe's headers, qemu and a compiler for Arm let the tests run the kernels of instruction sets and processors that are not
# here. Not required: those tests skip, saying so.
EMULATORS := libsimde-dev qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
$(VENV)/.emulators: | $(VENV)/.made
	@{ test -e /usr/include/simde && command -v qemu-x86_64 && command -v aarch64-linux-gnu-gcc; } >/dev/null || { test "$$(id -u)" = 0 && \
	  command -v apt-get && { apt-get install -qqy --no-install-recommends $(EMULATORS) || { apt-get update -qq && \
	  apt-get install -qqy --no-install-recommends $(EMULATORS); }; }; } >/dev/null 2>&1 </dev/null || \
	  echo "not all of $(EMULATORS) are here: the tests over them will skip"
	@touch $@

build: $(VENV)/.installed

wheel: build/.wheel
	@ls dist/*.whl

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed $(VENV)/.tests $(VENV)/.emulators
	@$(BIN)/pyruntime pull smollm2:135m
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/mypy -p pyruntime

protos: $(VENV)/.tests
	$(BIN)/python protos/generate.py

bench: $(VENV)/.installed
	@$(BIN)/pyruntime pull smollm2:135m
	@$(BIN)/pyruntime bench smollm2:135m

# Copies of the tree, built with the sanitizers, under the same tests. PyTorch is not instrumented, so few of these use it; a test of
# memory's peak would measure the sanitizer's.
# The thread sanitizer follows our own pool; what OpenMP's threads do it cannot see (tests/tsan.supp).
SANE ?= tests/test_gguf.py tests/test_hostile_files.py tests/test_safetensors.py tests/test_quantize.py tests/test_pack.py \
  tests/test_tokenizer.py tests/test_tokenizer_spm.py tests/test_tokenizer_json.py tests/test_tokenizer_files.py \
  tests/test_kernels.py tests/test_exec.py tests/test_exec_edges.py tests/test_state.py tests/test_folder.py tests/test_moe.py
RACE ?= tests/test_exec.py tests/test_exec_edges.py tests/test_state.py
asan: build/address,undefined
	cd build/address,undefined && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	  ../../$(BIN)/python -m pytest -p no:cacheprovider $(SANE) \
	  --deselect tests/test_folder.py::test_no_model_in_f32_beside_the_packed_one $(ARGS)

tsan: build/thread
	cd build/thread && LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" TSAN_OPTIONS=suppressions=tests/tsan.supp \
	  setarch -R ../../$(BIN)/python -m pytest -p no:cacheprovider $(RACE) $(ARGS)
	$(BIN)/python tests/fuzz/fuzz.py batch --sanitizer thread --runs 2000

.PHONY: build/address,undefined build/thread
build/address,undefined build/thread: $(VENV)/.tests
	@mkdir -p $@ && cp -r csrc pyruntime tests setup.py pyproject.toml README.md LICENSE $@
	@rm -f $@/pyruntime/_core/*.so && $(PIP) install -q setuptools cython numpy
	cd $@ && RT_SANITIZE=$(@F) ../../$(BIN)/python setup.py -q build_ext --inplace

fuzz: $(VENV)/.installed
	@for target in gguf safetensors tokenizer sentencepiece batch; do $(BIN)/python tests/fuzz/fuzz.py $$target $(ARGS) || exit 1; done

clean:
	rm -rf build dist $(VENV) $(VENV)-* *.egg-info pyruntime/_core/*.so pyruntime/_core/*.c
