/* test_fork.c: the program that holds our handles calls fork(). In the child every call is refused
 * without waiting for anything, a close frees the child's copy and ends; a model opened there
 * works, and the parent never notices. */
#include "session_tools.h"
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_SECONDS = 60 };

/* Runs check(context) in a child; it returns NULL or what was wrong. A child that hangs is killed
 * by its alarm. */
static void in_child(const char *(*check)(void *context), void *context) {
    int ends[2], status = 0;
    char wrong[512] = "";
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS);
        const char *text = check(context);
        if (text && write(ends[1], text, strlen(text)) < 0) _exit(3);
        _exit(text ? 1 : 0);
    }
    close(ends[1]);
    if (read(ends[0], wrong, sizeof wrong - 1) < 0) fail_msg("no word from the child");
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) fail_msg("the child ended by signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status)) fail_msg("in the child: %s", wrong);
}
/* Inside a check. */
#define WANT(condition)                                                                            \
    if (!(condition)) return #condition

typedef struct handles {
    dsi_model *model;
    dsi_engine *engine;
    dsi_session *session;
} handles;

static handles open_handles(const char *folder) {
    handles h = {.model = load_model(folder)};
    dsi_engine_options eo = engine_of(256, 64, 3);
    eo.n_threads = 3; /* workers, which fork() does not copy */
    h.engine = start_engine(h.model, &eo);
    dsi_session_options o = hot_options();
    h.session = start_session(h.engine, &o);
    append_made_up(h.session, 100, 1);
    step_all(h.session);
    return h;
}
static void close_handles(handles *h) {
    dsi_session_close(h->session);
    dsi_engine_close(h->engine);
    dsi_model_close(h->model);
}

static const char *session_calls_are_refused(void *context) {
    const handles *h = context;
    dsi_session *s = h->session, *copy = NULL;
    int32_t token = 1;
    const int32_t *tokens;
    const float *logits;
    float logprob;
    size_t n;
    WANT(dsi_session_append(s, &token, 1) == DSI_E_FORK);
    WANT(strstr(dsi_last_error(s), "dsi_session_append") && strstr(dsi_last_error(s), "fork()"));
    WANT(dsi_session_next(s, &token) == DSI_E_FORK);
    WANT(dsi_session_sample(s, &token) == DSI_E_FORK);
    WANT(dsi_session_rewind(s, 0) == DSI_E_FORK);
    WANT(dsi_session_fork(s, &copy) == DSI_E_FORK && !copy);
    WANT(dsi_session_set_deadline(s, 1) == DSI_E_FORK);
    WANT(dsi_session_tokens(s, &tokens, &n) == DSI_E_FORK);
    WANT(dsi_session_logits(s, &logits, &n, NULL) == DSI_E_FORK);
    WANT(dsi_session_logprobs(s, &logprob, NULL, NULL) == DSI_E_FORK);
    WANT(dsi_generate(s, "a", NULL, NULL) == DSI_E_FORK);
    dsi_session_cancel(s);
    WANT(s->cancel_flag == 0);
    WANT(dsi_session_n_tokens(s) == 100); /* untouched */
    return NULL;
}

static const char *other_calls_are_refused(void *context) {
    const handles *h = context;
    dsi_session *s = h->session, *made = NULL;
    dsi_engine *engine = NULL;
    dsi_model_info info = {.struct_size = sizeof info};
    dsi_tensor_info tensor = {.struct_size = sizeof tensor};
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    char text[8];
    int32_t token = 1;
    size_t n;
    WANT(dsi_engine_step(h->engine, &s, 1, NULL) == DSI_E_FORK);
    WANT(strstr(dsi_last_error(h->engine), "dsi_engine_step"));
    WANT(dsi_engine_set_tap(h->engine, NULL, NULL) == DSI_E_FORK);
    dsi_adapter *adapter = NULL;
    WANT(dsi_adapter_open(h->engine, "anywhere", NULL, &adapter) == DSI_E_FORK && !adapter);
    WANT(dsi_session_open(h->engine, NULL, &made) == DSI_E_FORK && !made);
    WANT(dsi_engine_open(h->model, NULL, &engine) == DSI_E_FORK && !engine);
    WANT(dsi_plan(h->model, NULL, &plan) == DSI_E_FORK);
    WANT(dsi_model_get_info(h->model, &info) == DSI_E_FORK);
    WANT(dsi_model_get_tensor(h->model, 0, &tensor) == DSI_E_FORK);
    WANT(dsi_tokenize(h->model, "a", 1, 0, &token, 1, &n) == DSI_E_FORK);
    WANT(dsi_detokenize(h->model, &token, 1, text, 8, &n) == DSI_E_FORK);
    dsi_message m = {sizeof m, DSI_ROLE_USER, "a", 1};
    WANT(dsi_chat_tokens(h->model, &m, 1, DSI_THINK_AUTO, &token, 1, &n) == DSI_E_FORK);
    WANT(strstr(dsi_last_error(NULL), "dsi_chat_tokens"));
    return NULL;
}

