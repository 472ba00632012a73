/* sys_memory.c: memory of the host, counted by class, from libc or from the caller's allocator.
 * Each fallible call appears exactly once in lib/base/sys_*.c, behind the gate of fault.h.
 *
 * In front of every block stands a header with the block's size, class and origin, so that freeing
 * needs nothing but the pointer, and an allocator of the caller gets its own sizes back. */
#include "fault.h"
#include "sys.h"

#include <deepseek/dsinfer.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define POISON(at, n) ASAN_POISON_MEMORY_REGION(at, n)
#define UNPOISON(at, n) ASAN_UNPOISON_MEMORY_REGION(at, n)
#else
#define POISON(at, n) ((void)0)
#define UNPOISON(at, n) ((void)0)
#endif

/* From this size on zeroed blocks come from mmap; below, a page table entry costs too much. */
enum { MAP_THRESHOLD_BYTES = 1 << 20 };
/* Bytes from the start of what the system gave to the caller's block. The header is the last part
 * of them; the rest keeps the block's alignment (to a cache line, to a page, to a huge page: those
 * blocks have up to HUGE_BYTES in front of them). */
enum { PLAIN_BYTES = 16, LINE_BYTES = 64, PAGE_BYTES = 4096, HUGE_BYTES = 1 << 21 };

typedef struct header {
    uint64_t n_bytes; /* taken from the system */
    uint32_t owner;   /* dsi_memory_class */
    uint32_t n_front; /* PLAIN_BYTES, LINE_BYTES or from PAGE_BYTES on (then it is a mapping) */
} header;
_Static_assert(sizeof(header) == PLAIN_BYTES, "the header keeps malloc's alignment");

static dsi_allocator hook; /* allocate is NULL: libc */
static _Thread_local dsi_memory_class thread_class;
static atomic_ullong in_use[DSI_N_MEMORY_CLASSES], n_bytes_total, n_bytes_peak, n_blocks;
static atomic_ullong n_bytes_mapped;

/* ---- Counts ---- */

dsi_memory_class dsi_memory_enter(dsi_memory_class owner) {
    dsi_memory_class before = thread_class;
    thread_class = owner;
    return before;
}

void dsi_memory_leave(const dsi_memory_class *before) { thread_class = *before; }

/* old_bytes and new_bytes of one block; 0: it is new, or goes. */
static void account(uint32_t owner, uint64_t old_bytes, uint64_t new_bytes) {
    atomic_fetch_add_explicit(&in_use[owner], new_bytes - old_bytes, memory_order_relaxed);
    uint64_t total =
        atomic_fetch_add_explicit(&n_bytes_total, new_bytes - old_bytes, memory_order_relaxed) +
        new_bytes - old_bytes;
    if (old_bytes == 0) atomic_fetch_add_explicit(&n_blocks, 1, memory_order_relaxed);
    if (new_bytes == 0) atomic_fetch_sub_explicit(&n_blocks, 1, memory_order_relaxed);
    unsigned long long peak = atomic_load_explicit(&n_bytes_peak, memory_order_relaxed);
    while (total > peak &&
           !atomic_compare_exchange_weak_explicit(&n_bytes_peak, &peak, total, memory_order_relaxed,
                                                  memory_order_relaxed)) {
    }
}

void dsi_memory_counts_now(dsi_memory_counts *counts) {
    *counts = (dsi_memory_counts){.n_bytes_mapped = atomic_load(&n_bytes_mapped),
                                  .n_bytes_peak = atomic_load(&n_bytes_peak),
                                  .n_blocks = atomic_load(&n_blocks)};
    for (int i = 0; i < DSI_N_MEMORY_CLASSES; i++) {
        counts->n_bytes[i] = atomic_load(&in_use[i]);
        counts->n_bytes_total += counts->n_bytes[i];
    }
    /* The classes are read one after the other while threads go on. */
    if (counts->n_bytes_peak < counts->n_bytes_total) counts->n_bytes_peak = counts->n_bytes_total;
}

bool dsi_memory_set_allocator(const dsi_allocator *allocator) {
    if (atomic_load(&n_blocks) != 0) return false;
    hook = allocator == NULL ? (dsi_allocator){0} : *allocator;
    return true;
}

/* ---- Pages ---- */

/* Advice may be refused; what it is about works all the same. */
static void sys_madvise(void *at, uint64_t n_bytes, int advice) {
    if (dsi_sys_gate(DSI_CALL_MADVISE, NULL)) madvise(at, n_bytes, advice);
}

