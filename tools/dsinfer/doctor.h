/* doctor.h: dsinfer doctor: what is found out about the machine, and what is judged of it.
 *
 * Facts that come from /proc and /sys are read below a root, so that a test can show another
 * machine; everything else is in doctor_facts, which doctor_probe fills on the true one. */
#ifndef DSINFER_TOOL_DOCTOR_H
#define DSINFER_TOOL_DOCTOR_H

#include "cli.h"

typedef struct doctor_facts {
    const char *root; /* "": this machine; what is put before /proc and /sys */
    bool zh;
    uint32_t isa;        /* DSI_ISA_* that the CPU has */
    const char *kernels; /* the set in use: "avx512" */
    /* The self-test: kernels run, kernels that were wrong and the first of them, time (below 0: it
     * could not run). */
    uint32_t n_kernels, n_wrong;
    char wrong[400];
    double selftest_seconds;
    char libc[32];                              /* "glibc 2.36", "" if unknown */
    char locale[64];                            /* LC_ALL, LC_CTYPE or LANG */
    char libcrypto[96];                         /* its version, "" if there is none */
    double clock_back, clock_call, clock_sleep; /* seconds: largest step back, one call, 5 ms */
    /* With -m: */
    const char *model;     /* NULL: not given */
    char model_error[600]; /* "": it opens and can be planned */
    dsi_model_info info;
    dsi_memory_plan plan;
    double disk_speed;    /* bytes per second, 0 if unknown */
    bool disk_direct;     /* measured past the page cache */
    double disk_cached;   /* part of the weights in the page cache, below 0 if unknown */
    uint64_t disk_sample; /* bytes read */
    uint64_t disk_free;
    bool disk_free_known;
} doctor_facts;

enum { DOCTOR_OK, DOCTOR_UNKNOWN, DOCTOR_WARN, DOCTOR_FAIL };
typedef struct doctor_line {
    const char *id; /* "memory.free" */
    uint32_t verdict;
    char value[200], want[200], mend[240]; /* what is, what should be, the command that mends it */
} doctor_line;

enum { DOCTOR_LINES = 32 };
typedef struct doctor_report {
    const doctor_facts *facts;
    doctor_line lines[DOCTOR_LINES];
    uint32_t n_lines;
} doctor_report;

/* doctor_probe.c: runs the self-test, opens options->model, reads a sample of its files. */
void doctor_probe(const cli_options *options, doctor_facts *facts);

/* doctor_checks.c, doctor_memory.c: fill in report->lines; never fail. */
void doctor_check(const doctor_facts *facts, doctor_report *report);
void doctor_check_memory(doctor_report *report);
/* A new line (the last one again if the report is full), and what belongs to it. */
doctor_line *doctor_add(doctor_report *report, const char *id, uint32_t verdict, const char *format,
                        ...) __attribute__((format(printf, 4, 5)));
void doctor_want(doctor_line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
void doctor_mend(doctor_line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Verdict UNKNOWN because `path` could not be read. */
doctor_line *doctor_unknown(doctor_report *report, const char *id, const char *path);
/* The text in the report's language. */
const char *doctor_tr(const doctor_report *report, const char *en, const char *zh)
    __attribute__((format_arg(2), format_arg(3)));

/* ---- doctor_read.c: small files of /proc and /sys, below facts->root. */
enum { DOCTOR_TEXT_BYTES = 16384 };
/* The file, cut at the end of `text`, without the newline at its end; false if it cannot be
 * read. */
bool doctor_read(const doctor_facts *facts, const char *path, char *text, size_t n_bytes);
bool doctor_read_u64(const doctor_facts *facts, const char *path, uint64_t *value);
/* The number behind "KEY:" at the start of a line, in bytes if kB follows. */
bool doctor_key(const char *text, const char *key, uint64_t *value);
/* How many numbers "0-3,8" names; 0 if it is no such list. */
uint32_t doctor_list_count(const char *list);
/* What the control group of this process allows, version 1 or 2, the tightest of all its parents;
 * false: no limit, or none to be seen. used: bytes without clean file pages. */
bool doctor_memory_limit(const doctor_facts *facts, uint64_t *limit, uint64_t *used);

#endif
