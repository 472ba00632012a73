/* generate.c: text in, text out: dsi_open, dsi_generate, dsi_close. */
#include "internal.h"
#include <string.h>

typedef struct listener {
    dsi_answer answer;
    dsi_text_fn on_text;
    void *user;
} listener;

static void hear(void *user, const dsi_event *event) {
    listener *l = user;
    const dsi_model_options *model = &l->answer.session->engine->model->options;
    if (event->kind == DSI_EVENT_TEXT && l->on_text && !l->answer.caller_stopped)
        l->answer.caller_stopped =
            l->on_text(l->user, event->part, event->text, event->n_bytes) != 0;
    if (event->kind == DSI_EVENT_PROGRESS && model->progress)
        model->progress(model->progress_user, DSI_STAGE_PREFILL, event->done, event->total);
}

static dsi_status compute(dsi_answer *a) {
    dsi_status st = DSI_OK;
    for (bool done = false; st == DSI_OK && !done;) {
        st = dsi_step_sessions(a->session->engine, &a->session, 1, NULL);
        if (st == DSI_OK) st = dsi_answer_advance(a, &done);
    }
    return st;
}

static dsi_status answer_messages(listener *l, dsi_session *s, const dsi_message *messages,
                                  size_t n_messages, uint32_t think) {
    dsi_status st = dsi_answer_begin(&l->answer, s, messages, n_messages, think);
    if (st == DSI_OK) {
        dsi_answer_listen(&l->answer, hear, l);
        st = compute(&l->answer);
    }
    dsi_answer_end(&l->answer, st);
    return st;
}

dsi_status dsi_generate_chat(dsi_session *s, const dsi_message *messages, size_t n_messages,
                             uint32_t think, dsi_text_fn on_text, void *user,
                             dsi_generate_result *result) {
    listener l = {.on_text = on_text, .user = user};
    l.answer.result.finish_reason = DSI_FINISH_FAILED; /* unless it begins */
    dsi_status st = dsi_session_enter(s, "dsi_generate_chat");
    if (st == DSI_OK) st = answer_messages(&l, s, messages, n_messages, think);
    if (result) dsi_copy_out(result, result->struct_size, &l.answer.result, sizeof l.answer.result);
    return st;
}

dsi_status dsi_generate(dsi_session *session, const char *prompt, dsi_text_fn on_text, void *user) {
    dsi_message message = {sizeof message, DSI_ROLE_USER, prompt, prompt ? strlen(prompt) : 0};
    return dsi_generate_chat(session, &message, 1, DSI_THINK_AUTO, on_text, user, NULL);
}

/* ---- All in one
 * -------------------------------------------------------------------------------------- */

dsi_status dsi_open(const char *path, dsi_session **session) {
    dsi_model *model = NULL;
    dsi_engine *engine = NULL;
    if (!session) return dsi_fail(dsi_thread_error(), DSI_E_ARG, "dsi_open: session is NULL");
    *session = NULL;
    dsi_status st = dsi_model_open(path, NULL, &model);
    if (st == DSI_OK) st = dsi_engine_open(model, NULL, &engine);
    if (st == DSI_OK) st = dsi_session_open(engine, NULL, session);
    if (st != DSI_OK) {
        dsi_engine_close(engine);
        dsi_model_close(model);
        return st;
    }
    (*session)->owns_engine = true;
    return DSI_OK;
}

void dsi_close(dsi_session *session) {
    if (!session) return;
    dsi_engine *engine = session->owns_engine ? session->engine : NULL;
    dsi_session_close(session);
    if (!engine) return;
    dsi_model *model = engine->model;
    dsi_engine_close(engine);
    dsi_model_close(model);
}
