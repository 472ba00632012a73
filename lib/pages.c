/* pages.c: the pages of the KV cache: a pool in the engine, a list in each session. Forks share
 * pages; a shared page is copied before a row is written into it, and a page is overwritten with
 * zeros when its last holder lets go, before another session may have it. The engine's lock is held
 * in all of these. */
#include "internal.h"

static dsi_status fail_device(dsi_engine *e, dsi_error *error, dsi_status st) {
    return dsi_fail(error, st, "KV pages: %s", e->backend->last_error(e->dev));
}

/* Where `page` of an area lies in the pool. */
static uint64_t page_offset(const dsi_tensor *area, int32_t page) {
    return area->offset + (uint64_t)page * dsi_kv_page_bytes(area);
}

/* The caller has made sure that a page is free. */
static int32_t take_page(dsi_engine *e) {
    int32_t page = e->free_pages[--e->n_free_pages];
    e->page_holders[page] = 1;
    return page;
}

/* One tenant never sees another's latents. */
static void let_go(dsi_engine *e, int32_t page) {
    if (--e->page_holders[page]) return;
    for (uint32_t i = 0; i < dsi_kv_areas(e); i++) {
        const dsi_tensor area = dsi_kv_area(e, i);
        e->backend->write(e->stream, e->kv, page_offset(&area, page), e->rows.zero_page,
                          dsi_kv_page_bytes(&area));
    }
    e->free_pages[e->n_free_pages++] = page;
}

static dsi_status copy_page(dsi_engine *e, int32_t from, int32_t to, dsi_error *error) {
    dsi_status st = DSI_OK;
    for (uint32_t i = 0; st == DSI_OK && i < dsi_kv_areas(e); i++) {
        const dsi_tensor area = dsi_kv_area(e, i);
        const uint64_t bytes = dsi_kv_page_bytes(&area);
        st = e->backend->read(e->stream, e->rows.page, e->kv, page_offset(&area, from), bytes);
        if (st == DSI_OK)
            st = e->backend->write(e->stream, e->kv, page_offset(&area, to), e->rows.page, bytes);
    }
    return st == DSI_OK ? st : fail_device(e, error, st);
}

void dsi_pages_release(dsi_session *s, uint32_t n_keep) {
    while (s->n_pages > n_keep) let_go(s->engine, s->pages[--s->n_pages]);
}

static bool is_shared(const dsi_session *s, uint32_t page) {
    return s->engine->page_holders[s->pages[page]] > 1;
}

/* Gives the session a page of its own in place of a shared one; rows behind n_tokens are not worth
 * copying. */
static dsi_status own_page(dsi_session *s, uint32_t index) {
    dsi_engine *e = s->engine;
    int32_t old = s->pages[index], own = take_page(e);
    dsi_status st = DSI_OK;
    if (index * DSI_PAGE_ROWS < s->n_tokens) st = copy_page(e, old, own, s->error);
    if (st == DSI_OK) s->pages[index] = own;
    let_go(e, st == DSI_OK ? old : own);
    return st;
}

dsi_status dsi_session_reserve(dsi_session *s, uint32_t n_rows) {
    dsi_engine *e = s->engine;
    uint32_t need = (uint32_t)dsi_ceil_div(n_rows, DSI_PAGE_ROWS),
             first = s->n_tokens / DSI_PAGE_ROWS;
    uint32_t n_new = need > s->n_pages ? need - s->n_pages : 0;
    for (uint32_t p = first; p < need && p < s->n_pages; p++) n_new += is_shared(s, p);
    if (n_new > e->n_free_pages)
        return dsi_fail(s->error, DSI_E_CONTEXT,
                        "the KV pool is full: this session needs %u more pages of %d tokens, %u of "
                        "%u are free; close sessions or open the engine with more kv_tokens (now "
                        "%u)",
                        n_new, DSI_PAGE_ROWS, e->n_free_pages, e->n_pages, e->options.kv_tokens);
    for (uint32_t p = first; p < need && p < s->n_pages; p++) {
        dsi_status st = is_shared(s, p) ? own_page(s, p) : DSI_OK;
        if (st != DSI_OK) return st;
    }
    while (s->n_pages < need) s->pages[s->n_pages++] = take_page(e);
    return DSI_OK;
}

dsi_status dsi_pages_share(dsi_session *from, dsi_session *to) {
    dsi_engine *e = from->engine;
    uint32_t n_full = from->n_tokens / DSI_PAGE_ROWS;
    bool partial = from->n_tokens % DSI_PAGE_ROWS != 0;
    if (partial && !e->n_free_pages)
        return dsi_fail(&from->handle.error, DSI_E_CONTEXT,
                        "the KV pool is full: a fork needs 1 page of its own, none of %u is free; "
                        "close sessions or open the engine with more kv_tokens (now %u)",
                        e->n_pages, e->options.kv_tokens);
    for (; to->n_pages < n_full; to->n_pages++) {
        to->pages[to->n_pages] = from->pages[to->n_pages];
        e->page_holders[to->pages[to->n_pages]]++;
    }
    if (!partial) return DSI_OK;
    to->pages[to->n_pages++] = take_page(e);
    return copy_page(e, from->pages[n_full], to->pages[n_full], &from->handle.error);
}
