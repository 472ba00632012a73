/* torture_run.c: counts the calls of a scenario, fails them one after the other, and judges. The
 * injections run in a child, so that a crash or a hang is one failed injection and not the end. */
#include "torture.h"

#include "../lib/base/fault.h"
#include "../lib/base/sys.h"
#include "../lib/internal.h"
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEFAULT_SECONDS = 60, MAX_PASSES = DSI_N_CALLS + 8 };

/* One way of failing; n goes from 1 to the number of calls that it can strike. */
typedef struct pass {
    dsi_call kind;
    dsi_fault_mode mode;
    bool onwards;
} pass;

/* Shared with the child: where it is, and what came of it. */
typedef struct progress {
    uint32_t pass;
    uint64_t n;    /* the injection that is running; 0: none yet */
    bool in_retry; /* the run without a fault behind it */
    bool finished; /* all passes are done */
    bool unusable; /* the scenario fails without a fault */
    uint64_t n_injections, n_failed, n_errors, n_calls;
    uint64_t by_kind[DSI_N_CALLS];
} progress;

typedef struct torture {
    const torture_options *options;
    const torture_scenario *scenarios, *scenario; /* all of this run, and the one in work */
    uint32_t n_scenarios;
    double seconds;
    pass passes[MAX_PASSES];
    uint32_t n_passes;
    uint64_t n_all; /* injections of the scenario, from which a sample is drawn */
    progress *shared;
} torture;

static void list_passes(torture *t) {
    t->passes[t->n_passes++] = (pass){DSI_CALL_ANY, DSI_FAULT_FAIL, false};
    t->passes[t->n_passes++] = (pass){DSI_CALL_ANY, DSI_FAULT_FAIL, true};
    for (uint32_t kind = 0; kind < DSI_N_CALLS; kind++)
        t->passes[t->n_passes++] = (pass){(dsi_call)kind, DSI_FAULT_FAIL, true};
    for (int onwards = 0; onwards < 2; onwards++) {
        t->passes[t->n_passes++] = (pass){DSI_CALL_ANY, DSI_FAULT_INTERRUPT, onwards};
        t->passes[t->n_passes++] = (pass){DSI_CALL_ANY, DSI_FAULT_SHORT, onwards};
    }
}

/* SIGALRM ends the process then; 0: no more. */
static void set_alarm(double seconds) {
    struct itimerval limit = {.it_value = {.tv_sec = (time_t)seconds}};
    limit.it_value.tv_usec = (suseconds_t)((seconds - (double)limit.it_value.tv_sec) * 1e6);
    setitimer(ITIMER_REAL, &limit, NULL);
}

/* ---- What a process holds ---- */

typedef struct holdings {
    uint64_t n_blocks, n_bytes_mapped, n_pages, n_descriptors, n_threads;
} holdings;

static uint64_t count_entries(const char *path) {
    uint64_t n = 0;
    DIR *listing = opendir(path);
    if (listing == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;) n += entry->d_name[0] != '.';
    closedir(listing);
    return n;
}

static holdings count_holdings(const torture_state *s) {
    dsi_memory_counts counts;
    dsi_memory_counts_now(&counts);
    return (holdings){counts.n_blocks, counts.n_bytes_mapped,
                      s->engine ? s->engine->n_pages - s->engine->n_free_pages : 0,
                      count_entries("/proc/self/fd"), count_entries("/proc/self/task")};
}

/* A thread that was joined may stand in /proc a moment longer. */
static bool holds_the_same(const torture_state *s, const holdings *want, holdings *got) {
    for (int i = 0; i < 1000; i++) {
        *got = count_holdings(s);
        if (memcmp(got, want, sizeof *got) == 0) return true;
        if (got->n_blocks != want->n_blocks || got->n_bytes_mapped != want->n_bytes_mapped) break;
        usleep(1000);
    }
    return false;
}

/* ---- One injection ---- */

typedef struct bench {
    torture *t;
    torture_state state;
    torture_outcome reference;
    holdings before;
} bench;

