/* sys_memory.c: memory of the host. Each fallible call appears exactly once in lib/base/sys_*.c, in
 * a small wrapper of its own, so that a test can make any one of them fail. */
#include "sys.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* From this size on zeroed blocks come from mmap; below, a page table entry costs too much. */
enum { MAP_THRESHOLD_BYTES = 1 << 20, ALIGNMENT_BYTES = 64 };

void *dsi_sys_mmap(int fd, uint64_t n_bytes) {
    int protection = fd < 0 ? PROT_READ | PROT_WRITE : PROT_READ;
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
    void *block = mmap(NULL, n_bytes, protection, flags, fd, 0);
    return block == MAP_FAILED ? NULL : block;
}

void dsi_sys_munmap(void *block, uint64_t n_bytes) {
    munmap(block, n_bytes); /* fails for arguments that are not a mapping only */
}

/* Bytes of count * size, at least 1 so that NULL always means "no memory". */
static bool block_bytes(uint64_t count, uint64_t size, uint64_t *n_bytes) {
    if (!dsi_mul_ok(count, size, n_bytes) || *n_bytes > PTRDIFF_MAX) return false;
    if (*n_bytes == 0) *n_bytes = 1;
    return true;
}

void *dsi_sys_calloc(uint64_t count, uint64_t size) {
    uint64_t n_bytes;
    if (!block_bytes(count, size, &n_bytes)) return NULL;
    return calloc(1, n_bytes);
}

void *dsi_sys_realloc(void *block, uint64_t count, uint64_t size) {
    uint64_t n_bytes;
    if (!block_bytes(count, size, &n_bytes)) return NULL;
    return realloc(block, n_bytes);
}

void dsi_sys_free(void *block) { free(block); }

/* The size really taken from the system; the same for alloc and free. */
static bool aligned_bytes(uint64_t n_bytes, uint64_t *rounded) {
    if (!block_bytes(n_bytes, 1, rounded)) return false;
    if (!dsi_add_ok(*rounded, ALIGNMENT_BYTES - 1, rounded)) return false;
    *rounded -= *rounded % ALIGNMENT_BYTES;
    return true;
}

void *dsi_sys_alloc_aligned(uint64_t n_bytes) {
    uint64_t rounded;
    if (!aligned_bytes(n_bytes, &rounded)) return NULL;
    if (rounded >= MAP_THRESHOLD_BYTES) return dsi_sys_mmap(-1, rounded);
    void *block = aligned_alloc(ALIGNMENT_BYTES, rounded);
    if (block != NULL) memset(block, 0, rounded);
    return block;
}

void dsi_sys_free_aligned(void *block, uint64_t n_bytes) {
    uint64_t rounded;
    if (block == NULL || !aligned_bytes(n_bytes, &rounded)) return;
    if (rounded >= MAP_THRESHOLD_BYTES) {
        dsi_sys_munmap(block, rounded);
    } else {
        dsi_sys_free(block);
    }
}

char *dsi_sys_strdup(const char *text, size_t n_bytes) {
    uint64_t size;
    if (!dsi_add_ok(n_bytes, 1, &size)) return NULL;
    char *copy = dsi_sys_calloc(size, 1);
    if (copy != NULL && n_bytes > 0) memcpy(copy, text, n_bytes);
    return copy;
}
