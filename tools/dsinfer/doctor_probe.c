/* doctor_probe.c: what has to be tried out: the kernels, the clock, the model, its disk. */
#include "../../lib/base/sys.h"
#include "doctor.h"
#include "kernels.h"
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

/* ---- Kernels --------------------------------------------------------------------------------- */

static void probe_kernels(const cli_options *options, doctor_facts *facts) {
    cli_kernels kernels;
    cli_kernels_read(options, &kernels);
    const dsi_cpu_selftest *tested = &kernels.tested;
    facts->isa = kernels.isa;
    facts->kernels = kernels.set;
    facts->selftest_seconds = -1;
    if (!kernels.is_tested) return;
    facts->n_kernels = tested->n_checked;
    facts->n_wrong = tested->n_failed;
    facts->selftest_seconds = tested->seconds;
    if (tested->n_failed > 0)
        snprintf(facts->wrong, sizeof facts->wrong, "%s (%s) -> %s", tested->faults[0].kernel,
                 tested->faults[0].why, tested->faults[0].used);
}

/* ---- System ---------------------------------------------------------------------------------- */

static void probe_system(doctor_facts *facts) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    static const char *const files[] = {"libcrypto.so.3", "libcrypto.so.1.1"};
#ifdef __GLIBC__
    snprintf(facts->libc, sizeof facts->libc, "glibc %s", gnu_get_libc_version());
#endif
    for (size_t i = 0; i < 3 && *facts->locale == 0; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL) snprintf(facts->locale, sizeof facts->locale, "%s", value);
    }
    for (size_t i = 0; i < 2 && *facts->libcrypto == 0; i++) {
        void *library = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) continue;
        const char *(*version)(int kind) = NULL;
        void *found = dlsym(library, "OpenSSL_version");
        memcpy(&version, &found, sizeof found); /* POSIX: the same representation */
        snprintf(facts->libcrypto, sizeof facts->libcrypto, "%s",
                 version == NULL ? files[i] : version(0));
        dlclose(library);
    }
}

static void probe_clock(doctor_facts *facts) {
    enum { LOOKS = 100000 };
    double first = dsi_sys_seconds(), last = first;
    for (int i = 0; i < LOOKS; i++) {
        double now = dsi_sys_seconds();
        if (last - now > facts->clock_back) facts->clock_back = last - now;
        last = now;
    }
    facts->clock_call = (last - first) / LOOKS;
    struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    nanosleep(&pause, NULL);
    facts->clock_sleep = dsi_sys_seconds() - last;
}

/* ---- Model ----------------------------------------------------------------------------------- */

static void probe_model(const cli_options *options, doctor_facts *facts) {
    dsi_model *model = NULL;
    dsi_engine_options engine;
    dsi_status status = dsi_model_open(options->model, NULL, &model);
    if (status == DSI_OK) {
        facts->info.struct_size = sizeof facts->info;
        status = dsi_model_get_info(model, &facts->info);
    }
    if (status == DSI_OK) {
        cli_engine_options(options, &facts->info, 0, &engine);
        engine.max_memory = 0; /* judged here, with what is free */
        facts->plan.struct_size = sizeof facts->plan;
        status = dsi_plan(model, &engine, &facts->plan);
    }
    if (status != DSI_OK) {
        const char *why = model == NULL ? "" : dsi_last_error(model);
        if (*why == 0) why = dsi_last_error(NULL);
        snprintf(facts->model_error, sizeof facts->model_error, "%s",
                 *why == 0 ? dsi_status_text(status) : why);
    }
    /* Texts of info belong to the model: the names of architectures are constants. */
    dsi_model_close(model);
    facts->info.chat_template = "";
}

/* ---- Disk ------------------------------------------------------------------------------------ */

enum { WINDOWS = 16, WINDOW_BYTES = 4 << 20, DISK_PAGE = 4096, MAX_SHARDS = 512, NAME_BYTES = 256 };

/* The safetensors files of the folder; how many. */
static uint32_t list_shards(const char *folder, char (*names)[NAME_BYTES]) {
    uint32_t n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e = dir == NULL ? NULL : readdir(dir); e != NULL && n < MAX_SHARDS;
         e = readdir(dir)) {
        const char *dot = strrchr(e->d_name, '.');
        if (dot == NULL || strcmp(dot, ".safetensors") != 0) continue;
        snprintf(names[n++], NAME_BYTES, "%s", e->d_name);
    }
    if (dir != NULL) closedir(dir);
    return n;
}

