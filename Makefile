# train_lora - make && ./train_lora.      `make help` lists what else there is.

CC      ?= gcc
CFLAGS  ?= -O3 -march=native
# No -Ofast and no -ffast-math: a NaN must stay a NaN. A warning is an error in the tests alone: a compiler with new
# opinions must not keep anybody from a trainer.
WARN     = -std=gnu11 -Wall -Wextra
STRICT   = $(WARN) -Werror
OPENMP  ?= -fopenmp
LIBS     = -lm

# stb_ds.h, the only library: Debian's libstb-dev, or a copy as .stb/stb/stb_ds.h on machines without packages.
INCLUDE  = -I. -isystem .stb
STB     := $(wildcard /usr/include/stb/stb_ds.h /usr/local/include/stb/stb_ds.h .stb/stb/stb_ds.h)
HEADERS  = lora.h data/dataset.h data/chat.h data/classify.h tokenizer.h
PROGRAM  = data/report.h data/score.h data/inspect.h data/evaluate.h

BUILD     = build
TESTS     = test_tokenizer test_ops test_data test_chat test_model test_generate test_train test_embed test_score test_faults
# The program's half of train_lora.cu, sanitized alone.
PROGRAM_TESTS = test_options
# The CUDA kernels run by test/cuda_on_cpu.h, no GPU needed: the tests of ops, model, generation and training in one
# program for each precision (test/emulated.c).
EMULATED  = tests_FP32 tests_BF16 tests_FP16
EMULATE   = $(CXX) -std=gnu++17 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-function -march=native \
            -fno-strict-aliasing -fno-crossjumping -fno-tree-tail-merge -DEMULATED $(INCLUDE) -Itest

# GPU or CPU? With nvcc and a GPU the CUDA trainer for that GPU, else the CPU trainer. By hand: CUDA=1 or 0, CUDA_ARCH=90, PRECISION=BF16, FP16 or FP32.
NVCC     ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
DETECTED := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc 0-9)
ifndef CUDA
CUDA     := $(if $(and $(NVCC),$(DETECTED)),1,0)
WHY_CPU  := $(if $(DETECTED),a GPU is there but no nvcc: install the CUDA toolkit or put nvcc on the PATH,nvidia-smi finds no GPU)
else
WHY_CPU  := CUDA=$(CUDA)
endif
CUDA_ARCH ?= $(or $(DETECTED),80)
PRECISION ?= $(if $(filter 75,$(CUDA_ARCH)),FP16,BF16)
# A toolkit older than the card makes PTX of the newest architecture below it, which the driver translates at the start.
GPU_CODE   = arch=compute_$(CUDA_ARCH),code=[sm_$(CUDA_ARCH),compute_$(CUDA_ARCH)]
ifeq ($(CUDA),1)
NUMBER    := $(shell echo $(CUDA_ARCH) | tr -dc 0-9)
KNOWN     := $(patsubst compute_%,%,$(shell $(or $(NVCC),nvcc) --list-gpu-arch 2>/dev/null))
ifeq ($(filter $(NUMBER),$(KNOWN)),)
OLDER     := $(shell printf '%s\n' $(KNOWN) | sort -n | awk '$$1 < $(NUMBER)' | tail -n 1)
endif
ifneq ($(OLDER),)
GPU_CODE   = arch=compute_$(OLDER),code=compute_$(OLDER)
WHY_PTX   := , by PTX for sm_$(OLDER): this nvcc knows nothing newer
endif
endif
# array-bounds: nvcc's host code forgets that stb_ds.h is a system header, and gcc sees ghosts in it.
NVCCFLAGS  = -std=c++17 -O3 -gencode $(GPU_CODE) -DPRECISION_$(PRECISION) \
             -Xcompiler -fopenmp,-Wall,-Wextra,-Wno-unused-function,-Wno-array-bounds $(INCLUDE)
# What the last make was told: with anything else, what that made is made again. `make install` takes what is there.
ifeq ($(filter install uninstall,$(MAKECMDGOALS)),)
remember = $(shell mkdir -p $(BUILD); [ "$$(cat $(BUILD)/$(1) 2>&1)" = '$(2)' ] || echo '$(2)' >$(BUILD)/$(1))
$(call remember,configured,$(if $(filter 1,$(CUDA)),CUDA sm_$(CUDA_ARCH) $(PRECISION),CPU))
$(call remember,flags,$(CC) $(CFLAGS) $(OPENMP))
endif