void *dsi_sys_mmap(int fd, uint64_t n_bytes) {
    int protection = fd < 0 ? PROT_READ | PROT_WRITE : PROT_READ;
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
    if (!dsi_sys_gate(DSI_CALL_MMAP, NULL)) return NULL;
    void *block = mmap(NULL, n_bytes, protection, flags, fd, 0);
    if (block == MAP_FAILED) return NULL;
    if (fd >= 0) atomic_fetch_add(&n_bytes_mapped, n_bytes);
    /* File systems with large folios (XFS, ext4 since Linux 6.16) then read 2 MiB at a time, map
     * them with one entry, and leave them so for later readers (900 MB from a disk: 0.28 s instead
     * of 1.45 s; from the page cache 3 ms instead of 87). Elsewhere nothing happens. */
    if (fd >= 0 && n_bytes >= HUGE_BYTES) sys_madvise(block, n_bytes, MADV_HUGEPAGE);
    return block;
}

static void sys_munmap(void *block, uint64_t n_bytes) {
    munmap(block, n_bytes); /* fails for arguments that are not a mapping only */
}

void dsi_sys_munmap_file(const void *data, uint64_t n_bytes) {
    sys_munmap((void *)(uintptr_t)data, n_bytes);
    atomic_fetch_sub(&n_bytes_mapped, n_bytes);
}

/* ---- Raw blocks: n_bytes with the front, zeroed unless the caller will fill them ---- */

static void *sys_calloc(uint64_t n_bytes) {
    return dsi_sys_gate(DSI_CALL_CALLOC, NULL) ? calloc(1, n_bytes) : NULL;
}
static void *sys_realloc(void *block, uint64_t n_bytes) {
    return dsi_sys_gate(DSI_CALL_REALLOC, NULL) ? realloc(block, n_bytes) : NULL;
}
static void *sys_aligned_alloc(uint64_t n_bytes) {
    return dsi_sys_gate(DSI_CALL_ALIGNED_ALLOC, NULL) ? aligned_alloc(LINE_BYTES, n_bytes) : NULL;
}
static void *hook_allocate(uint64_t n_bytes, size_t alignment) {
    return dsi_sys_gate(DSI_CALL_ALLOCATE, NULL) ? hook.allocate(hook.user, n_bytes, alignment)
                                                 : NULL;
}
static void sys_free(void *block) { free(block); }

static void *take(uint64_t n_bytes, uint32_t n_front, bool zeroed) {
    void *block;
    if (hook.allocate != NULL) {
        block = hook_allocate(n_bytes, n_front);
    } else if (n_front == PAGE_BYTES) {
        return dsi_sys_mmap(-1, n_bytes); /* arrives zeroed */
    } else if (n_front == LINE_BYTES) {
        block = sys_aligned_alloc(n_bytes);
    } else {
        return zeroed ? sys_calloc(n_bytes) : sys_realloc(NULL, n_bytes);
    }
    if (block != NULL && zeroed) memset(block, 0, n_bytes);
    return block;
}

static void give_back(void *block, uint64_t n_bytes, uint32_t n_front) {
    if (hook.allocate != NULL) {
        hook.release(hook.user, block, n_bytes);
    } else if (n_front >= PAGE_BYTES) {
        sys_munmap(block, n_bytes);
    } else {
        sys_free(block);
    }
}

/* ---- Blocks ---- */

static header *header_of(void *block) { return (header *)block - 1; }

/* Writes the header of what the system gave, counts it and returns the caller's part. */
static void *dress(void *start, header head, uint64_t old_bytes) {
    uint8_t *block = (uint8_t *)start + head.n_front;
    *header_of(block) = head;
    POISON(start, head.n_front); /* so that a write in front of a block is seen */
    account(head.owner, old_bytes, head.n_bytes);
    return block;
}

static header undress(void *block) {
    UNPOISON(header_of(block), sizeof(header));
    header head = *header_of(block);
    UNPOISON((uint8_t *)block - head.n_front, head.n_front);
    return head;
}

/* count * size with the front, in whole multiples of `grain`; false if that is no possible size. */
static bool block_bytes(uint64_t count, uint64_t size, uint64_t n_front, uint64_t grain,
                        uint64_t *n_bytes) {
    if (!dsi_mul_ok(count, size, n_bytes)) return false;
    if (*n_bytes == 0) *n_bytes = 1; /* leak checkers do not count a pointer behind its block */
    if (!dsi_add_ok(*n_bytes, n_front + grain - 1, n_bytes)) return false;
    *n_bytes -= *n_bytes % grain;
    return *n_bytes <= PTRDIFF_MAX;
}

