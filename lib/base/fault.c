/* fault.c: decides which of the library's calls to the operating system a test makes fail. */
#include "fault.h"

/* All fields are atomic: threads of an engine may pass the gate while a test arms the next fault.
 * dsi_fault_armed publishes the others. */
atomic_uint dsi_fault_armed;
static atomic_uint armed_kind, armed_mode, armed_onwards, first_struck;
static atomic_int armed_code;
static atomic_ullong armed_nth, n_seen[DSI_N_CALLS + 1], n_eligible, n_struck;

static const struct {
    const char *name;
    int code;
} calls[DSI_N_CALLS] = {
#define CALL_ROW(kind, text, errno_code) {text, errno_code},
    DSI_CALL_LIST(CALL_ROW)
#undef CALL_ROW
};

const char *dsi_call_name(dsi_call kind) { return kind < DSI_N_CALLS ? calls[kind].name : "any"; }

void dsi_fault_arm(const dsi_fault *fault) {
    dsi_fault_disarm();
    for (unsigned i = 0; i <= DSI_N_CALLS; i++) atomic_store(&n_seen[i], 0);
    atomic_store(&n_eligible, 0);
    atomic_store(&n_struck, 0);
    atomic_store(&first_struck, DSI_CALL_ANY);
    atomic_store(&armed_kind, fault->kind);
    atomic_store(&armed_mode, fault->mode);
    atomic_store(&armed_onwards, fault->onwards);
    atomic_store(&armed_code, fault->code);
    atomic_store(&armed_nth, fault->nth);
    atomic_store(&dsi_fault_armed, 1);
}

void dsi_fault_disarm(void) { atomic_store(&dsi_fault_armed, 0); }

uint64_t dsi_fault_seen(dsi_call kind) {
    return kind <= DSI_CALL_ANY ? atomic_load(&n_seen[kind]) : 0;
}

uint64_t dsi_fault_struck(void) { return atomic_load(&n_struck); }

dsi_call dsi_fault_first_struck(void) { return (dsi_call)atomic_load(&first_struck); }

static bool can_interrupt(dsi_call kind) {
    return kind == DSI_CALL_OPEN || kind == DSI_CALL_PREAD || kind == DSI_CALL_WRITE ||
           kind == DSI_CALL_FSYNC;
}

/* Can the armed fault strike this call at all? Only such calls count towards nth. */
static bool is_eligible(dsi_call kind, dsi_fault_mode mode, const uint64_t *n_bytes) {
    unsigned wanted = atomic_load(&armed_kind);
    if (wanted != DSI_CALL_ANY && wanted != kind) return false;
    if (mode == DSI_FAULT_INTERRUPT) return can_interrupt(kind);
    if (mode == DSI_FAULT_SHORT) return n_bytes != NULL && *n_bytes > 1;
    return true;
}

bool dsi_fault_pass(dsi_call kind, uint64_t *n_bytes) {
    atomic_fetch_add(&n_seen[kind], 1);
    atomic_fetch_add(&n_seen[DSI_CALL_ANY], 1);
    dsi_fault_mode mode = (dsi_fault_mode)atomic_load(&armed_mode);
    uint64_t nth = atomic_load(&armed_nth);
    if (nth == 0 || !is_eligible(kind, mode, n_bytes)) return true;
    uint64_t n = atomic_fetch_add(&n_eligible, 1) + 1;
    if (n < nth || (n > nth && !atomic_load(&armed_onwards))) return true;
    if (mode == DSI_FAULT_INTERRUPT && (n - nth) % 2 != 0) return true;
    if (atomic_fetch_add(&n_struck, 1) == 0) atomic_store(&first_struck, kind);
    if (mode == DSI_FAULT_SHORT) {
        *n_bytes /= 2;
        return true;
    }
    int code = atomic_load(&armed_code);
    errno = mode == DSI_FAULT_INTERRUPT ? EINTR : code != 0 ? code : calls[kind].code;
    return false;
}
