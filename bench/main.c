/* main.c: dsi-bench: what a machine can carry, measured. */
#include "../lib/base/pool.h"
#include "../lib/base/sys.h"
#include "../lib/base/topology.h"
#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Examples:\n"
    "  dsi-bench limits --threads 2\n"
    "  dsi-bench kernels --stem 'matmul_fp8*' --m 1,32,512\n"
    "  dsi-bench synth --out build/v3-slice --preset v3-slice --dtype fp8\n"
    "  dsi-bench model -m build/v3-slice --prefill 128,1024 --depth 0,1024 --batch 1,4,8\n"
    "  dsi-bench model -m build/v3-slice --prefill 128 --decode 24 --threads 2 --json\n"
    "\n"
    "limits   read bandwidth, peak multiply-adds and clock of this machine\n"
    "kernels  every kernel of every instruction set here: checked, then timed at DeepSeek-V3 "
    "shapes\n"
    "moe      the FP8 experts of a DeepSeek-V3 layer, 32 of them, 8 per row, as one operator\n"
    "synth    writes a checkpoint with random weights: presets v3-slice, v3, v32-slice, v32,\n"
    "         v2-lite-half, tiny, r1-distill-qwen-1.5b, -7b, -14b, -32b,\n"
    "         r1-distill-llama-8b, -70b\n"
    "model    prefill and decode speed of a checkpoint, beside the limits of the machine\n"
    "\n"
    "Options:\n"
    "  --threads N        threads (default: one per core)\n"
    "  --md, --csv, --json  a table (default), lines, one JSON object as the last line\n"
    "  --rounds N         limits, kernels: measurements of which the median is shown (default 5)\n"
    "  --stem PATTERN     kernels: a shell pattern over stems (default *)\n"
    "  --isa NAME         kernels: of one instruction set alone (default: all that run here)\n"
    "  --m LIST           kernels, moe: rows of the inputs (default 1,2,4,...,512)\n"
    "  --out DIR          synth: folder to write\n"
    "  --preset NAME      synth: shapes (default v3-slice)\n"
    "  --dtype TYPE       synth: fp8, bf16, int8 (by row), int8-block, int4 (group 128) or\n"
    "                     int4-g32 (default as published: fp8; R1-Distill: bf16)\n"
    "  --layers N         synth: the first N layers (default: all)\n"
    "  --vocab N          synth: a vocabulary of N tokens (default: the preset's)\n"
    "  --mtp              synth: with the block that drafts tokens (V3's shapes)\n"
    "  --hollow           synth: holes for weights, to open and to count, whatever the size\n"
    "  --gguf TYPE        synth: these weights as one GGUF file for llama.cpp instead: q8_0,\n"
    "                     q4_0, q4_k or bf16; --out may be the file\n"
    "  --seed N           synth, model: random numbers (default 1)\n"
    "  -m, --model DIR    model: checkpoint folder\n"
    "  --prefill LIST     model: tokens of the timed prompts, at each depth (default 128)\n"
    "  --decode N         model: timed steps, at each depth and batch (default 24)\n"
    "  --depth LIST       model: tokens of context before them (default 0)\n"
    "  --batch LIST       model: sessions decoding together (default 1)\n"
    "  --fill KIND        model: context beyond 512 tokens is a copy of 256 computed rows, each\n"
    "                     session's in pages of its own (copy, default), or computed (compute)\n"
    "  --gemm WHOSE       model: fast mode beside exact, with products of auto, onednn or "
    "openblas\n"
    "                     (default auto; own: exact alone)\n"
    "  --repeat N         model: timed prompts of each length (default 1)\n"
    "  --profile          model: decode steps more, op by op: time, bytes, meetings of threads\n"
    "  --chunk N          model: prompt tokens per step (default 256)\n"
    "  --kernels ISA      model: as dsinfer run (default: the best)\n"
    "  --activations TYPE model: bf16, f32, a8 or e4m3 (default bf16)\n"
    "  --kv-cache TYPE    model: bf16, fp8 or int8 (default bf16)\n"
    "  --draft N          model: beside decode without drafts, decode with N tokens a step that\n"
    "                     the MTP block drafts, and what bytes allow, here and for DeepSeek-V3\n"
    "  --force-accept P   model: drafts are computed, then made right in P of all cases (0.85)\n"
    "\n"
    "A LIST is numbers and commas: 1,4,8.\n";

uint32_t bench_threads(const bench_options *options) {
    return options->threads ? options->threads : dsi_default_threads();
}

