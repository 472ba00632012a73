/* test_sys.c: memory, files, files that appear whole, descriptors to poll, waiting, the machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../lib/base/base.h"
#include "../lib/base/sys.h"
#include <deepseek/dsinfer.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Memory and reading ---- */

static void test_memory(void **state) {
    (void)state;
    assert_null(dsi_sys_calloc(UINT64_MAX, 2));
    assert_null(dsi_sys_calloc(UINT64_MAX / 2 + 1, 1));
    assert_null(dsi_sys_realloc(NULL, UINT64_MAX / 4, 8));
    assert_null(dsi_sys_alloc_aligned(UINT64_MAX));
    assert_null(dsi_sys_alloc_aligned((uint64_t)1 << 62));
    void *nothing = dsi_sys_calloc(0, 8); /* NULL means failure only */
    assert_non_null(nothing);
    dsi_sys_free(nothing);
    dsi_sys_free(NULL);
    dsi_sys_free(NULL);
    uint64_t *block = dsi_sys_calloc(4, sizeof *block);
    assert_non_null(block);
    block[3] = 9;
    assert_null(dsi_sys_realloc(block, UINT64_MAX, 8));
    block = dsi_sys_realloc(block, 1000, sizeof *block);
    assert_non_null(block);
    assert_int_equal(block[3], 9);
    block = dsi_sys_realloc(block, 0, sizeof *block);
    assert_non_null(block);
    dsi_sys_free(block);
    static const uint64_t sizes[] = {0, 1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, 5000001};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *aligned = dsi_sys_alloc_aligned(sizes[i]);
        assert_non_null(aligned);
        assert_int_equal((uintptr_t)aligned % 64, 0);
        for (uint64_t k = 0; k < sizes[i]; k++) {
            if (aligned[k] != 0) fail_msg("byte %llu is not zero", (unsigned long long)k);
        }
        if (sizes[i] > 0) memset(aligned, 0xAA, sizes[i]);
        dsi_sys_free(aligned);
    }
    char *copy = dsi_sys_strdup("a\0bc", 3);
    assert_non_null(copy);
    assert_memory_equal(copy, "a\0b", 4);
    dsi_sys_free(copy);
}

/* A folder of its own for each test run, with one file of each sort. */
typedef struct folder {
    char path[64], file[96], empty[96], pipe[96], link[96], loop[96], missing[96];
} folder;

