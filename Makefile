# train_lora - make && ./train_lora.      `make help` lists what else there is.

CC      ?= gcc
CFLAGS  ?= -O3 -march=native
# Warnings are errors. No -Ofast and no -ffast-math: a NaN must stay a NaN.
STRICT   = -std=gnu11 -Wall -Wextra -Werror
OPENMP  ?= -fopenmp
LIBS     = -lm

# stb_ds.h, the only library: Debian's libstb-dev, or a copy as .stb/stb/stb_ds.h on machines without packages.
INCLUDE  = -I. -isystem .stb
STB     := $(wildcard /usr/include/stb/stb_ds.h /usr/local/include/stb/stb_ds.h .stb/stb/stb_ds.h)
HEADERS  = lora.h tokenizer.h

TESTS     = test_tokenizer test_ops test_data test_model test_train test_embed
BUILD     = build

.DEFAULT_GOAL := train_lora
.PHONY: test test-sanitize test-compilers fuzz bench bench-peer golden clean help stb

## train_lora      the trainer (for everybody; the CPU build: the CUDA kernels come with a later version)
train_lora: train_lora.cu $(HEADERS) | stb
	$(CC) $(STRICT) $(CFLAGS) $(OPENMP) $(INCLUDE) -x c $< -o $@ $(LIBS)

# Installs stb_ds.h when it can, else says how.
stb:
ifeq ($(STB),)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "stb_ds.h is missing: installing Debian's libstb-dev"; apt-get -qq update && apt-get -qq install -y libstb-dev >/dev/null; \
	elif sudo -n true 2>/dev/null && command -v apt-get >/dev/null; then echo "stb_ds.h is missing: installing Debian's libstb-dev"; sudo apt-get -qq update && sudo apt-get -qq install -y libstb-dev >/dev/null; \
	else echo "error: stb_ds.h is missing; Makefile; run: sudo apt-get install libstb-dev" >&2; exit 1; fi
endif

## test            every test; the last line is "N passed, N failed" (for everybody, and CI)
test: train_lora $(TESTS:%=$(BUILD)/%) $(TESTS:%=$(BUILD)/asan/%)
	@bash test/run.sh

$(BUILD)/%: test/%.c $(HEADERS) test/check.h test/reference.h | stb
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) $(CFLAGS) $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)

$(BUILD)/asan/%: test/%.c $(HEADERS) test/check.h test/reference.h | stb
	@mkdir -p $(BUILD)/asan
	$(CC) $(STRICT) -O1 -g -march=native -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)

## test-compilers  gcc and clang, C11 and C++17, with every warning an error
test-compilers: | stb
	@bash test/compilers.sh

## fuzz            libFuzzer on every parser, FUZZ_SECONDS each (needs clang)
FUZZ_SECONDS ?= 60
fuzz: | stb
	@bash test/fuzz.sh $(FUZZ_SECONDS)

## bench           speed of the ops and the tokenizer on this machine
bench: $(BUILD)/bench_ops $(BUILD)/bench_tokenizer
	$(BUILD)/bench_ops
	$(BUILD)/bench_tokenizer data/base data/hotel/train.jsonl
$(BUILD)/bench_%: dev/bench_%.c $(HEADERS) | stb
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) $(CFLAGS) $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)
$(BUILD)/make_random_model: dev/make_random_model.c $(HEADERS) | stb
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) $(CFLAGS) $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)

## bench-peer      the same LoRA step with torch + transformers + peft beside ours (needs Python: pip install -r dev/requirements.txt)
bench-peer: train_lora $(BUILD)/make_random_model
	python3 dev/peer_bench.py

## golden          makes test/golden again (needs Python, as above)
golden:
	python3 dev/make_golden.py all && python3 dev/make_tokenizer_golden.py

## clean           removes what make made
clean:
	rm -rf $(BUILD) train_lora

## help            this list
help:
	@sed -n 's/^## /  /p' $(MAKEFILE_LIST)