void bench_say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("dsi-bench: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

void bench_progress(const char *what, uint64_t done, uint64_t total) {
    enum { CELLS = 24 };
    static double last;
    if (!isatty(STDERR_FILENO) || total == 0) return;
    double now = dsi_sys_seconds();
    if (done < total && now - last < 0.1) return;
    last = now;
    char cells[CELLS + 1] = "";
    for (uint64_t i = 0; i < CELLS; i++) cells[i] = i * total < done * CELLS ? '#' : '.';
    fprintf(stderr, "\r%s [%s] %3.0f %%", what, cells, 100.0 * (double)done / (double)total);
    if (done >= total) fputs("\r\033[K", stderr);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t n) {
    if (n == 0) return 0;
    qsort(values, n, sizeof *values, ascending);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double bench_percentile(const double *sorted, size_t n, double part) {
    if (n == 0) return 0;
    size_t rank = (size_t)(part * (double)n + 0.999999);
    return sorted[rank < 1 ? 0 : rank > n ? n - 1 : rank - 1];
}

uint32_t bench_largest(const bench_list *list) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < list->n; i++)
        if (list->values[i] > most) most = list->values[i];
    return most;
}

static bool read_u32(const char *name, const char *text, uint32_t *value) {
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || number > 1u << 24) {
        bench_say("--%s is \"%s\"; it must be a number from 0 to %u", name, text, 1u << 24);
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

static bool read_share(const char *name, const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    if (end != text && !*end && *value > 0 && *value <= 1) return true;
    bench_say("--%s is \"%s\"; it must be a number above 0 to 1, as 0.85", name, text);
    return false;
}

static bool read_list(const char *name, const char *text, bench_list *list) {
    char number[16];
    list->n = 0;
    for (const char *p = text;; p++) {
        size_t n = strcspn(p, ",");
        if (list->n == BENCH_LIST || n >= sizeof number) {
            bench_say("--%s is \"%s\"; it may be %d numbers with commas", name, text, BENCH_LIST);
            return false;
        }
        memcpy(number, p, n);
        number[n] = 0;
        if (!read_u32(name, number, &list->values[list->n++])) return false;
        p += n;
        if (!*p) return true;
    }
}

enum { OUT = 256, PRESET, DTYPE, SEED, PREFILL, DECODE, DEPTH, BATCH, CHUNK, KERNELS, THREADS };
enum {
    FILL = 300,
    GEMM,
    ACTIVATIONS,
    STEM,
    ISA,
    M,
    ROUNDS,
    REPEAT,
    MD,
    CSV,
    GGUF,
    KV_CACHE,
    PROFILE,
    LAYERS,
    VOCAB,
    MTP,
    HOLLOW,
    DRAFT,
    FORCE_ACCEPT
};
static const struct option long_options[] = {
    {"out", required_argument, NULL, OUT},
    {"preset", required_argument, NULL, PRESET},
    {"dtype", required_argument, NULL, DTYPE},
    {"seed", required_argument, NULL, SEED},
    {"model", required_argument, NULL, 'm'},
    {"prefill", required_argument, NULL, PREFILL},
    {"decode", required_argument, NULL, DECODE},
    {"depth", required_argument, NULL, DEPTH},
    {"batch", required_argument, NULL, BATCH},
    {"fill", required_argument, NULL, FILL},
    {"gemm", required_argument, NULL, GEMM},
    {"repeat", required_argument, NULL, REPEAT},
    {"chunk", required_argument, NULL, CHUNK},
    {"kernels", required_argument, NULL, KERNELS},
    {"activations", required_argument, NULL, ACTIVATIONS},
    {"kv-cache", required_argument, NULL, KV_CACHE},
    {"threads", required_argument, NULL, THREADS},
    {"stem", required_argument, NULL, STEM},
    {"isa", required_argument, NULL, ISA},
    {"m", required_argument, NULL, M},
    {"rounds", required_argument, NULL, ROUNDS},
    {"profile", no_argument, NULL, PROFILE},
    {"layers", required_argument, NULL, LAYERS},
    {"vocab", required_argument, NULL, VOCAB},
    {"mtp", no_argument, NULL, MTP},
    {"hollow", no_argument, NULL, HOLLOW},
    {"draft", required_argument, NULL, DRAFT},
    {"force-accept", required_argument, NULL, FORCE_ACCEPT},
    {"md", no_argument, NULL, MD},
    {"csv", no_argument, NULL, CSV},
    {"gguf", required_argument, NULL, GGUF},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

static const char **text_option(bench_options *o, int letter) {
    switch (letter) {
    case OUT:
        return &o->out;
    case PRESET:
        return &o->preset;
    case DTYPE:
        return &o->dtype;
    case KERNELS:
        return &o->kernels;
    case ACTIVATIONS:
        return &o->activations;
    case KV_CACHE:
        return &o->kv_cache;
    case FILL:
        return &o->fill;
    case GEMM:
        return &o->gemm;
    case STEM:
        return &o->stem;
    case ISA:
        return &o->isa;
    case GGUF:
        return &o->gguf;
    case 'm':
        return &o->model;
    default:
        return NULL;
    }
}

static uint32_t *number_option(bench_options *o, int letter) {
    switch (letter) {
    case DECODE:
        return &o->decode;
    case CHUNK:
        return &o->chunk;
    case THREADS:
        return &o->threads;
    case ROUNDS:
        return &o->rounds;
    case REPEAT:
        return &o->repeat;
    case LAYERS:
        return &o->layers;
    case VOCAB:
        return &o->vocab;
    case DRAFT:
        return &o->draft;
    default:
        return NULL;
    }
}

static bench_list *list_option(bench_options *o, int letter) {
    return letter == PREFILL ? &o->prefill
           : letter == DEPTH ? &o->depth
           : letter == BATCH ? &o->batch
           : letter == M     ? &o->m
                             : NULL;
}

static int parse(int argc, char **argv, bench_options *o) {
    uint32_t seed = 1;
    int letter, index = 0;
    while ((letter = getopt_long(argc, argv, "m:h", long_options, &index)) != -1) {
        const char **text = text_option(o, letter);
        uint32_t *number = letter == SEED ? &seed : number_option(o, letter);
        bench_list *list = list_option(o, letter);
        const char *name = long_options[index].name;
        if (text) *text = optarg;
        if (number && !read_u32(name, optarg, number)) return BENCH_USAGE;
        if (list && !read_list(name, optarg, list)) return BENCH_USAGE;
        if (letter == 'j' || letter == CSV || letter == MD)
            o->format = letter == 'j' ? BENCH_JSON : letter == CSV ? BENCH_CSV : BENCH_MD;
        if (letter == PROFILE) o->profile = true;
        if (letter == MTP) o->mtp = true;
        if (letter == FORCE_ACCEPT && !read_share(name, optarg, &o->force_accept))
            return BENCH_USAGE;
        if (letter == HOLLOW) o->hollow = true;
        if (letter == 'h') o->command = "help";
        if (letter == '?') return BENCH_USAGE;
    }
    o->seed = seed;
    if (o->threads > DSI_POOL_MAX_THREADS) {
        bench_say("--threads is %u; it may be 1 to %d, or 0 for one per core", o->threads,
                  DSI_POOL_MAX_THREADS);
        return BENCH_USAGE;
    }
    if (!o->command && optind < argc) o->command = argv[optind++];
    if (optind < argc) {
        bench_say("\"%s\" is one argument too many; dsi-bench --help explains", argv[optind]);
        return BENCH_USAGE;
    }
    if (o->rounds < 1 || o->rounds > 100 || o->repeat < 1 || o->repeat > 100) {
        bench_say("--rounds and --repeat may be 1 to 100");
        return BENCH_USAGE;
    }
    return BENCH_OK;
}

/* What was measured must have been printed. */
static int ended(int code) {
    if ((fflush(stdout) == 0 && !ferror(stdout)) || code != BENCH_OK) return code;
    bench_say("cannot write the results to standard output; give it room, or another place");
    return BENCH_ENVIRONMENT;
}

int main(int argc, char **argv) {
    bench_options o = {.preset = "v3-slice",
                       .fill = "copy",
                       .gemm = "auto",
                       .kv_cache = "bf16",
                       .stem = "*",
                       .prefill = {1, {128}},
                       .depth = {1, {0}},
                       .batch = {1, {1}},
                       .m = {10, {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}},
                       .decode = 24,
                       .repeat = 1,
                       .rounds = 5,
                       .chunk = 256};
    static const struct {
        const char *name;
        int (*run)(const bench_options *options);
    } commands[] = {{"synth", bench_synth},
                    {"model", bench_model},
                    {"kernels", bench_kernels},
                    {"moe", bench_moe},
                    {"limits", bench_limits_command}};
    signal(SIGXFSZ, SIG_IGN); /* a limit of file sizes is seen as a failed write */
    int code = parse(argc, argv, &o);
    if (code != BENCH_OK) return code;
    for (size_t i = 0; o.command && i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(o.command, commands[i].name) == 0) return ended(commands[i].run(&o));
    bool asked = o.command && strcmp(o.command, "help") == 0;
    if (o.command && !asked) bench_say("there is no command \"%s\"", o.command);
    fputs(help, asked ? stdout : stderr);
    return asked ? BENCH_OK : BENCH_USAGE;
}