static void make_file(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void make_folder(folder *f) {
    strcpy(f->path, "/tmp/dsi_test_XXXXXX");
    assert_non_null(mkdtemp(f->path));
    snprintf(f->file, sizeof f->file, "%s/file", f->path);
    snprintf(f->empty, sizeof f->empty, "%s/empty", f->path);
    snprintf(f->pipe, sizeof f->pipe, "%s/pipe", f->path);
    snprintf(f->link, sizeof f->link, "%s/link", f->path);
    snprintf(f->loop, sizeof f->loop, "%s/loop", f->path);
    snprintf(f->missing, sizeof f->missing, "%s/missing", f->path);
    make_file(f->file, "0123456789");
    make_file(f->empty, "");
    assert_int_equal(mkfifo(f->pipe, 0600), 0);
    assert_int_equal(symlink("file", f->link), 0);
    assert_int_equal(symlink("loop", f->loop), 0);
}

static void remove_folder(const folder *f) {
    unlink(f->file);
    unlink(f->empty);
    unlink(f->pipe);
    unlink(f->link);
    unlink(f->loop);
    assert_int_equal(rmdir(f->path), 0);
}

static void check_refused(const char *path, dsi_status want, const char *reason) {
    dsi_error error = {0};
    dsi_map map;
    assert_int_equal(dsi_sys_map(path, &map, &error), want);
    assert_int_equal(error.status, want);
    if (strncmp(error.text, path, strlen(path)) != 0 || strstr(error.text, reason) == NULL) {
        fail_msg("%s lacks %s", error.text, reason);
    }
    assert_null(map.data);
    dsi_sys_unmap(&map); /* harmless */
    if (want != DSI_E_IO) return;
    char *text = NULL;
    uint64_t n = 1;
    error = (dsi_error){0};
    assert_int_equal(dsi_sys_read_file(path, 100, &text, &n, &error), want);
    assert_non_null(strstr(error.text, reason));
    assert_null(text);
    assert_int_equal(n, 0);
}

static void test_files(void **state) {
    (void)state;
    folder f;
    make_folder(&f);
    dsi_error error = {0};
    char *text;
    uint64_t n;
    dsi_map map;
    const char *const paths[] = {f.file, f.link};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(dsi_sys_read_file(paths[i], 10, &text, &n, &error), DSI_OK);
        assert_int_equal(n, 10);
        assert_string_equal(text, "0123456789");
        dsi_sys_free(text);
        assert_int_equal(dsi_sys_map(paths[i], &map, &error), DSI_OK);
        assert_int_equal(map.n_bytes, 10);
        assert_memory_equal(map.data, "0123456789", 10);
        dsi_sys_unmap(&map);
        assert_null(map.data);
    }
    assert_int_equal(dsi_sys_read_file(f.file, 9, &text, &n, &error), DSI_E_FORMAT);
    assert_non_null(strstr(error.text, "has 10 bytes, the limit is 9"));
    assert_null(text);
    assert_int_equal(dsi_sys_read_file(f.empty, 9, &text, &n, &error), DSI_OK);
    assert_int_equal(n, 0);
    assert_string_equal(text, "");
    dsi_sys_free(text);
    check_refused(f.empty, DSI_E_FORMAT, "is empty (0 bytes); fetch");
    check_refused(f.missing, DSI_E_IO, "cannot open: No such file or directory; check the path");
    check_refused(f.path, DSI_E_IO, "is a directory; give");
    check_refused(f.pipe, DSI_E_IO, "is a pipe, socket or device; copy"); /* and must not wait */
    check_refused("/dev/zero", DSI_E_IO, "is a pipe, socket or device; copy");
    check_refused(f.loop, DSI_E_IO, "check the symbolic links");
    check_refused("", DSI_E_IO, "check the path");
    assert_true(dsi_sys_is_file(f.file) && dsi_sys_is_file(f.link) && dsi_sys_is_file(f.empty));
    assert_false(dsi_sys_is_file(f.path) || dsi_sys_is_file(f.pipe) || dsi_sys_is_file(f.missing));
    assert_true(dsi_sys_is_dir(f.path));
    assert_false(dsi_sys_is_dir(f.file) || dsi_sys_is_dir(f.missing));
    remove_folder(&f);
}

/* Neither success nor refusal may keep a descriptor: far more opens than descriptors. */
static void test_descriptors(void **state) {
    (void)state;
    folder f;
    make_folder(&f);
    struct rlimit before, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = 32;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    dsi_error error = {0};
    char *text;
    uint64_t n;
    dsi_map map;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(dsi_sys_map(f.file, &map, &error), DSI_OK);
        dsi_sys_unmap(&map);
        assert_int_equal(dsi_sys_map(f.empty, &map, &error), DSI_E_FORMAT);
        assert_int_equal(dsi_sys_map(f.path, &map, &error), DSI_E_IO);
        assert_int_equal(dsi_sys_read_file(f.file, 10, &text, &n, &error), DSI_OK);
        dsi_sys_free(text);
        assert_int_equal(dsi_sys_read_file(f.file, 1, &text, &n, &error), DSI_E_FORMAT);
    }
    few.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    dsi_status status = dsi_sys_map(f.file, &map, &error);
    uint64_t available = dsi_sys_memory_available();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(status, DSI_E_IO);
    assert_non_null(strstr(error.text, "ulimit -n"));
    assert_int_equal(available, 0); /* unknown, not an error */
    remove_folder(&f);
}