static const char *name_pass(const pass *p) {
    if (p->mode == DSI_FAULT_INTERRUPT) return p->onwards ? "interrupted from" : "interrupted at";
    if (p->mode == DSI_FAULT_SHORT) return p->onwards ? "short from" : "short at";
    return p->onwards ? "failing from" : "failing at";
}

static void complain(const bench *b, const char *what, const char *detail) {
    if (b->t->options->quiet) return;
    const progress *p = b->t->shared;
    const pass *way = &b->t->passes[p->pass];
    printf("  FAILED %s, %s %s call %llu (%s)%s: %s%s%s\n", b->t->scenario->name, name_pass(way),
           dsi_call_name(way->kind), (unsigned long long)p->n,
           dsi_call_name(dsi_fault_first_struck()), p->in_retry ? ", retry" : "", what,
           detail[0] ? ": " : "", detail);
    fflush(stdout);
}

/* A message that stayed from an older error must not pass for a new one. */
static const char stale[] = "dsi_model_open: path or model is NULL";
static void make_stale_messages(torture_state *s) {
    dsi_model_open(NULL, NULL, NULL);
    if (s->session) dsi_session_append(s->session, NULL, 1);
}
static bool is_stale(const char *message) {
    return strcmp(message, stale) == 0 || strstr(message, "tokens is NULL") != NULL;
}

/* The outcome of a run under `way`: an error of the right kind with a message, or the reference. */
static bool judge(const bench *b, const pass *way, const torture_outcome *o) {
    char detail[1400];
    snprintf(detail, sizeof detail, "%s: %s \"%s\"", o->failed_call ? o->failed_call : "",
             dsi_status_name(o->status), o->message);
    if (o->status == DSI_OK) {
        if (o->hash == b->reference.hash) return true;
        complain(b, "success with another answer", "");
    } else if (way->mode != DSI_FAULT_FAIL) {
        complain(b, "what the system does every day became an error", detail);
    } else if (strlen(o->message) < 10 || is_stale(o->message)) {
        complain(b, "an error without a message of its own", detail);
    } else if (o->status != DSI_E_NOMEM && o->status != DSI_E_IO) {
        complain(b, "a status that blames something else", detail);
    } else {
        return true;
    }
    return false;
}

static bool check_holdings(bench *b) {
    holdings now;
    if (holds_the_same(&b->state, &b->before, &now)) return true;
    char detail[200];
    snprintf(detail, sizeof detail,
             "%lld blocks, %lld mapped bytes, %lld KV pages, %lld descriptors, %lld threads more",
             (long long)(now.n_blocks - b->before.n_blocks),
             (long long)(now.n_bytes_mapped - b->before.n_bytes_mapped),
             (long long)(now.n_pages - b->before.n_pages),
             (long long)(now.n_descriptors - b->before.n_descriptors),
             (long long)(now.n_threads - b->before.n_threads));
    complain(b, "something stays behind", detail);
    b->before = now; /* said once */
    return false;
}

static void run_unarmed(bench *b, torture_outcome *o) {
    *o = (torture_outcome){0};
    b->t->scenario->run(&b->state, o);
    dsi_fault_disarm();
    b->t->scenario->reset(&b->state);
}