static void *new_block(uint64_t n_bytes, uint32_t n_front, bool zeroed) {
    void *start = take(n_bytes, n_front, zeroed);
    if (start == NULL) return NULL;
    return dress(start, (header){n_bytes, thread_class, n_front}, 0);
}

void *dsi_sys_calloc(uint64_t count, uint64_t size) {
    uint64_t n_bytes;
    if (!block_bytes(count, size, PLAIN_BYTES, 1, &n_bytes)) return NULL;
    return new_block(n_bytes, PLAIN_BYTES, true);
}

/* For allocators that cannot resize: a new block, the content moved. */
static void *move_block(void *block, header head, uint64_t n_bytes) {
    uint8_t *start = take(n_bytes, PLAIN_BYTES, false);
    if (start == NULL) return NULL;
    uint64_t n_old = head.n_bytes - head.n_front, n = n_bytes - PLAIN_BYTES;
    memcpy(start + PLAIN_BYTES, block, n_old < n ? n_old : n);
    void *moved = dress(start, (header){n_bytes, head.owner, PLAIN_BYTES}, 0);
    dsi_sys_free(block);
    return moved;
}

void *dsi_sys_realloc(void *block, uint64_t count, uint64_t size) {
    uint64_t n_bytes;
    if (!block_bytes(count, size, PLAIN_BYTES, 1, &n_bytes)) return NULL;
    if (block == NULL) return new_block(n_bytes, PLAIN_BYTES, false);
    header head = undress(block);
    if (hook.allocate != NULL || head.n_front != PLAIN_BYTES)
        return move_block(block, head, n_bytes);
    void *start = sys_realloc(header_of(block), n_bytes);
    if (start == NULL) {
        POISON(header_of(block), PLAIN_BYTES);
        return NULL;
    }
    return dress(start, (header){n_bytes, head.owner, PLAIN_BYTES}, head.n_bytes);
}

void *dsi_sys_alloc_aligned(uint64_t n_bytes) {
    bool pages = n_bytes >= MAP_THRESHOLD_BYTES && hook.allocate == NULL;
    uint32_t n_front = pages ? PAGE_BYTES : LINE_BYTES;
    uint64_t rounded;
    if (!block_bytes(n_bytes, 1, n_front, n_front, &rounded)) return NULL;
    return new_block(rounded, n_front, true);
}

void *dsi_sys_alloc_huge(uint64_t n_bytes) {
    uint64_t whole;
    if (n_bytes < HUGE_BYTES || hook.allocate != NULL) return dsi_sys_alloc_aligned(n_bytes);
    /* room for the header in front, and to move the block to where a huge page begins */
    if (!block_bytes(n_bytes, 1, HUGE_BYTES + PAGE_BYTES, PAGE_BYTES, &whole)) return NULL;
    uint8_t *start = dsi_sys_mmap(-1, whole);
    if (start == NULL) return NULL;
    uintptr_t begin = ((uintptr_t)start + PAGE_BYTES + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    uint32_t n_front = (uint32_t)(begin - (uintptr_t)start);
    sys_madvise(start + n_front, whole - n_front, MADV_HUGEPAGE);
    return dress(start, (header){whole, thread_class, n_front}, 0);
}

void dsi_sys_drop_file_pages(const dsi_map *map, uint64_t offset, uint64_t n_bytes) {
    if (offset > map->n_bytes || n_bytes > map->n_bytes - offset) return;
    /* mappings begin with a page; the kernel rounds the end up */
    uint64_t in_page = offset % PAGE_BYTES;
    void *at = (void *)(uintptr_t)(map->data + offset - in_page);
    sys_madvise(at, n_bytes + in_page, MADV_DONTNEED);
}

void dsi_sys_free(void *block) {
    if (block == NULL) return;
    header head = undress(block);
    uint8_t *start = (uint8_t *)block - head.n_front;
    account(head.owner, head.n_bytes, 0);
    give_back(start, head.n_bytes, head.n_front);
}

char *dsi_sys_strdup(const char *text, size_t n_bytes) {
    uint64_t size;
    if (!dsi_add_ok(n_bytes, 1, &size)) return NULL;
    char *copy = dsi_sys_calloc(size, 1);
    if (copy != NULL && n_bytes > 0) memcpy(copy, text, n_bytes);
    return copy;
}
