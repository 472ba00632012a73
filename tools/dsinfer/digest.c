/* digest.c: hashes files on several threads with the EVP functions of OpenSSL's libcrypto. */
#include "digest.h"
#include "../../lib/base/sys.h"
#include "cli.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1 << 20, MAX_THREADS = 64, MAX_DIGEST_BYTES = 64 /* EVP_MAX_MD_SIZE */ };

static const struct {
    const char *name, *openssl;
} kinds[] = {{"SHA256", "SHA256"}, {"SM3", "SM3"}};

const char *digest_name(uint32_t kind) { return kinds[kind].name; }

/* ---- libcrypto ------------------------------------------------------------------------------ */

typedef struct crypto { /* the functions of <openssl/evp.h>, equal in 1.1 and 3 */
    const void *(*get_digest)(const char *name);
    void *(*context_new)(void);
    void (*context_free)(void *context);
    int (*init)(void *context, const void *digest, void *engine);
    int (*update)(void *context, const void *data, size_t n_bytes);
    int (*final)(void *context, unsigned char *out, unsigned *n_bytes);
} crypto;

static const char *const crypto_files[] = {"libcrypto.so.3", "libcrypto.so.1.1", NULL};

/* The first of the files that is there and has all functions; it stays loaded. */
static bool load_crypto(const char *const *files, crypto *c) {
    const struct {
        const char *name;
        void *place; /* of a function pointer */
    } functions[] = {{"EVP_get_digestbyname", &c->get_digest}, {"EVP_MD_CTX_new", &c->context_new},
                     {"EVP_MD_CTX_free", &c->context_free},    {"EVP_DigestInit_ex", &c->init},
                     {"EVP_DigestUpdate", &c->update},         {"EVP_DigestFinal_ex", &c->final}};
    for (; *files != NULL; files++) {
        void *library = dlopen(*files, RTLD_NOW | RTLD_LOCAL);
        size_t n = 0, n_functions = sizeof functions / sizeof functions[0];
        for (; library != NULL && n < n_functions; n++) {
            void *found = dlsym(library, functions[n].name);
            if (found == NULL) break;
            memcpy(functions[n].place, &found, sizeof found); /* POSIX: the same representation */
        }
        if (n == n_functions) return true;
        if (library != NULL) dlclose(library);
    }
    return false;
}

static int find_digest(const char *const *files, uint32_t kind, crypto *c, const void **digest) {
    if (!load_crypto(files, c)) {
        cli_error(cli_tr("no libcrypto.so.3 or libcrypto.so.1.1 here; manifests need it for %s",
                         "本机没有 libcrypto.so.3 或 libcrypto.so.1.1，校验清单需要它计算 %s"),
                  kinds[kind].name);
        cli_hint(cli_tr("install it: apt-get install -y openssl, or dnf install -y openssl-libs",
                        "安装：apt-get install -y openssl，或 dnf install -y openssl-libs"));
        return CLI_ENVIRONMENT;
    }
    *digest = c->get_digest(kinds[kind].openssl);
    if (*digest != NULL) return CLI_OK;
    cli_error(
        cli_tr("the libcrypto of this machine was built without %s", "本机的 libcrypto 不支持 %s"),
        kinds[kind].name);
    cli_hint(cli_tr("use the other digest: --hash %s", "请改用另一种算法：--hash %s"),
             kind == DIGEST_SM3 ? "sha256" : "sm3");
    return CLI_ENVIRONMENT;
}

/* ---- The work ------------------------------------------------------------------------------- */

typedef struct work {
    const crypto *crypto;
    const void *digest;
    digest_job *jobs;
    uint32_t n_jobs;
    uint64_t n_bytes;
    atomic_uint next, n_running; /* jobs taken; helper threads that have not ended */
    atomic_ullong done;          /* bytes read */
    atomic_bool no_memory;
} work;

