/* check_kernels_memory.c: the tools of the checks: random numbers, number formats, buffers between
 * guard pages, comparisons. */
#include "../lib/base/base.h"
#include "check.h"
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>

enum { SLOTS = 16, SLOT_BYTES = 2 << 20, SLACK = 256, PAGE = 4096, CANARY = 0xA5 };
enum { ARENA_BYTES = 32 << 20 };

typedef struct slot {
    uint8_t *area; /* SLOT_BYTES between two guard pages */
    uint8_t *data;
    int64_t n_bytes;
} slot;

/* The child process has one thread and one check, so that its memory may be global. */
static slot slots[SLOTS];
static uint8_t *arena;
static int64_t arena_used;

static uint8_t *map(size_t n_bytes) {
    void *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) return memory;
    perror("check_kernels: mmap");
    exit(3);
}

/* ---- Formats ---- */

int check_format_size(enum check_format format) {
    return format == CHECK_FP8 || format == CHECK_I8 ? 1 : format == CHECK_F32 ? 4 : 2;
}

int64_t check_format_bytes(enum check_format format, int64_t n) {
    return format == CHECK_I4 ? (n + 1) / 2 : n * check_format_size(format);
}

enum check_format check_format_named(const char *text) {
    if (strncmp(text, "fp8", 3) == 0) return CHECK_FP8;
    if (strncmp(text, "bf16", 4) == 0) return CHECK_BF16;
    if (strncmp(text, "i8", 2) == 0) return CHECK_I8;
    if (strncmp(text, "i4", 2) == 0) return CHECK_I4;
    return strncmp(text, "f16", 3) == 0 ? CHECK_F16 : CHECK_F32;
}

void check_put(enum check_format format, void *array, int64_t i, double value) {
    float f32 = (float)value;
    if (format == CHECK_I4) {
        uint8_t *pair = (uint8_t *)array + i / 2;
        int shift = (int)(i % 2) * 4, code = (int)fmin(fmax(value, -8), 7) + 8;
        *pair = (uint8_t)((*pair & ~(15 << shift)) | code << shift);
        return;
    }
    uint8_t *to = (uint8_t *)array + i * check_format_size(format);
    if (format == CHECK_I8) {
        *to = (uint8_t)(int)fmin(fmax(value, -128), 127);
    } else if (format == CHECK_FP8) {
        *to = dsi_f32_to_e4m3(f32);
    } else if (format == CHECK_F32) {
        memcpy(to, &f32, sizeof f32);
    } else {
        uint16_t half = format == CHECK_BF16 ? dsi_f32_to_bf16(f32) : dsi_f32_to_f16(f32);
        memcpy(to, &half, sizeof half);
    }
}

double check_get(enum check_format format, const void *array, int64_t i) {
    if (format == CHECK_FP8) return dsi_e4m3_to_f32(((const uint8_t *)array)[i]);
    if (format == CHECK_F32) return dsi_load_f32(array, i);
    if (format == CHECK_I8) return ((const int8_t *)array)[i];
    if (format == CHECK_I4) return dsi_load_i4(array, i);
    uint16_t half = dsi_load_u16(array, i);
    return format == CHECK_BF16 ? dsi_bf16_to_f32(half) : dsi_f16_to_f32(half);
}

void check_clear_signs(enum check_format format, void *array, int64_t n) {
    for (int64_t i = 0; check_is_whole(format) && i < n; i++)
        check_put(format, array, i, fabs(check_get(format, array, i)));
    if (check_is_whole(format)) return;
    /* Little-endian: the sign is the top bit of an element's last byte. */
    int size = check_format_size(format);
    for (int64_t i = 0; i < n; i++) ((uint8_t *)array)[i * size + size - 1] &= 0x7F;
}

/* ---- Random numbers ---- */

uint64_t check_random(check_run *run) {
    uint64_t bits = dsi_mix64(run->random);
    run->random += DSI_MIX64_STEP;
    return bits;
}

int64_t check_below(check_run *run, int64_t n) {
    /* n is below 2^31: the high half of a product, which is faster than a remainder. */
    return n <= 0 ? 0 : (int64_t)((check_random(run) >> 32) * (uint64_t)n >> 32);
}

double check_uniform(check_run *run) { return (double)(check_random(run) >> 11) * 0x1p-52 - 1; }

/* ---- Cases and comparisons ---- */

void check_case(check_run *run, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(run->where, sizeof run->where, format, list);
    va_end(list);
    run->cases++;
    run->at_end = check_below(run, 4) != 0;
    arena_used = 0;
    for (int i = 0; i < SLOTS; i++) slots[i].data = NULL;
}

void check_fail(check_run *run, const char *format, ...) {
    if (run->failures++ > 0) return;
    char what[160];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    snprintf(run->why, sizeof run->why, "%s [%.150s]", what, run->where);
}

bool check_done(const check_run *run) { return run->stop_at_failure && run->failures > 0; }

