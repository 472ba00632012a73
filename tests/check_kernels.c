/* check_kernels.c: holds every line of kernels/kernels.inc against its reference and times it.
 *
 *   check_kernels [--stem PATTERN] [--isa NAME] [--bench] [--seed N] [--json]
 *
 * PATTERN is a shell pattern ('matmul_fp8*'), NAME one of ref, avx2, avx512, avx512vnni,
 * avx512bf16, amx. For each kernel one line: stem, instruction set, cases, the worst error as a
 * part of its tolerance, OK or FAIL with the first failed case. --json prints one object per kernel
 * on a line of its own; lines that do not start with { come from cmocka. --bench adds times at
 * DeepSeek-V3 shapes.
 * The deliberately broken kernels of check_kernels_mutants.c always run; each must be caught.
 * Exit code: 0 all right, 1 a check failed, 2 usage. */
#include "../lib/backend/cpu_isa.h"
#include "../lib/backend/cpu_selftest.h"
#include "check.h"
#include <fcntl.h>
#include <fnmatch.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { CHECK_SECONDS = 120, MAX_TESTS = 256 };

static struct options {
    const char *stem, *isa;
    bool bench, json;
    uint64_t seed;
} options = {.stem = "*", .isa = "*", .seed = 1};

/* ---- The list -------------------------------------------------------------------------------- */

/* The same sources built against a tests/..._double.h carry the suffix _double. */
#define K(type, stem, isa, symbol, c) void symbol##_double DSI_KERNEL_ARGS_##type;
#include "../kernels/kernels.inc"
#undef K

#define LOWER_REF "ref"
#define LOWER_AVX2 "avx2"
#define LOWER_AVX512 "avx512"
#define LOWER_AVX512VNNI "avx512vnni"
#define LOWER_AVX512BF16 "avx512bf16"
#define LOWER_AMX "amx"

/* Whose products take denormals as zero. */
#define FLUSHING (DSI_ISA_AVX512BF16 | DSI_ISA_AMX)