/* False: nothing was struck, there is no such call. */
static bool inject(bench *b, const pass *way, uint64_t n) {
    progress *p = b->t->shared;
    torture_outcome o = {0};
    p->n = n;
    p->in_retry = false;
    set_alarm(b->t->seconds);
    make_stale_messages(&b->state);
    dsi_fault_arm(
        &(dsi_fault){.kind = way->kind, .mode = way->mode, .nth = n, .onwards = way->onwards});
    b->t->scenario->run(&b->state, &o);
    dsi_fault_disarm();
    bool struck = dsi_fault_struck() > 0;
    bool good = judge(b, way, &o);
    b->t->scenario->reset(&b->state);
    good = check_holdings(b) && good;
    if (struck) {
        p->in_retry = true;
        torture_outcome again;
        run_unarmed(b, &again);
        if (again.status != DSI_OK || again.hash != b->reference.hash) {
            complain(b, again.status == DSI_OK ? "another answer" : "no answer", again.message);
            good = false;
        }
        good = check_holdings(b) && good;
    }
    set_alarm(0);
    if (!struck) return false;
    if (b->t->options->verbose)
        printf("  %s %s %s call %llu (%s): %s %s\n", b->t->scenario->name, name_pass(way),
               dsi_call_name(way->kind), (unsigned long long)n,
               dsi_call_name(dsi_fault_first_struck()), dsi_status_name(o.status), o.message);
    p->n_injections++;
    p->n_errors += o.status != DSI_OK;
    p->n_failed += !good;
    p->by_kind[dsi_fault_first_struck()]++;
    return true;
}

/* ---- The child: all injections from where the last child stopped ---- */

static uint64_t n_eligible(const pass *way, const uint64_t *calls) {
    uint64_t n = 0;
    for (uint32_t kind = 0; kind < DSI_N_CALLS; kind++) {
        bool moves = kind == DSI_CALL_PREAD || kind == DSI_CALL_WRITE;
        bool waits = moves || kind == DSI_CALL_OPEN || kind == DSI_CALL_FSYNC;
        if (way->kind != DSI_CALL_ANY && way->kind != kind) continue;
        if (way->mode == DSI_FAULT_FAIL || (way->mode == DSI_FAULT_SHORT ? moves : waits))
            n += calls[kind];
    }
    return n;
}

/* splitmix64 of the injection's coordinates: the sample does not depend on the order. */
static bool is_drawn(const torture *t, uint32_t pass_index, uint64_t n) {
    if (t->options->n_sample == 0) return true;
    uint64_t x = t->options->seed + (uint64_t)(t->scenario - t->scenarios) * 1000003 +
                 pass_index * 10007ull + n;
    x = (x ^ (x >> 30)) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 27)) * 0xBF58476D1CE4E5B9u;
    x ^= x >> 31;
    return x % t->n_all < t->options->n_sample;
}

static bool start(bench *b, uint64_t calls[DSI_N_CALLS]) {
    torture_outcome first;
    set_alarm(b->t->seconds);
    if (!b->t->scenario->prepare(&b->state)) return false;
    run_unarmed(b, &first); /* what is made once and kept, is made now */
    b->before = count_holdings(&b->state);
    dsi_fault_arm(&(dsi_fault){.kind = DSI_CALL_ANY});
    run_unarmed(b, &b->reference);
    for (uint32_t kind = 0; kind < DSI_N_CALLS; kind++)
        calls[kind] = dsi_fault_seen((dsi_call)kind);
    b->t->shared->n_calls = dsi_fault_seen(DSI_CALL_ANY);
    set_alarm(0);
    if (b->reference.status == DSI_OK && first.hash == b->reference.hash) return true;
    printf("  FAILED %s does not even run without a fault: %s: %s\n", b->t->scenario->name,
           b->reference.failed_call ? b->reference.failed_call : "two different answers",
           b->reference.message);
    return false;
}

static int child(torture *t) {
    bench b = {.t = t};
    progress *p = t->shared;
    uint64_t calls[DSI_N_CALLS];
    uint64_t first = p->n + 1;
    if (!start(&b, calls)) {
        p->unusable = true;
        return 1;
    }
    t->n_all = 0;
    for (uint32_t i = 0; i < t->n_passes; i++) t->n_all += n_eligible(&t->passes[i], calls);
    for (; p->pass < t->n_passes; p->pass++, first = 1) {
        const pass *way = &t->passes[p->pass];
        uint64_t n_calls = n_eligible(way, calls);
        for (uint64_t n = first; n <= n_calls; n++)
            if (is_drawn(t, p->pass, n)) inject(&b, way, n);
    }
    b.t->scenario->finish(&b.state);
    holdings end = count_holdings(&b.state);
    if (end.n_blocks != 0 || end.n_bytes_mapped != 0) {
        if (!t->options->quiet)
            printf("  FAILED %s: %llu blocks alive after everything was closed\n",
                   t->scenario->name, (unsigned long long)end.n_blocks);
        p->n_failed++;
    }
    fflush(stdout);
    p->finished = true;
    return 0;
}