/* How many pages of a window are in the page cache; false where the kernel does not tell. */
static bool count_cached(int fd, const struct stat *info, uint64_t offset, uint64_t n_bytes,
                         uint64_t *cached) {
    /* Of files that this user may not write, mincore says "all" since Linux 5.2. */
    if (geteuid() != 0 && info->st_uid != geteuid()) return false;
    static unsigned char pages[WINDOW_BYTES / DISK_PAGE];
    void *map = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, fd, (off_t)offset);
    if (map == MAP_FAILED) return false;
    bool told = sysconf(_SC_PAGESIZE) == DISK_PAGE && mincore(map, n_bytes, pages) == 0;
    for (uint64_t p = 0; told && p < (n_bytes + DISK_PAGE - 1) / DISK_PAGE; p++)
        *cached += pages[p] & 1;
    munmap(map, n_bytes);
    return told;
}

/* A window of one file: read past the page cache where that works. Seconds, below 0 on failure. */
static double read_window(const char *path, double place, void *buffer, doctor_facts *facts,
                          uint64_t *n_cached, bool *told) {
    struct stat info;
    int direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    int plain = open(path, O_RDONLY | O_CLOEXEC);
    double seconds = -1;
    if (plain >= 0 && fstat(plain, &info) == 0 && info.st_size >= DISK_PAGE) {
        uint64_t size = (uint64_t)info.st_size;
        uint64_t n = size < WINDOW_BYTES ? size / DISK_PAGE * DISK_PAGE : WINDOW_BYTES;
        uint64_t offset = (uint64_t)(place * (double)(size - n)) / DISK_PAGE * DISK_PAGE;
        *told = count_cached(plain, &info, offset, n, n_cached) && *told;
        double start = dsi_sys_seconds();
        ssize_t got = direct < 0 ? -1 : pread(direct, buffer, n, (off_t)offset);
        if (got != (ssize_t)n) {
            facts->disk_direct = false;
            posix_fadvise(plain, (off_t)offset, (off_t)n, POSIX_FADV_DONTNEED);
            start = dsi_sys_seconds();
            got = pread(plain, buffer, n, (off_t)offset);
        }
        if (got > 0) {
            seconds = dsi_sys_seconds() - start;
            facts->disk_sample += (uint64_t)got;
        }
    }
    if (direct >= 0) close(direct);
    if (plain >= 0) close(plain);
    return seconds;
}

static void probe_disk(const char *folder, doctor_facts *facts) {
    static char names[MAX_SHARDS][NAME_BYTES];
    uint32_t n = list_shards(folder, names);
    void *buffer = dsi_sys_alloc_aligned(WINDOW_BYTES); /* of this size from mmap: whole pages */
    double seconds = 0;
    uint64_t n_cached = 0;
    bool told = true;
    facts->disk_direct = true;
    facts->disk_cached = -1;
    for (uint32_t i = 0; i < WINDOWS && n > 0 && buffer != NULL && seconds < 2; i++) {
        char path[4096 + NAME_BYTES];
        snprintf(path, sizeof path, "%.4000s/%s", folder, names[(uint64_t)i * n / WINDOWS]);
        double window =
            read_window(path, (double)i / (WINDOWS - 1), buffer, facts, &n_cached, &told);
        if (window < 0) break;
        seconds += window;
    }
    dsi_sys_free(buffer);
    if (facts->disk_sample == 0) return;
    facts->disk_speed = (double)facts->disk_sample / (seconds > 1e-9 ? seconds : 1e-9);
    if (told) facts->disk_cached = (double)(n_cached * DISK_PAGE) / (double)facts->disk_sample;
}

void doctor_probe(const cli_options *options, doctor_facts *facts) {
    memset(facts, 0, sizeof *facts);
    facts->root = "";
    facts->model = options->model;
    probe_kernels(options, facts);
    probe_system(facts);
    probe_clock(facts);
    if (options->model != NULL) probe_model(options, facts);
    if (options->model != NULL && *facts->model_error == 0) probe_disk(options->model, facts);
    struct statvfs space;
    if (statvfs(options->model == NULL ? "." : options->model, &space) == 0) {
        facts->disk_free_known = true;
        facts->disk_free = (uint64_t)space.f_bavail * space.f_frsize;
    }
}