.DEFAULT_GOAL := train_lora
.PHONY: install uninstall
.PHONY: test single test-programs test-gpu soak test-mutants nvcc-check nvcc-command test-compilers fuzz mutate bench bench-peer golden clean help stb

## train_lora      the trainer (for everybody): for the GPU where there is nvcc and one, else for the CPU. CUDA=0|1 CUDA_ARCH=90 PRECISION=BF16|FP16|FP32 decide otherwise
train_lora: train_lora.cu $(HEADERS) $(PROGRAM) $(BUILD)/pages.h $(BUILD)/configured $(BUILD)/flags | stb
ifeq ($(CUDA),1)
	$(if $(NVCC),,@echo "error: no nvcc; Makefile, CUDA=1; install the CUDA toolkit or put nvcc on the PATH" >&2; exit 1)
	@echo "building for the GPU: sm_$(CUDA_ARCH), $(PRECISION)$(WHY_PTX)$(if $(DETECTED),, (no GPU found here; CUDA_ARCH chooses another))"
	$(NVCC) $(NVCCFLAGS) $< -o $@ $(LIBS)
else
	@echo "building for the CPU: $(WHY_CPU)"
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(INCLUDE) -x c $< -o $@ $(LIBS)
endif
$(BUILD)/configured $(BUILD)/flags:

