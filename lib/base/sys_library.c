/* sys_library.c: shared libraries that are looked for when the program runs. */
#include "fault.h"
#include "sys.h"

#include <dlfcn.h>
#include <stdio.h>

static void *load(const char *name, int flags) {
    return dsi_sys_gate(DSI_CALL_DLOPEN, NULL) ? dlopen(name, flags) : NULL;
}

void *dsi_sys_library_open(const char *name, bool *was_loaded, char *text, size_t n_bytes) {
    if (was_loaded) {
        /* RTLD_NOLOAD opens nothing that is not there already */
        void *before = load(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
        *was_loaded = before != NULL;
    }
    void *library = load(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const char *why = library ? NULL : dlerror();
    if (!library && text) snprintf(text, n_bytes, "%s", why ? why : "it cannot be loaded");
    return library;
}

void *dsi_sys_library_symbol(void *library, const char *name) { return dlsym(library, name); }