/* ---- The parent ---- */

static void report_death(const torture *t, int status) {
    if (t->options->quiet) return;
    const progress *p = t->shared;
    char how[64];
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(how, sizeof how, "hangs for %g s", t->seconds);
    else if (WIFSIGNALED(status))
        snprintf(how, sizeof how, "ends by signal %d", WTERMSIG(status));
    else
        snprintf(how, sizeof how, "ends with code %d", WEXITSTATUS(status));
    const pass *way = &t->passes[p->pass < t->n_passes ? p->pass : 0];
    if (p->finished)
        printf("  FAILED %s: the process %s at its end (a leak?)\n", t->scenario->name, how);
    else
        printf("  FAILED %s, %s %s call %llu%s: the process %s\n", t->scenario->name,
               name_pass(way), dsi_call_name(way->kind), (unsigned long long)p->n,
               p->in_retry ? ", retry" : "", how);
    fflush(stdout);
}

static void run_scenario(torture *t) {
    progress *p = t->shared;
    memset(p, 0, sizeof *p);
    for (uint64_t at = 0; !p->finished; at = p->pass * 1000000ull + p->n) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) exit(child(t)); /* exit: the leak check runs then */
        int status = 0;
        if (pid < 0 || waitpid(pid, &status, 0) != pid) {
            perror("fork");
            p->n_failed++;
            return;
        }
        if (p->unusable) {
            p->n_failed++;
            return;
        }
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
        report_death(t, status);
        p->n_failed++;
        p->n_injections += !p->finished;
        /* Not an injection's fault, or the same again: the next child would not come further. */
        if (at == p->pass * 1000000ull + p->n) return;
    }
}

static void print_scenario(const torture *t, double seconds) {
    if (t->options->quiet) return;
    const progress *p = t->shared;
    printf("%-10s %5llu calls, %6llu injections, %6llu errors, %6.1f s:", t->scenario->name,
           (unsigned long long)p->n_calls, (unsigned long long)p->n_injections,
           (unsigned long long)p->n_errors, seconds);
    for (uint32_t kind = 0; kind < DSI_N_CALLS; kind++)
        if (p->by_kind[kind])
            printf(" %s %llu", dsi_call_name((dsi_call)kind), (unsigned long long)p->by_kind[kind]);
    printf("\n");
    fflush(stdout);
}

static bool is_wanted(const torture *t) {
    return !t->options->only || strcmp(t->options->only, t->scenario->name) == 0;
}

void torture_run(const torture_options *options, uint64_t *n_passed, uint64_t *n_failed) {
    torture t = {.options = options,
                 .scenarios = options->scenarios ? options->scenarios : torture_scenarios,
                 .n_scenarios = options->scenarios ? options->n_scenarios : torture_n_scenarios,
                 .seconds = options->seconds > 0 ? options->seconds : DEFAULT_SECONDS};
    *n_passed = *n_failed = 0;
    list_passes(&t);
    t.shared =
        mmap(NULL, sizeof *t.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t.shared == MAP_FAILED) {
        perror("mmap");
        ++*n_failed;
        return;
    }
    for (uint32_t i = 0; i < t.n_scenarios; i++) {
        t.scenario = &t.scenarios[i];
        if (!is_wanted(&t)) continue;
        double begin = dsi_sys_seconds();
        run_scenario(&t);
        print_scenario(&t, dsi_sys_seconds() - begin);
        *n_failed += t.shared->n_failed;
        *n_passed += t.shared->n_injections > t.shared->n_failed
                         ? t.shared->n_injections - t.shared->n_failed
                         : 0;
    }
    munmap(t.shared, sizeof *t.shared);
}
