/* cpu_selftest.h: the chosen kernels compute fixed inputs and are held against the reference before
 * the first answer. A kernel that is wrong on this machine (a CPU, a hypervisor or a compiler that
 * does not keep its word) is not used: the next instruction set that passes takes its place. */
#ifndef DSI_LIB_BACKEND_CPU_SELFTEST_H
#define DSI_LIB_BACKEND_CPU_SELFTEST_H

#include "../../kernels/kernels.h"
#include "../base/base.h"

enum { DSI_CPU_FAULTS = 8 };

/* A kernel that failed. */
typedef struct dsi_cpu_fault {
    const char *kernel, *used; /* symbols: the one that failed, the one in its place */
    char why[224];             /* the case, the element, got and expected */
} dsi_cpu_fault;

typedef struct dsi_cpu_selftest {
    dsi_kernels kernels; /* one kernel per stem that passed, or the reference */
    uint32_t n_checked;  /* kernels that were run */
    uint32_t n_failed;
    double seconds;                       /* the test took when it ran */
    dsi_cpu_fault faults[DSI_CPU_FAULTS]; /* the first min(n_failed, DSI_CPU_FAULTS) */
} dsi_cpu_selftest;

/* The kernels for a mask of DSI_ISA_*, tested: once per process and mask, later calls copy the
 * result. Any thread; nobody waits for anybody (two first calls at once both do the test, which
 * gives the same), so that a fork at any moment does no harm. Error: NOMEM. */
dsi_status dsi_cpu_selftest_run(uint32_t mask, dsi_cpu_selftest *result, dsi_error *error);

/* One WARN line per fault. */
void dsi_cpu_selftest_log(const dsi_cpu_selftest *result, const dsi_log *log);
/* "" or " (self-test: matmul_fp8_bf16 falls back to avx512, 2 more failed)", for a description. */
void dsi_cpu_selftest_describe(const dsi_cpu_selftest *result, char *text, size_t n_bytes);
/* Differs between two sets of kernels: the set's name, with a mark if a kernel was replaced. */
void dsi_cpu_selftest_identity(const dsi_cpu_selftest *result, const char *set, char *text,
                               size_t n_bytes);

/* ---- For tests -------------------------------------------------------------------------------*/

/* Stands in for a kernel, in the test and in the table; NULL or line->fn: itself. Set it while no
 * other thread uses the library, and forget the results before and after. */
extern dsi_any_fn (*dsi_cpu_selftest_swap)(const dsi_kernel_line *line);
void dsi_cpu_selftest_forget(void);
/* Whether fn does what line promises; why (of n_bytes) says what was wrong. False also if there is
 * no memory to find out. */
bool dsi_cpu_selftest_kernel(const dsi_kernel_line *line, dsi_any_fn fn, char *why, size_t n_bytes);

#endif