static void test_machine(void **state) {
    (void)state;
    double begin = dsi_sys_seconds();
    usleep(2000);
    double seconds = dsi_sys_seconds() - begin;
    assert_true(seconds >= 0.002 && seconds < 10);
    assert_true(dsi_sys_memory_available() > (1 << 20));
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(dsi_sys_cpu_count(), CPU_COUNT(&before));
    size_t cpu = 0;
    while (!CPU_ISSET(cpu, &before)) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(dsi_sys_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

/* ---- Files that appear whole ---- */

/* Files in the folder: nothing may be left of a write that did not happen. */
static int count_files(const char *path) {
    DIR *listing = opendir(path);
    assert_non_null(listing);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;) n += entry->d_name[0] != '.';
    closedir(listing);
    return n;
}

static void check_content(const char *path, const char *want) {
    char *text;
    uint64_t n;
    assert_int_equal(dsi_sys_read_file(path, 1 << 20, &text, &n, NULL), DSI_OK);
    assert_string_equal(text, want);
    dsi_sys_free(text);
}

static void test_writer(void **state) {
    (void)state;
    folder f;
    make_folder(&f);
    int n_files = count_files(f.path);
    dsi_error error = {0};
    dsi_sys_writer w;
    assert_int_equal(dsi_sys_writer_open(f.file, &w, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_add(&w, "new", 3, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_add(&w, "", 0, &error), DSI_OK);
    check_content(f.file, "0123456789"); /* the old one until commit */
    struct stat info;
    assert_int_equal(stat(w.temporary, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(dsi_sys_writer_add(&w, " text", 5, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_commit(&w, &error), DSI_OK);
    check_content(f.file, "new text");
    assert_int_equal(dsi_sys_writer_add(&w, "x", 1, &error), DSI_E_STATE);
    assert_int_equal(dsi_sys_writer_commit(&w, &error), DSI_E_STATE);
    dsi_sys_writer_abort(&w);
    assert_int_equal(dsi_sys_writer_open(f.file, &w, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_add(&w, "lost", 4, &error), DSI_OK);
    dsi_sys_writer_abort(&w);
    dsi_sys_writer_abort(&w);
    check_content(f.file, "new text");
    /* The link goes, not what it points to; a relative name works too. */
    char start[512];
    assert_non_null(getcwd(start, sizeof start));
    assert_int_equal(chdir(f.path), 0);
    assert_int_equal(dsi_sys_writer_open("link", &w, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_add(&w, "through", 7, &error), DSI_OK);
    assert_int_equal(dsi_sys_writer_commit(&w, &error), DSI_OK);
    check_content("link", "through");
    check_content("file", "new text");
    assert_int_equal(chdir(start), 0);
    assert_int_equal(count_files(f.path), n_files);
    dsi_sys_writer zeroed = {0};
    dsi_sys_writer_abort(&zeroed); /* must not close descriptor 0 */
    assert_int_not_equal(fcntl(0, F_GETFD), -1);
    remove_folder(&f);
}

static void check_not_written(const char *path, const char *reason) {
    dsi_error error = {0};
    dsi_sys_writer w;
    assert_int_equal(dsi_sys_writer_open(path, &w, &error), DSI_E_IO);
    if (strncmp(error.text, path, strlen(path)) != 0 || strstr(error.text, reason) == NULL) {
        fail_msg("%s lacks %s", error.text, reason);
    }
    dsi_sys_writer_abort(&w);
}

static void test_writer_refuses(void **state) {
    (void)state;
    folder f;
    make_folder(&f);
    int n_files = count_files(f.path);
    char path[400];
    check_not_written(f.path, "is a directory; give the path of a file");
    check_not_written(f.pipe, "is a pipe, socket or device; give");
    check_not_written("/dev/full", "is a pipe, socket or device; give");
    check_not_written("", "check the path");
    snprintf(path, sizeof path, "%s/none/file", f.path);
    check_not_written(path, "cannot create: No such file or directory; check the path");
    snprintf(path, sizeof path, "%s/%0250d", f.path, 0);
    check_not_written(path, "cannot create: File name too long; give the file a shorter name");
    check_not_written("/proc/1/new", "cannot create");
    dsi_sys_writer w;
    dsi_error error = {0};
    struct rlimit before, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = 0;
    assert_int_equal(dsi_sys_writer_open(f.file, &w, &error), DSI_OK);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    dsi_status status = dsi_sys_writer_commit(&w, &error);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(status, DSI_E_IO);
    assert_non_null(strstr(error.text, "ulimit -n"));
    dsi_sys_writer_abort(&w);
    check_content(f.file, "0123456789");
    assert_int_equal(count_files(f.path), n_files);
    remove_folder(&f);
}

/* In a process of its own, with the default action of SIGXFSZ: a limit of file sizes in the midst
 * of a write is an error with a remedy, not the end of the host. Exit code 0 if so. */
static int write_past_limit(const char *path) {
    struct rlimit limit = {.rlim_cur = 100000, .rlim_max = RLIM_INFINITY};
    signal(SIGXFSZ, SIG_DFL);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 2;
    static char data[64 << 10];
    dsi_error error = {0};
    dsi_sys_writer w;
    if (dsi_sys_writer_open(path, &w, &error) != DSI_OK) return 3;
    if (dsi_sys_writer_add(&w, data, sizeof data, &error) != DSI_OK) return 4;
    if (dsi_sys_writer_add(&w, data, sizeof data, &error) != DSI_E_IO) return 5;
    if (strstr(error.text, "ulimit -f") == NULL) return 6;
    dsi_sys_writer_abort(&w);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    if (sigismember(&mask, SIGXFSZ) != 0) return 7;
    sigpending(&mask);
    return sigismember(&mask, SIGXFSZ) == 0 ? 0 : 8;
}

static void test_writer_limit(void **state) {
    (void)state;
    folder f;
    make_folder(&f);
    int n_files = count_files(f.path);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(write_past_limit(f.file));
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    check_content(f.file, "0123456789");
    assert_int_equal(count_files(f.path), n_files);
    remove_folder(&f);
}

/* Writes generations of one letter each until it is killed; counts those in place. */
static void write_until_killed(const char *path, atomic_uint *n_written) {
    static char data[200000];
    for (char fill = 'a';; fill = fill == 'z' ? 'a' : (char)(fill + 1)) {
        dsi_error error = {0};
        dsi_sys_writer w;
        memset(data, fill, sizeof data);
        if (dsi_sys_writer_open(path, &w, &error) != DSI_OK) _exit(1);
        for (int i = 0; i < 3; i++)
            if (dsi_sys_writer_add(&w, data, sizeof data, &error) != DSI_OK) _exit(2);
        if (dsi_sys_writer_commit(&w, &error) != DSI_OK) _exit(3);
        atomic_fetch_add(n_written, 1);
    }
}

/* kill -9 at any moment of the second generation or a later one: the file is one of them, whole. */
static void test_writer_killed(void **state) {
    (void)state;
    enum { KILLS = 100 };
    char folder_path[64] = "/tmp/dsi_kill_XXXXXX", path[96], command[96];
    atomic_uint *n_written =
        mmap(NULL, sizeof *n_written, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(n_written != MAP_FAILED);
    assert_non_null(mkdtemp(folder_path));
    snprintf(path, sizeof path, "%s/file", folder_path);
    for (int i = 0; i < KILLS; i++) {
        atomic_store(n_written, 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) write_until_killed(path, n_written);
        int status = 0;
        while (atomic_load(n_written) == 0 && waitpid(child, &status, WNOHANG) == 0) usleep(100);
        usleep((useconds_t)(i * 7919 % 5000));
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        char *text;
        uint64_t n;
        assert_int_equal(dsi_sys_read_file(path, 1 << 20, &text, &n, NULL), DSI_OK);
        assert_int_equal(n, 600000);
        for (uint64_t k = 1; k < n; k++)
            if (text[k] != text[0]) fail_msg("kill %d: two generations in one file", i);
        dsi_sys_free(text);
    }
    munmap(n_written, sizeof *n_written);
    snprintf(command, sizeof command, "rm -rf %s", folder_path);
    assert_int_equal(system(command), 0);
}

/* ---- Descriptors to poll, waiting with a deadline ---- */

static int is_readable(int fd) {
    struct pollfd look = {.fd = fd, .events = POLLIN};
    return poll(&look, 1, 0);
}

static void test_eventfd(void **state) {
    (void)state;
    int fd = dsi_sys_eventfd();
    assert_true(fd >= 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_int_equal(is_readable(fd), 0);
    errno = 7;
    dsi_sys_eventfd_drain(fd); /* empty: returns at once */
    for (int i = 0; i < 3; i++) dsi_sys_eventfd_signal(fd);
    assert_int_equal(is_readable(fd), 1);
    const uint64_t full = UINT64_MAX - 4; /* with the 3: as high as the counter goes */
    assert_int_equal(write(fd, &full, sizeof full), sizeof full);
    dsi_sys_eventfd_signal(fd); /* full: returns at once, still readable */
    assert_int_equal(is_readable(fd), 1);
    dsi_sys_eventfd_drain(fd);
    assert_int_equal(is_readable(fd), 0);
    assert_int_equal(errno, 7);
    dsi_sys_close(fd);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    errno = 7;
    dsi_sys_close(-1);
    dsi_sys_close(fd);
    assert_int_equal(errno, 7);
}

typedef struct meeting {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool arrived;
} meeting;

static void *arrive_late(void *argument) {
    meeting *m = argument;
    usleep(20000);
    pthread_mutex_lock(&m->mutex);
    m->arrived = true;
    pthread_cond_signal(&m->cond);
    pthread_mutex_unlock(&m->mutex);
    return NULL;
}

static void test_wait_until(void **state) {
    (void)state;
    meeting m = {.arrived = false};
    assert_int_equal(dsi_sys_mutex_init(&m.mutex), 0);
    assert_int_equal(dsi_sys_cond_init(&m.cond), 0);
    pthread_mutex_lock(&m.mutex);
    const double past[] = {0, -1, NAN, -INFINITY, dsi_sys_seconds()};
    for (size_t i = 0; i < sizeof past / sizeof *past; i++) {
        while (dsi_sys_cond_wait_until(&m.cond, &m.mutex, past[i])) {
        }
    }
    double begin = dsi_sys_seconds();
    while (dsi_sys_cond_wait_until(&m.cond, &m.mutex, begin + 0.03)) {
    }
    double waited = dsi_sys_seconds() - begin;
    assert_true(waited >= 0.0299 && waited < 10);
    const double far[] = {dsi_sys_seconds() + 3600, 1e300, INFINITY};
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        m.arrived = false;
        pthread_t thread;
        assert_int_equal(dsi_sys_thread_create(&thread, arrive_late, &m), 0);
        while (!m.arrived) assert_true(dsi_sys_cond_wait_until(&m.cond, &m.mutex, far[i]));
        pthread_mutex_unlock(&m.mutex);
        dsi_sys_thread_join(thread);
        pthread_mutex_lock(&m.mutex);
    }
    pthread_mutex_unlock(&m.mutex);
    pthread_cond_destroy(&m.cond);
    pthread_mutex_destroy(&m.mutex);
}

static void test_getpid(void **state) {
    (void)state;
    int64_t parent = dsi_sys_getpid();
    assert_true(parent == getpid());
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(dsi_sys_getpid() == parent || dsi_sys_getpid() != getpid());
    int status = 1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),       cmocka_unit_test(test_files),
        cmocka_unit_test(test_descriptors),  cmocka_unit_test(test_machine),
        cmocka_unit_test(test_writer),       cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_writer_limit), cmocka_unit_test(test_writer_killed),
        cmocka_unit_test(test_eventfd),      cmocka_unit_test(test_wait_until),
        cmocka_unit_test(test_getpid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