static void write_hex(const unsigned char *bytes, unsigned n, char *hex) {
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < n; i++) {
        *hex++ = digits[bytes[i] >> 4];
        *hex++ = digits[bytes[i] & 15];
    }
    *hex = 0;
}

/* One file through `context`. `draw`: this thread shows the progress. */
static void hash_file(work *w, digest_job *job, void *context, void *block, bool draw) {
    unsigned char out[MAX_DIGEST_BYTES];
    unsigned n_out = 0;
    int fd = open(job->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        job->code = errno;
        return;
    }
    struct stat facts; /* of what was opened: a device or a pipe has no end */
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        job->code = DIGEST_NOT_REGULAR;
        close(fd);
        return;
    }
    bool good = w->crypto->init(context, w->digest, NULL) == 1;
    while (good) {
        ssize_t n = read(fd, block, BLOCK_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) job->code = errno;
        if (n <= 0) break;
        good = w->crypto->update(context, block, (size_t)n) == 1;
        unsigned long long done = atomic_fetch_add(&w->done, (unsigned long long)n);
        if (draw) cli_progress(NULL, CLI_STAGE_HASH, done, w->n_bytes);
    }
    close(fd);
    if (job->code != 0) return;
    good = good && w->crypto->final(context, out, &n_out) == 1;
    if (good && 2 * n_out == DIGEST_HEX_CHARS) {
        write_hex(out, n_out, job->hex);
    } else {
        job->code = EIO;
    }
}

static void hash_jobs(work *w, bool draw) {
    void *context = w->crypto->context_new(), *block = dsi_sys_calloc(BLOCK_BYTES, 1);
    if (context == NULL || block == NULL) {
        atomic_store(&w->no_memory, true);
    } else {
        for (uint32_t i; (i = atomic_fetch_add(&w->next, 1)) < w->n_jobs;) {
            hash_file(w, &w->jobs[i], context, block, draw);
        }
    }
    dsi_sys_free(block);
    if (context != NULL) w->crypto->context_free(context);
}

static void *helper_main(void *argument) {
    work *w = argument;
    hash_jobs(w, false);
    atomic_fetch_sub(&w->n_running, 1);
    return NULL;
}

int digest_files(digest_job *jobs, uint32_t n_jobs, uint32_t kind, uint32_t n_threads) {
    crypto c;
    work w = {.crypto = &c, .jobs = jobs, .n_jobs = n_jobs};
    int code = find_digest(crypto_files, kind, &c, &w.digest);
    if (code != CLI_OK) return code;
    for (uint32_t i = 0; i < n_jobs; i++) {
        w.n_bytes += jobs[i].n_bytes;
        jobs[i].code = 0;
        jobs[i].hex[0] = 0;
    }
    pthread_t helpers[MAX_THREADS];
    uint32_t n_helpers = 0, wanted = n_threads != 0 ? n_threads : dsi_sys_cpu_count();
    if (wanted > n_jobs) wanted = n_jobs;
    if (wanted > MAX_THREADS) wanted = MAX_THREADS;
    while (n_helpers + 1 < wanted) {
        atomic_fetch_add(&w.n_running, 1);
        if (dsi_sys_thread_create(&helpers[n_helpers], helper_main, &w) != 0) {
            atomic_fetch_sub(&w.n_running, 1);
            break; /* fewer threads do the same work */
        }
        n_helpers++;
    }
    hash_jobs(&w, true);
    while (atomic_load(&w.n_running) > 0) {
        struct timespec pause = {.tv_nsec = 20000000};
        nanosleep(&pause, NULL);
        cli_progress(NULL, CLI_STAGE_HASH, atomic_load(&w.done), w.n_bytes);
    }
    for (uint32_t i = 0; i < n_helpers; i++) dsi_sys_thread_join(helpers[i]);
    cli_progress_clear();
    if (!atomic_load(&w.no_memory)) return CLI_OK;
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}
