# The door. CMake says what is built from what; packages.txt lists what must be installed.
#
#   make            build/drover                     make asan     tests under address and undefined sanitizers
#   make run        the main job: DATA= MINUTES=     make fuzz     every fuzz target: SECONDS=60
#   make test       unit tests and layer checks      make tidy     clang's warnings, clang-tidy, cppcheck
#   make bench      the tables of speed and memory   make format   clang-format in place
#   make bench-cuda the same of this machine's GPU, beside PyTorch; ends with 3 where there is none (docs/cuda.md)
#   make packages   install what is missing, only    make clean    remove what was built
#   make validate   published training runs against the planner; make residuals: the error bars of plans, from them
#   make soak       ranks are killed 200 times and hang 100 times, 200 layouts, 10,000 steps: SOAK="kill hang layout slow"
#   make test-slurm a Slurm cluster on this machine; a job loses a node (as root)
#   make test-cuda  the cuda device on this machine's GPU (docs/cuda.md)
#   make parity     beside transformers: logits, gradients, checkpoints, conversions
#   make parity-tokenizers   token ids against tiktoken, tokenizers, sentencepiece: TOKENIZERS=dir (needs PyPI)
#   make parity-chat TEMPLATES=DIR   chat formats against transformers and the published templates (docs/chat.md)
MAKEFLAGS += --no-print-directory
JOBS ?= $(shell nproc)
TOKENIZERS ?= ../shared/data/tokenizers
DATA ?=
TEMPLATES ?=
MINUTES ?=
SECONDS ?= 60
SOAK ?= kill hang layout slow
SOURCES = $(shell find src tools bench tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: all configured run test test-cuda validate residuals soak test-slurm bench bench-cuda asan fuzz tidy format packages clean parity parity-tokenizers parity-chat
all: configured
	@ninja -C build -j $(JOBS)

configured: packages
	@test -f build/build.ninja || cmake --preset release --log-level=WARNING >/dev/null

run: configured
	@ninja -C build -j $(JOBS) drover
	@tools/packages run
	@DATA='$(DATA)' MINUTES='$(MINUTES)' tools/run_main_job.sh

test: all
	@tools/check_layers
	@tools/check_style
	@ctest --test-dir build --output-on-failure -j 2

validate: all
	@build/drover validate data/validation/calibration.csv data/validation/grid_*.csv

residuals: all
	@build/drover validate data/validation/calibration.csv data/validation/grid_*.csv --residuals src/planner/residuals.yaml

soak: all
	@tests/soak.sh build/drover . $(SOAK)

test-slurm: all
	@tools/packages slurm
	@tests/slurm_test.sh build/drover .

test-cuda: packages
	@cmake --preset cuda --log-level=WARNING >/dev/null
	@ninja -C build-cuda -j $(JOBS)
	@tools/cuda/test build-cuda

bench: all
	@ninja -C build -j $(JOBS) benches
	@bench/run

bench-cuda: all
	@ninja -C build -j $(JOBS) cuda_bench
	@bench/run cuda

parity: all
	@tools/parity/run

parity-chat: all
	@TEMPLATES='$(TEMPLATES)' tools/parity/run chat

asan: packages
	@test -f build-asan/build.ninja || cmake --preset asan --log-level=WARNING >/dev/null
	@ninja -C build-asan -j $(JOBS)
	@ctest --test-dir build-asan --output-on-failure -j 2

fuzz: packages
	@tools/packages fuzz
	@test -f build-fuzz/build.ninja || cmake --preset fuzz --log-level=WARNING >/dev/null
	@ninja -C build-fuzz -j $(JOBS)
	@tools/fuzz build-fuzz $(SECONDS)

tidy: packages
	@tools/packages tidy
	@test -f build-clang/build.ninja || cmake --preset clang --log-level=WARNING >/dev/null
	@ninja -C build-clang -j $(JOBS)
	@tools/tidy build-clang

format:
	@tools/packages format
	@clang-format -i $(SOURCES)

parity-tokenizers: all
	@tools/packages parity
	@ninja -C build -j $(JOBS) text_bench
	@tools/parity/token_ids.py --tokenizers '$(TOKENIZERS)'

packages:
	@tools/packages build test

clean:
	rm -rf build build-asan build-fuzz build-clang build-debug
