/* memory.c: the calls of dsinfer.h about host memory; the counting itself is in base/. */
#include "base/sys.h"
#include "internal.h"

dsi_status dsi_set_allocator(const dsi_allocator *allocator) {
    dsi_error *error = dsi_thread_error();
    dsi_allocator ours = {0};
    if (allocator && allocator->struct_size < sizeof ours)
        return dsi_fail(error, DSI_E_ARG,
                        "dsi_set_allocator: allocator->struct_size is %u; set it to sizeof "
                        "*allocator",
                        allocator->struct_size);
    if (allocator) ours = *allocator;
    if (allocator && (!ours.allocate || !ours.release))
        return dsi_fail(error, DSI_E_ARG, "dsi_set_allocator: %s is NULL; set both functions",
                        ours.allocate ? "release" : "allocate");
    if (dsi_memory_set_allocator(allocator ? &ours : NULL)) return DSI_OK;
    dsi_memory_counts counts;
    dsi_memory_counts_now(&counts);
    return dsi_fail(error, DSI_E_STATE,
                    "dsi_set_allocator: %llu blocks (%llu bytes) are alive; call it first of all, "
                    "or close every stream, session, engine and model before",
                    (unsigned long long)counts.n_blocks, (unsigned long long)counts.n_bytes_total);
}

dsi_status dsi_memory_report(dsi_memory_use *use) {
    if (!use || use->struct_size < sizeof use->struct_size)
        return dsi_fail(dsi_thread_error(), DSI_E_ARG,
                        "dsi_memory_report: set use->struct_size to sizeof *use first");
    dsi_memory_counts now;
    dsi_memory_counts_now(&now);
    dsi_memory_use all = {.struct_size = use->struct_size,
                          .n_bytes_mapped = now.n_bytes_mapped,
                          .n_bytes_weights = now.n_bytes[DSI_MEMORY_WEIGHTS],
                          .n_bytes_kv = now.n_bytes[DSI_MEMORY_KV],
                          .n_bytes_scratch = now.n_bytes[DSI_MEMORY_SCRATCH],
                          .n_bytes_sessions = now.n_bytes[DSI_MEMORY_SESSIONS],
                          .n_bytes_text = now.n_bytes[DSI_MEMORY_TEXT],
                          .n_bytes_other = now.n_bytes[DSI_MEMORY_OTHER],
                          .n_bytes_total = now.n_bytes_total,
                          .n_bytes_peak = now.n_bytes_peak,
                          .n_blocks = now.n_blocks};
    dsi_copy_out(use, use->struct_size, &all, sizeof all);
    return DSI_OK;
}