static const check_kernel kernels[] = {
#define K(type, stem, isa, symbol, c)                                                              \
    {CHECK_##type,                                                                                 \
     #stem,                                                                                        \
     LOWER_##isa,                                                                                  \
     #symbol,                                                                                      \
     DSI_ISA_##isa,                                                                                \
     (check_any_fn)symbol,                                                                         \
     (check_any_fn)dsi_##stem##__ref,                                                              \
     c,                                                                                            \
     DSI_ISA_##isa == DSI_ISA_REF,                                                                 \
     false,                                                                                        \
     (DSI_ISA_##isa & FLUSHING) != 0},
#include "../kernels/kernels.inc"
#undef K
#if defined(__x86_64__)
#define DOUBLE_REF(type, stem, symbol, c)
#define DOUBLE_AVX2(type, stem, symbol, c)
#define DOUBLE_AVX512(type, stem, symbol, c)
#define DOUBLE_AVX512VNNI(type, stem, symbol, c) DOUBLE(type, stem, AVX512VNNI, symbol, c)
#define DOUBLE_AVX512BF16(type, stem, symbol, c) DOUBLE(type, stem, AVX512BF16, symbol, c)
#define DOUBLE_AMX(type, stem, symbol, c) DOUBLE(type, stem, AMX, symbol, c)
#define DOUBLE(type, stem, isa, symbol, c)                                                         \
    {CHECK_##type,                                                                                 \
     #stem,                                                                                        \
     LOWER_##isa,                                                                                  \
     #symbol "_double",                                                                            \
     DSI_ISA_AVX512,                                                                               \
     (check_any_fn)symbol##_double,                                                                \
     (check_any_fn)dsi_##stem##__ref,                                                              \
     c,                                                                                            \
     false,                                                                                        \
     true,                                                                                         \
     (DSI_ISA_##isa & FLUSHING) != 0},
#define K(type, stem, isa, symbol, c) DOUBLE_##isa(type, stem, symbol, c)
#include "../kernels/kernels.inc"
#undef K
#endif
};
enum { KERNELS = sizeof kernels / sizeof kernels[0] };

static const char *isa_name(uint32_t isa) {
    return isa == DSI_ISA_AMX          ? LOWER_AMX
           : isa == DSI_ISA_AVX512BF16 ? LOWER_AVX512BF16
           : isa == DSI_ISA_AVX512VNNI ? LOWER_AVX512VNNI
           : isa == DSI_ISA_AVX512     ? LOWER_AVX512
           : isa == DSI_ISA_AVX2       ? LOWER_AVX2
                                       : LOWER_REF;
}

static bool is_chosen(const char *stem, const char *isa) {
    return fnmatch(options.stem, stem, 0) == 0 && fnmatch(options.isa, isa, 0) == 0;
}

/* ---- One check in a child process ------------------------------------------------------------ */

static void check(check_run *run) {
    if (run->kernel->type != CHECK_decode_blocks && strstr(run->kernel->stem, "_blocks")) {
        check_blocks(run);
        return;
    }
    switch (run->kernel->type) {
    case CHECK_matmul:
        check_matmul(run);
        break;
    case CHECK_matmul_t:
        check_matmul_t(run);
        break;
    case CHECK_attend:
        check_attend(run);
        break;
    case CHECK_rms_norm:
        check_rms_norm(run);
        break;
    case CHECK_swiglu:
        check_swiglu(run);
        break;
    case CHECK_cast:
        check_cast(run);
        break;
    case CHECK_quantize:
        check_quantize(run);
        break;
    case CHECK_decode:
        check_decode(run);
        break;
    case CHECK_rope:
        check_rope(run);
        break;
    case CHECK_route:
        check_route(run);
        break;
    case CHECK_decode_blocks:
        check_decode_blocks(run);
        break;
    case CHECK_index:
        check_index(run);
        break;
    }
}

/* Its memory is shared, so that a child that dies leaves the case that killed it in `where`. */
static check_run *new_run(const check_kernel *kernel) {
    check_run *run =
        mmap(NULL, sizeof *run, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (run == MAP_FAILED) {
        perror("check_kernels: mmap");
        exit(3);
    }
    run->kernel = kernel;
    run->random = options.seed;
    for (const char *s = kernel->symbol; *s; s++) run->random = run->random * 31 + (uint8_t)*s;
    return run;
}

static void run_in_child(check_run *run, void (*body)(check_run *run), bool quiet) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        /* cmocka turns these into failures of its own process; here they must end the child. */
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        signal(SIGILL, SIG_DFL);
        signal(SIGFPE, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        int null = quiet ? open("/dev/null", O_WRONLY) : -1;
        if (null >= 0) dup2(null, 2);
        /* Time of its own, not of the clock: a busy machine is no hang. */
        const struct rlimit limit = {CHECK_SECONDS, CHECK_SECONDS + 1};
        setrlimit(RLIMIT_CPU, &limit);
        body(run);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) {
        perror("check_kernels: fork");
        exit(3);
    }
    if (WIFSIGNALED(status)) {
        int number = WTERMSIG(status);
        const char *why = number == SIGSEGV || number == SIGBUS ? "left its buffers"
                          : number == SIGXCPU                   ? "hangs"
                          : number == SIGILL ? "used an instruction this CPU lacks"
                                             : "died";
        check_fail(run, "%s (signal %d)", why, number);
    } else if (WEXITSTATUS(status) != 0) {
        check_fail(run, "the child process ended with code %d", WEXITSTATUS(status));
    }
}

/* ---- What is printed ------------------------------------------------------------------------- */

static void print_json_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        putchar((uint8_t)*text < 32 ? ' ' : *text);
    }
    putchar('"');
}

static void print_json(const check_run *run, const char *state) {
    const check_kernel *k = run->kernel;
    printf("{\"kernel\": \"%s\", \"stem\": \"%s\", \"isa\": \"%s\", \"emulated\": %s, "
           "\"state\": \"%s\", \"cases\": %ld, \"worst\": %.4f",
           k->symbol, k->stem, k->isa_name, k->emulated ? "true" : "false", state, run->cases,
           run->worst);
    if (run->failures > 0) {
        printf(", \"why\": ");
        print_json_text(run->why);
    }
    for (int i = 0; i < run->n_speeds; i++) {
        const check_speed *s = &run->speed[i];
        printf("%s{\"shape\": \"%s\", \"us\": %.3f, \"gb_per_s\": %.3f, \"gflop_per_s\": %.3f}%s",
               i == 0 ? ", \"bench\": [" : ", ", s->shape, s->us_per_call, s->gb_per_s,
               s->gflop_per_s, i + 1 == run->n_speeds ? "]" : "");
    }
    puts("}");
}

static void print_text(const check_run *run, const char *state) {
    const check_kernel *k = run->kernel;
    printf("%-18s %-10s %s%5ld cases  worst %.3f of tolerance  %s\n", k->stem, k->isa_name,
           k->emulated ? "EMULATED " : "", run->cases, run->worst, state);
    if (run->failures > 0) printf("    %ld failures; the first: %s\n", run->failures, run->why);
    for (int i = 0; i < run->n_speeds; i++) {
        const check_speed *s = &run->speed[i];
        printf("    %-32s %10.2f us", s->shape, s->us_per_call);
        if (s->gb_per_s > 0) printf(" %8.2f GB/s", s->gb_per_s);
        if (s->gflop_per_s > 0) printf(" %8.2f GFLOP/s", s->gflop_per_s);
        puts("");
    }
}

/* ---- The tests ------------------------------------------------------------------------------- */

/* The self-test at load has fewer cases. */
_Static_assert((int)CHECK_index == (int)DSI_KERNEL_index, "two lists of the same types");
static void selftest_kernel(check_run *run) {
    const check_kernel *k = run->kernel;
    const dsi_kernel_line line = {.type = (uint32_t)k->type,
                                  .isa = k->flushes_denormals ? DSI_ISA_AVX512BF16 : DSI_ISA_AVX2,
                                  .stem = k->stem,
                                  .symbol = k->symbol,
                                  .fn = k->fn,
                                  .ref = k->ref,
                                  .tolerance = k->c};
    char why[160];
    if (!dsi_cpu_selftest_kernel(&line, k->fn, why, sizeof why)) check_fail(run, "%s", why);
}

static void test_kernel(void **state) {
    const check_kernel *kernel = *state;
    check_run *run = new_run(kernel);
    if ((dsi_cpu_isa(dsi_isa_detect(), NULL) & kernel->isa) == 0) {
        if (options.json)
            print_json(run, "skipped");
        else
            printf("%-18s %-10s skipped: this CPU lacks %s\n", kernel->stem, kernel->isa_name,
                   isa_name(kernel->isa));
        munmap(run, sizeof *run);
        skip();
    }
    run_in_child(run, check, false);
    /* What this machine lacks must also get through the test at load on one that has it. */
    if (run->failures == 0 && !kernel->is_ref) run_in_child(run, selftest_kernel, false);
    if (options.bench && run->failures == 0 && !kernel->emulated)
        run_in_child(run, check_bench, false);
    (options.json ? print_json : print_text)(run, run->failures == 0 ? "OK" : "FAIL");
    long failures = run->failures;
    munmap(run, sizeof *run);
    assert_int_equal(failures, 0);
}

/* Armed, the mutant must be caught; disarmed it must pass, or the check would catch anything. */
static void test_mutant(void **state) {
    int number = (int)(intptr_t)*state;
    check_mutant mutant = check_mutant_arm(number, true);
    check_run *run = new_run(&mutant.kernel);
    run->stop_at_failure = true;
    run_in_child(run, check, true);
    long caught = run->failures;
    if (!options.json)
        printf("%-18s mutant that %s: %s\n    %s\n", mutant.kernel.stem, mutant.name,
               caught > 0 ? "caught" : "NOT CAUGHT", run->why);
    munmap(run, sizeof *run);
    assert_true(caught > 0);
}

static void test_mutant_disarmed(void **state) {
    int number = (int)(intptr_t)*state;
    check_mutant mutant = check_mutant_arm(number, false);
    check_run *run = new_run(&mutant.kernel);
    run_in_child(run, check, false);
    if (run->failures > 0) printf("disarmed mutant: %s\n", run->why);
    long failures = run->failures;
    munmap(run, sizeof *run);
    assert_int_equal(failures, 0);
}

/* It must catch all mutants but those that only this harness can see. */
static void test_selftest_catches(void **state) {
    (void)state;
    int caught = 0, n = check_mutant_count();
    for (int i = 0; i < n; i++) {
        check_mutant mutant = check_mutant_arm(i, true);
        check_run *run = new_run(&mutant.kernel);
        run_in_child(run, selftest_kernel, true);
        long failures = run->failures;
        if (failures > 0) caught++;
        /* A read behind a row needs a guard page to show. */
        bool must = strcmp(mutant.kernel.symbol, "PAST_END") != 0;
        if (failures == 0 && must) printf("not caught: a kernel that %s\n", mutant.name);
        munmap(run, sizeof *run);
        assert_true(failures > 0 || !must);
        mutant = check_mutant_arm(i, false);
        run = new_run(&mutant.kernel);
        run_in_child(run, selftest_kernel, false);
        if (run->failures > 0) printf("disarmed mutant: %s\n", run->why);
        failures = run->failures;
        munmap(run, sizeof *run);
        assert_int_equal(failures, 0);
    }
    if (!options.json) printf("the self-test at load catches %d of %d mutants\n", caught, n);
}

/* Every stem has a reference, and a mask chooses the kernels it allows and no others. */
static void test_selection(void **state) {
    (void)state;
    dsi_kernels chosen, by_detection;
    dsi_kernels_select(0, &chosen);
#define STEM(type, stem)                                                                           \
    assert_non_null(chosen.stem);                                                                  \
    assert_string_equal(chosen.name_##stem, "dsi_" #stem "__ref");
    DSI_KERNEL_STEMS(STEM)
#undef STEM
    for (uint32_t mask = 0; mask < DSI_ISA_MASKS; mask++) {
        dsi_kernels_select(mask, &chosen);
        for (int i = 0; i < KERNELS; i++) {
            if (kernels[i].emulated || strcmp(kernels[i].stem, "matmul_fp8_bf16") != 0) continue;
            if ((kernels[i].isa & (mask | DSI_ISA_REF)) == 0) continue;
            assert_string_equal(chosen.name_matmul_fp8_bf16, kernels[i].symbol);
            break;
        }
    }
    uint32_t isa = dsi_isa_detect();
    assert_true((isa & DSI_ISA_REF) != 0);
    if (isa & DSI_ISA_AVX512) assert_true((isa & DSI_ISA_AVX2) != 0);
    if (isa & DSI_ISA_AVX512BF16) assert_true((isa & DSI_ISA_AVX512) != 0);
    if (isa & DSI_ISA_AMX) assert_true((isa & DSI_ISA_AVX512BF16) != 0);
    if (isa & DSI_ISA_AVX512VNNI) assert_true((isa & DSI_ISA_AVX512) != 0);
    dsi_kernels_select(isa, &by_detection);
    assert_non_null(by_detection.attend_bf16);
}

/* ---- Options --------------------------------------------------------------------------------- */

static int usage(const char *what) {
    fprintf(stderr,
            "check_kernels: %s\n"
            "usage: check_kernels [--stem PATTERN] [--isa NAME] [--bench] [--seed N] [--json]\n",
            what);
    return 2;
}

static int parse_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--bench") == 0) {
            options.bench = true;
        } else if (strcmp(argv[i], "--json") == 0) {
            options.json = true;
        } else if (strcmp(argv[i], "--stem") == 0 && value != NULL) {
            options.stem = value, i++;
        } else if (strcmp(argv[i], "--isa") == 0 && value != NULL) {
            options.isa = value, i++;
        } else if (strcmp(argv[i], "--seed") == 0 && value != NULL) {
            char *end;
            options.seed = strtoull(value, &end, 0), i++;
            if (*end != 0 || end == value) return usage("--seed takes a whole number");
        } else {
            return usage("an unknown option, or one without its value");
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    static struct CMUnitTest tests[MAX_TESTS];
    size_t n = 0;
    int code = parse_options(argc, argv);
    if (code != 0) return code;
    tests[n++] = (struct CMUnitTest){.name = "test_selection", .test_func = test_selection};
    tests[n++] =
        (struct CMUnitTest){.name = "test_selftest_catches", .test_func = test_selftest_catches};
    for (int i = 0; i < KERNELS && n < MAX_TESTS; i++)
        if (is_chosen(kernels[i].stem, kernels[i].isa_name))
            tests[n++] = (struct CMUnitTest){.name = kernels[i].symbol,
                                             .test_func = test_kernel,
                                             .initial_state = (void *)(uintptr_t)&kernels[i]};
    const char *before = "";
    for (int i = 0; i < check_mutant_count() && n + 1 < MAX_TESTS; i++) {
        check_mutant mutant = check_mutant_arm(i, false);
        if (fnmatch(options.stem, mutant.kernel.stem, 0) != 0) continue;
        void *number = (void *)(intptr_t)i;
        if (strcmp(before, mutant.kernel.stem) != 0)
            tests[n++] = (struct CMUnitTest){.name = "mutants disarmed",
                                             .test_func = test_mutant_disarmed,
                                             .initial_state = number};
        tests[n++] = (struct CMUnitTest){
            .name = mutant.kernel.symbol, .test_func = test_mutant, .initial_state = number};
        before = mutant.kernel.stem;
    }
    if (n == 1) return usage("no kernel fits --stem and --isa");
    setvbuf(stdout, NULL, _IOLBF, 0);
    return _cmocka_run_group_tests("check_kernels", tests, n, NULL, NULL) == 0 ? 0 : 1;
}