static const char *closing_ends(void *context) {
    const handles *h = context;
    dsi_session_close(h->session);
    dsi_engine_close(h->engine);
    dsi_model_close(h->model);
    return NULL;
}

/* The child opens a model of its own and computes what the parent would. */
typedef struct own_work {
    handles *inherited;
    const char *folder;
    uint64_t want;
} own_work;
static const char *a_model_of_its_own_works(void *context) {
    const own_work *w = context;
    closing_ends(w->inherited);
    handles h = open_handles(w->folder);
    WANT(future_hash(h.session) == w->want);
    close_handles(&h);
    return NULL;
}

static uint64_t hash_of_fresh(const char *folder) {
    handles h = open_handles(folder);
    uint64_t hash = future_hash(h.session);
    close_handles(&h);
    return hash;
}

static void test_fork_of_idle_handles(void **state) {
    (void)state;
    const char *const folders[] = {TINY_GOV, V3_FP8};
    for (int i = 0; i < 2; i++) {
        own_work w = {.folder = folders[i], .want = hash_of_fresh(folders[i])};
        handles h = open_handles(folders[i]);
        w.inherited = &h;
        in_child(session_calls_are_refused, &h);
        in_child(other_calls_are_refused, &h);
        in_child(closing_ends, &h);
        in_child(a_model_of_its_own_works, &w);
        assert_true(future_hash(h.session) == w.want); /* the parent goes on */
        close_handles(&h);
    }
}

static const char *grandchild(void *context) {
    const handles *h = context;
    pid_t child = fork();
    int status = 1;
    WANT(child >= 0);
    if (child == 0) {
        alarm(CHILD_SECONDS); /* not inherited */
        _exit(session_calls_are_refused(context) || closing_ends(context) ? 1 : 0);
    }
    WANT(waitpid(child, &status, 0) == child && status == 0);
    return closing_ends((void *)(uintptr_t)h);
}
static void test_fork_of_a_child(void **state) {
    (void)state;
    handles h = open_handles(QWEN2);
    in_child(grandchild, &h);
    OK(dsi_session_rewind(h.session, 50), h.session);
    step_all(h.session);
    close_handles(&h);
}

/* What dsi_open made is freed by dsi_close, in a child as well. */
static const char *dsi_close_ends(void *context) {
    dsi_close(context);
    return NULL;
}
static void test_fork_then_dsi_close(void **state) {
    (void)state;
    dsi_session *s = NULL;
    OK(dsi_open(QWEN2, &s), NULL);
    append_made_up(s, 10, 1);
    step_all(s);
    in_child(dsi_close_ends, s);
    dsi_close(s);
}

/* ---- While another thread computes, and holds the locks
 * ------------------------------------------------------------------------------------------ */

typedef struct worker {
    dsi_session *session;
    atomic_bool stop;
    atomic_uint n_steps;
} worker;
static void *compute(void *context) {
    worker *w = context;
    for (uint32_t i = 0; !atomic_load(&w->stop); i++) {
        int32_t token;
        if (dsi_session_rewind(w->session, 0) != DSI_OK) return w;
        append_made_up(w->session, 100, i);
        if (dsi_session_next(w->session, &token) != DSI_OK) return w;
        atomic_fetch_add(&w->n_steps, 1);
    }
    return NULL;
}
static const char *refused_and_closed(void *context) {
    const char *wrong = session_calls_are_refused(context);
    if (!wrong) wrong = other_calls_are_refused(context);
    return wrong ? wrong : closing_ends(context);
}
static void test_fork_while_a_step_runs(void **state) {
    (void)state;
    handles h = open_handles(V3_FP8);
    dsi_session_options o = hot_options();
    worker w = {.session = start_session(h.engine, &o)};
    pthread_t thread;
    void *failed = NULL;
    assert_int_equal(pthread_create(&thread, NULL, compute, &w), 0);
    for (int i = 0; i < (SLOW_BUILD ? 5 : 40); i++) {
        unsigned before = atomic_load(&w.n_steps);
        in_child(refused_and_closed, &h);
        while (atomic_load(&w.n_steps) == before) sched_yield(); /* a step began meanwhile */
    }
    atomic_store(&w.stop, true);
    pthread_join(thread, &failed);
    assert_null(failed);
    dsi_session_close(w.session);
    close_handles(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fork_of_idle_handles),
        cmocka_unit_test(test_fork_of_a_child),
        cmocka_unit_test(test_fork_then_dsi_close),
        cmocka_unit_test(test_fork_while_a_step_runs),
    };
    return cmocka_run_group_tests_name("fork", tests, NULL, NULL);
}