# The pages of data/ as texts in C.
PAGES = $(wildcard data/*.html)
$(BUILD)/pages.h: $(PAGES)
	@mkdir -p $(BUILD)
	@for page in $(PAGES); do echo "static const char $$(basename $$page .html)_page[] ="; sed 's/\\/\\\\/g; s/"/\\"/g; s/?/\\?/g; s/.*/"&\\n"/' $$page; echo ";"; done >$@.tmp && mv $@.tmp $@

## data/convert    the converter of published data sets into rows for training (data/convert --help)
data/convert: data/convert.c tokenizer.h $(BUILD)/flags | stb
	$(CC) $(WARN) $(CFLAGS) $(INCLUDE) $< -o $@ $(LIBS)

# Installs stb_ds.h when it can, else says how.
stb:
ifeq ($(STB),)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "stb_ds.h is missing: installing Debian's libstb-dev"; apt-get -qq update && apt-get -qq install -y libstb-dev >/dev/null; \
	elif sudo -n true 2>/dev/null && command -v apt-get >/dev/null; then echo "stb_ds.h is missing: installing Debian's libstb-dev"; sudo apt-get -qq update && sudo apt-get -qq install -y libstb-dev >/dev/null; \
	else echo "error: stb_ds.h is missing; Makefile; run: sudo apt-get install libstb-dev" >&2; exit 1; fi
endif

## install         trainer, embedded example and recipes into PREFIX (/usr/local); DESTDIR= in front, for packages
PREFIX ?= /usr/local
INSTALLED = base hotel recipes
install: train_lora
	install -d "$(DESTDIR)$(PREFIX)/bin" $(INSTALLED:%="$(DESTDIR)$(PREFIX)/share/train_lora/data/%")
	install -m 755 train_lora "$(DESTDIR)$(PREFIX)/bin/train_lora"
	for d in $(INSTALLED); do install -m 644 data/$$d/* "$(DESTDIR)$(PREFIX)/share/train_lora/data/$$d" || exit 1; done
## uninstall       takes them away again (the same PREFIX and DESTDIR)
uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/train_lora"
	rm -rf "$(DESTDIR)$(PREFIX)/share/train_lora"

## test            every test, the CUDA kernels included; the last line is "N passed, N failed" (for everybody, and CI; no GPU needed)
test:
	@$(MAKE) --no-print-directory -j$(shell nproc) CUDA=0 train_lora data/convert test-programs
	@bash test/run.sh
test-programs: $(TESTS:%=$(BUILD)/%) $(TESTS:%=$(BUILD)/asan/%) $(PROGRAM_TESTS:%=$(BUILD)/asan/%) \
    $(EMULATED:%=$(BUILD)/emulated/%) $(BUILD)/emulated/asan/test_ops_BF16 $(BUILD)/emulated/asan/test_model_FP32 \
    $(BUILD)/mutants $(BUILD)/crash.so $(BUILD)/lora.h $(BUILD)/gemm_ladder $(BUILD)/attention_ladder

KERNEL_TESTS = train_lora.cu test/cuda_on_cpu.h test/backend.h test/check.h test/reference.h
$(BUILD)/%: test/%.c $(HEADERS) test/check.h test/backend.h test/reference.h $(BUILD)/flags | stb
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) $(CFLAGS) $(COUNTED) $(OPENMP) $(INCLUDE) $< $(filter %.o,$^) -o $@ $(LIBS)

# A user's own names beside lora.h's: the example compiles and runs as without them.
$(BUILD)/test_embed: WARN += -include test/own_names.h
$(BUILD)/test_embed: test/own_names.h

# Counts the work that it does, as no test looks at a clock.
$(BUILD)/test_tokenizer $(BUILD)/asan/test_tokenizer: COUNTED = -fsanitize-coverage=trace-pc
$(BUILD)/test_tokenizer $(BUILD)/asan/test_tokenizer: $(BUILD)/count_work.o
$(BUILD)/count_work.o: test/count_work.c
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) -O2 -c $< -o $@

$(BUILD)/test_score $(BUILD)/asan/test_score: data/score.h data/classify.h
$(BUILD)/test_train $(BUILD)/asan/test_train: test/allocations.h
$(BUILD)/test_options $(BUILD)/asan/test_options: train_lora.cu $(PROGRAM) $(BUILD)/pages.h
$(BUILD)/asan/test_options: OPTIMISE = -O0
$(BUILD)/asan/%: test/%.c $(HEADERS) test/check.h test/backend.h test/reference.h | stb
	@mkdir -p $(BUILD)/asan
	$(CC) $(STRICT) $(or $(OPTIMISE),-O1) -g -march=native -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer $(COUNTED) $(OPENMP) $(INCLUDE) $< $(filter %.o,$^) -o $@ $(LIBS)

SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
EMULATED_TESTS = test/test_ops.c test/test_model.c test/test_generate.c test/test_train.c
define emulated
$(BUILD)/emulated/tests_$(1): test/emulated.c $(EMULATED_TESTS) $(HEADERS) $(KERNEL_TESTS) | stb
	@mkdir -p $(BUILD)/emulated
	$(EMULATE) -O1 -DPRECISION_$(1) -x c++ $$< -o $$@ $(LIBS)
$(BUILD)/emulated/asan/%_$(1): test/%.c $(HEADERS) $(KERNEL_TESTS) | stb
	@mkdir -p $(BUILD)/emulated/asan
	$(EMULATE) $(SANITIZE) -DPRECISION_$(1) -x c++ $$< -o $$@ $(LIBS)
endef
$(foreach p,FP32 BF16 FP16,$(eval $(call emulated,$(p))))

# Where compiling takes longer than running.
$(BUILD)/test_data $(BUILD)/test_generate $(BUILD)/test_embed $(BUILD)/test_faults $(BUILD)/test_score: CFLAGS = -O1 -march=native
UNOPTIMISED = $(BUILD)/asan/test_data $(BUILD)/asan/test_faults $(BUILD)/asan/test_score
$(UNOPTIMISED): OPTIMISE = -O0

# Stops the trainer between the steps of writing a file.
$(BUILD)/crash.so: test/crash.c
	@mkdir -p $(BUILD)
	$(CC) $(STRICT) -O1 -shared -fPIC $< -o $@

# dev/'s ladders teach GEMM and attention a step at a time; here every step is checked.
$(BUILD)/%_ladder: dev/%_ladder.cu $(HEADERS) $(KERNEL_TESTS) | stb
	@mkdir -p $(BUILD)
	$(EMULATE) -O2 -x c++ $< -o $@ $(LIBS)

# The kernels with a switch at every barrier, wait and bounds check (test/mutants.h): the test of the tests.
$(BUILD)/mutants: test/test_ops.c test/mutants.h $(HEADERS) $(KERNEL_TESTS) | stb
	@mkdir -p $(BUILD)
	$(EMULATE) -O1 -g -fsanitize=address -DPRECISION_BF16 -DMUTATED -x c++ $< -o $@ $(LIBS)

## test-mutants    deletes one barrier, wait or bounds check of the kernels at a time and demands that a test fails (part of make test)
test-mutants: $(BUILD)/mutants
	@$(BUILD)/mutants

## nvcc-check      the trainer compiled and linked in each precision, kernels for more cards; a warning or spill fails
nvcc-check: $(BUILD)/pages.h | stb
	@bash test/nvcc.sh
# How nvcc is called for CUDA_ARCH and PRECISION, for test/nvcc.sh and test/gpu.sh.
nvcc-command:
	@echo '$(or $(NVCC),nvcc) $(NVCCFLAGS)'

## soak            200 kills at random moments and at every place where a file is half written, random options; each resumed run must end with the same bits (about six minutes)
soak: train_lora $(BUILD)/crash.so
	@bash test/test_resume.sh ./train_lora 200

## test-gpu        the kernel, model and trainer tests natively on the GPU of this machine, then compute-sanitizer (needs nvcc and a GPU)
test-gpu: | stb
	@bash test/gpu.sh $(or $(NVCC),nvcc) $(CUDA_ARCH)

## test-compilers  gcc and clang, C11 and C++17, with every warning an error
test-compilers: $(BUILD)/pages.h $(BUILD)/lora.h | stb
	@bash test/compilers.sh

## fuzz            libFuzzer on every parser, FUZZ_SECONDS each (needs clang)
FUZZ_SECONDS ?= 60
fuzz: | stb
	@bash test/fuzz.sh $(FUZZ_SECONDS)

## mutate          random mutants of the C code, MUTANTS of them: some test must notice each (needs Python; hours)
MUTANTS ?= 300
mutate: | stb
	python3 dev/mutate.py --count $(MUTANTS)

## single          build/lora.h: lora.h with tokenizer.h and the headers of data/ in it, one file to copy into a project
single: $(BUILD)/lora.h
$(BUILD)/lora.h: $(HEADERS)
	@mkdir -p $(BUILD)
	@awk 'function put(file,  line, folder, name) { \
	          folder = file; sub(/[^\/]*$$/, "", folder); \
	          while ((getline line <file) > 0) { \
	              if (line !~ /^#include "/) { print line; continue } \
	              split(line, name, "\""); line = folder name[2]; sub(/[^\/]+\/\.\.\//, "", line); \
	              if (!seen[line]++) put(line) \
	          } \
	          close(file) \
	      } \
	      BEGIN { put("lora.h") }' >$@.tmp && mv $@.tmp $@

## bench           speed of the ops and the tokenizer on this machine; on a GPU every kernel as a share of the card, and the whole step
bench: $(BUILD)/bench_ops $(BUILD)/bench_tokenizer $(BUILD)/bench_generate $(BUILD)/make_random_model $(if $(filter 1,$(CUDA)),$(BUILD)/bench_gpu)
	$(BUILD)/bench_ops
	$(BUILD)/bench_tokenizer data/base data/hotel/train.jsonl
	test -s $(BUILD)/tinyllama/model.safetensors || $(BUILD)/make_random_model dev/configs/tinyllama-1.1b.json $(BUILD)/tinyllama BF16
	$(BUILD)/bench_generate $(BUILD)/tinyllama
ifeq ($(CUDA),1)
	$(BUILD)/bench_gpu
	for model in qwen3-1.7b tinyllama-1.1b llama-3.1-8b; do $(BUILD)/bench_gpu --random-weights dev/configs/$$model.json || exit 1; done
endif
# cuBLAS is in the bench only, to have its rate beside ours.
$(BUILD)/bench_gpu: dev/bench_gpu.cu train_lora.cu $(HEADERS) | stb
	@mkdir -p $(BUILD)
	$(or $(NVCC),nvcc) $(NVCCFLAGS) -DWITH_CUBLAS $< -o $@ -lcublas $(LIBS)
ifeq ($(CUDA),1)
$(BUILD)/bench_generate: dev/bench_generate.c train_lora.cu $(HEADERS) | stb
	@mkdir -p $(BUILD)
	$(or $(NVCC),nvcc) $(NVCCFLAGS) -x cu $< -o $@ $(LIBS)
endif
$(BUILD)/bench_%: dev/bench_%.c $(HEADERS) $(BUILD)/flags | stb
	@mkdir -p $(BUILD)
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)
$(BUILD)/make_random_model: dev/make_random_model.c $(HEADERS) $(BUILD)/flags | stb
	@mkdir -p $(BUILD)
	$(CC) $(WARN) $(CFLAGS) $(OPENMP) $(INCLUDE) $< -o $@ $(LIBS)

## bench-peer      the same LoRA step with torch + transformers + peft beside ours (needs Python: pip install -r dev/requirements.txt)
bench-peer: train_lora $(BUILD)/make_random_model
	python3 dev/peer_bench.py

## golden          makes test/golden again (needs Python, as above)
golden:
	python3 dev/make_golden.py all && python3 dev/make_tokenizer_golden.py

## clean           removes what make made
clean:
	rm -rf $(BUILD) train_lora data/convert

## help            this list
help:
	@sed -n 's/^## /  /p' $(MAKEFILE_LIST)