void check_near(check_run *run, double y, double truth, double bound, const char *what, int64_t i,
                int64_t j) {
    bool fits = isnan(truth)   ? isnan(y)
                : isinf(truth) ? y == truth
                               : isfinite(y) && fabs(y - truth) <= bound;
    if (isfinite(y) && isfinite(truth) && bound > 0 && fabs(y - truth) / bound > run->worst)
        run->worst = fabs(y - truth) / bound;
    if (!fits)
        check_fail(run, "%s[%lld][%lld] is %.9g, should be %.9g +- %.3g", what, (long long)i,
                   (long long)j, y, truth, bound);
}

void check_same(check_run *run, float a, float b, const char *what, int64_t i, int64_t j) {
    if ((isnan(a) && isnan(b)) || dsi_f32_bits(a) == dsi_f32_bits(b)) return;
    check_fail(run, "%s: row %lld column %lld: %.9g is not bit for bit %.9g", what, (long long)i,
               (long long)j, (double)a, (double)b);
}

/* ---- Memory ---- */

void *check_buffer(check_run *run, int number, int64_t n_bytes, int64_t offset) {
    slot *s = &slots[number];
    if (s->area == NULL) {
        s->area = map(SLOT_BYTES + 2 * PAGE) + PAGE;
        if (mprotect(s->area - PAGE, PAGE, PROT_NONE) != 0 ||
            mprotect(s->area + SLOT_BYTES, PAGE, PROT_NONE) != 0) {
            perror("check_kernels: mprotect");
            exit(3);
        }
    }
    if (n_bytes > SLOT_BYTES - SLACK - 16) {
        fprintf(stderr, "check_kernels: a case needs %lld bytes in one buffer; raise SLOT_BYTES\n",
                (long long)n_bytes);
        exit(3);
    }
    s->data = run->at_end ? s->area + SLOT_BYTES - n_bytes : s->area + offset;
    s->n_bytes = n_bytes;
    if (run->at_end)
        memset(s->data - SLACK, CANARY, (size_t)(SLACK + n_bytes));
    else
        memset(s->area, CANARY, (size_t)(offset + n_bytes + SLACK));
    return s->data;
}

static bool is_canary(const uint8_t *from, int64_t n_bytes) {
    for (int64_t i = 0; i < n_bytes; i++)
        if (from[i] != CANARY) return false;
    return true;
}

void check_buffers_intact(check_run *run) {
    for (int i = 0; i < SLOTS; i++) {
        const slot *s = &slots[i];
        if (s->data == NULL) continue;
        const uint8_t *slack = run->at_end ? s->data - SLACK : s->data + s->n_bytes;
        if (!is_canary(slack, SLACK)) check_fail(run, "wrote outside of buffer %d", i);
        if (!run->at_end && !is_canary(s->area, s->data - s->area))
            check_fail(run, "wrote before buffer %d", i);
    }
}

void check_gaps_intact(check_run *run, const void *y, int64_t rows, int64_t used, int64_t stride) {
    for (int64_t i = 0; i + 1 < rows && used > 0; i++)
        if (!is_canary((const uint8_t *)y + i * stride + used, stride - used))
            check_fail(run, "wrote between rows %lld and %lld", (long long)i, (long long)i + 1);
}

void *check_room(int64_t n_bytes) {
    if (arena == NULL) arena = map(ARENA_BYTES);
    uint8_t *room = arena + arena_used;
    arena_used += (n_bytes + 63) / 64 * 64;
    if (arena_used > ARENA_BYTES) {
        fprintf(stderr, "check_kernels: a case needs more than %d bytes\n", ARENA_BYTES);
        exit(3);
    }
    return memset(room, 0, (size_t)n_bytes);
}

void *check_copy(const void *from, int64_t n_bytes) {
    void *room = check_room(n_bytes);
    if (n_bytes > 0) memcpy(room, from, (size_t)n_bytes);
    return room;
}

/* ---- Time ---- */

/* The thread's own time: other programs on the machine disturb it least. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double check_seconds_per_call(void (*call)(void *context), void *context) {
    call(context);
    for (long n = 1;; n *= 4) {
        double start = now();
        for (long i = 0; i < n; i++) call(context);
        double seconds = now() - start;
        if (seconds > 0.1) return seconds / (double)n;
    }
}

void check_add_speed(check_run *run, double seconds, double bytes, double flops, const char *format,
                     ...) {
    if (run->n_speeds == CHECK_BENCH_SHAPES) return;
    check_speed *speed = &run->speed[run->n_speeds++];
    va_list list;
    va_start(list, format);
    vsnprintf(speed->shape, sizeof speed->shape, format, list);
    va_end(list);
    speed->gb_per_s = bytes / seconds * 1e-9;
    speed->gflop_per_s = flops / seconds * 1e-9;
    speed->us_per_call = seconds * 1e6;
}
