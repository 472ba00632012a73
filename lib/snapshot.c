/* snapshot.c: a session in a file: dsi_session_save, dsi_session_restore.
 *
 *   "\x89DSI\r\n\x1a\n", version (u32), 0 (u32)
 *   parts, in the order of part_kind, each: kind (u32), 0 (u32), bytes (u64), data, checksum (u64)
 *   checksum of everything before it (u64)
 *
 * All numbers are little-endian, the data of a part is filled up with zeros to a multiple of 8. The
 * size of every part follows from the first one, HEAD, so a file is right or refused; nothing in it
 * decides how much is read. One function, carry, moves bytes in either direction, so that what is
 * written and what is read cannot differ.
 *
 * A restore fills memory and pages of its own, checks all of it, and only then becomes the state of
 * the session. */
#include "snapshot.h"
#include "adapter.h"
#include <stdio.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "weights and rows are mapped as they lie");

enum { VERSION = 1, BUFFER_BYTES = 1 << 18 };
static const uint8_t MAGIC[8] = {0x89, 'D', 'S', 'I', '\r', '\n', 0x1a, '\n'};

/* DRAFTS, behind the others, is there if HEAD says so. */
typedef enum part_kind {
    HEAD = 1,
    TOKENS,
    SAMPLED,
    FORMS,
    LOGITS,
    ROWS,
    N_PARTS = ROWS,
    DRAFTS
} part_kind;
static const char *const PART_NAMES[] = {"",      "head",   "tokens", "sampled",
                                         "forms", "logits", "rows",   "drafts"};

/* HEAD: what must fit the engine, then the state, then the sampler. */
enum head_word {
    MODEL_LOW,
    MODEL_HIGH,
    DTYPE,
    ATTENTION,
    LAYERS,
    COLUMNS,
    VOCABULARY,
    KERNELS, /* 32 bytes, filled up with zeros */
    TOTAL = KERNELS + 8,
    COMPUTED,
    SEALED,
    DRAWS,
    FINISH,
    END_TOKEN,
    HAS_LOGITS,
    SAMPLER, /* top_k to frequency_penalty, see sampler_words */
    HEAD_WORDS = SAMPLER + 10
};

enum { KV_SHIFT = 16, OPERANDS = 0xFFFF };  /* of the word DTYPE */
enum { INDEXER_SHIFT = 16, FORM = 0xFFFF }; /* of the word ATTENTION */
/* Of the word LAYERS: above the number of layers 0, or 1 + the number of held states, if the rows
 * of the MTP block are in the file. */
enum { HELD_SHIFT = 16, LAYER_BITS = 0xFFFF };
_Static_assert(HEAD_WORDS % 2 == 0, "parts are multiples of 8 bytes");

/* A session's state on its way, in memory of its own. */
typedef struct image {
    uint32_t head[HEAD_WORDS];
    int32_t *tokens;
    uint8_t *sampled, *forms;
    float *logits, *held;
    void *block; /* that holds these five */
} image;

static bool has_drafts(const image *m) { return m->head[LAYERS] >> HELD_SHIFT != 0; }
static uint32_t n_held(const image *m) {
    return has_drafts(m) ? (m->head[LAYERS] >> HELD_SHIFT) - 1 : 0;
}

/* ---- Which engine ----------------------------------------------------------------------------
 */

/* The options that decide what is drawn. */
static void sampler_words(const dsi_session_options *o, uint32_t *words) {
    const uint32_t numbers[] = {o->top_k, (uint32_t)o->seed, (uint32_t)(o->seed >> 32),
                                o->penalty_window};
    const float reals[] = {
        o->temperature,      o->top_p, o->min_p, o->repetition_penalty, o->presence_penalty,
        o->frequency_penalty};
    memcpy(words, numbers, sizeof numbers);
    memcpy(words + 4, reals, sizeof reals);
}

/* The words of HEAD that are those of the engine and of the adapter, NULL for none: rows of one are
 * those of another model. */
static void engine_words(const dsi_engine *e, const dsi_adapter *adapter, uint32_t *head) {
    dsi_caps caps = {.struct_size = sizeof caps};
    char kernels[32] = "";
    uint64_t model =
        dsi_snapshot_fingerprint(e->model) ^ (adapter ? adapter->weights.fingerprint : 0);
    e->backend->device_caps(e->dev, &caps);
    snprintf(kernels, sizeof kernels, "%.15s/%.15s", e->backend->id, caps.arch);
    head[MODEL_LOW] = (uint32_t)model;
    head[MODEL_HIGH] = (uint32_t)(model >> 32);
    /* of operands; with A8 and E4M3 the cached rows are BF16 all the same. In the upper half that
     * of rows of 8 bits, else 0. */
    head[DTYPE] = e->options.activations == DSI_ACTIVATIONS_A8     ? DSI_DTYPE_I8
                  : e->options.activations == DSI_ACTIVATIONS_E4M3 ? DSI_DTYPE_E4M3
                                                                   : e->act;
    if (e->kv_dtype != e->act) head[DTYPE] |= e->kv_dtype << KV_SHIFT;
    head[ATTENTION] = e->options.attention;
    if (e->index_columns) head[ATTENTION] |= e->options.indexer << INDEXER_SHIFT;
    head[LAYERS] = e->model->config.n_layers;
    head[COLUMNS] = (uint32_t)e->kv_columns;
    head[VOCABULARY] = e->model->config.vocab_size;
    memcpy(head + KERNELS, kernels, sizeof kernels);
}

/* ---- Carrying bytes ---------------------------------------------------------------------------
 */

typedef struct carrier {
    dsi_session *session;
    bool saving;
    dsi_sys_writer writer;
    dsi_sys_reader reader;
    const char *path;
    uint64_t part_sum, whole_sum;
    uint8_t *buffer; /* saving: bytes on their way to the file */
    uint64_t n_buffered;
    uint8_t *page; /* one page of rows */
    dsi_status status;
} carrier;

static void flush(carrier *c) {
    if (c->status == DSI_OK && c->n_buffered)
        c->status =
            dsi_sys_writer_add(&c->writer, c->buffer, c->n_buffered, &c->session->handle.error);
    c->n_buffered = 0;
}

/* Moves n_bytes, a multiple of 8, to or from the file, and counts them in both sums. */
static void carry(carrier *c, void *data, uint64_t n_bytes) {
    if (c->status == DSI_OK && !c->saving)
        c->status = dsi_sys_reader_get(&c->reader, data, n_bytes, &c->session->handle.error);
    if (c->status != DSI_OK) return;
    c->part_sum = dsi_mix_bytes(c->part_sum, data, n_bytes);
    c->whole_sum = dsi_mix_bytes(c->whole_sum, data, n_bytes);
    const uint8_t *from = data;
    for (uint64_t n; c->saving && n_bytes; from += n, n_bytes -= n) {
        n = BUFFER_BYTES - c->n_buffered < n_bytes ? BUFFER_BYTES - c->n_buffered : n_bytes;
        memcpy(c->buffer + c->n_buffered, from, n);
        c->n_buffered += n;
        if (c->n_buffered == BUFFER_BYTES) flush(c);
    }
}

static void refuse(carrier *c, const char *part) {
    if (c->status != DSI_OK) return;
    c->status = dsi_fail(&c->session->handle.error, DSI_E_FORMAT,
                         "%s: the saved session is damaged (%s, before byte %llu); the session is "
                         "as it was; use another copy, or compute the prompt again",
                         c->path, part, (unsigned long long)c->reader.at);
}

/* A number that both sides know: it is written, or must be the one that is there. */
static void carry_known(carrier *c, uint64_t value, const char *part) {
    uint64_t there = value;
    carry(c, &there, sizeof there);
    if (there != value) refuse(c, part);
}

static void begin_part(carrier *c, part_kind kind, uint64_t n_bytes) {
    c->part_sum = 0;
    carry_known(c, kind, PART_NAMES[kind]);
    carry_known(c, n_bytes, PART_NAMES[kind]);
}
static void end_part(carrier *c, part_kind kind) { carry_known(c, c->part_sum, PART_NAMES[kind]); }
static uint64_t padded(uint64_t n_bytes) { return (n_bytes + 7) / 8 * 8; }
static uint64_t held_bytes(const dsi_engine *e, uint32_t n_states) {
    return padded((uint64_t)n_states * e->model->config.hidden_size * sizeof(float));
}

static void carry_part(carrier *c, part_kind kind, void *data, uint64_t n_bytes) {
    begin_part(c, kind, padded(n_bytes));
    carry(c, data, padded(n_bytes));
    end_part(c, kind);
}

/* The first n_rows rows of one area, page by page. Steps of other sessions go on in between; this
 * session's pages are written by nobody else. */
static void carry_area(carrier *c, const dsi_tensor *area, uint32_t n_rows) {
    dsi_session *s = c->session;
    dsi_engine *e = s->engine;
    uint64_t page_bytes = dsi_kv_page_bytes(area), row_bytes = page_bytes / DSI_PAGE_ROWS;
    for (uint32_t first = 0; first < n_rows && c->status == DSI_OK; first += DSI_PAGE_ROWS) {
        uint32_t n = n_rows - first < DSI_PAGE_ROWS ? n_rows - first : DSI_PAGE_ROWS;
        uint64_t at = area->offset + (uint64_t)s->pages[first / DSI_PAGE_ROWS] * page_bytes;
        dsi_status st = DSI_OK;
        if (!c->saving) carry(c, c->page, row_bytes * n);
        if (c->status != DSI_OK) return;
        pthread_mutex_lock(&e->lock);
        if (c->saving)
            st = e->backend->read(e->stream, c->page, e->kv, at, row_bytes * n);
        else
            st = e->backend->write(e->stream, e->kv, at, c->page, row_bytes * n);
        pthread_mutex_unlock(&e->lock);
        if (st != DSI_OK)
            c->status =
                dsi_fail(&s->handle.error, st, "KV pages: %s", e->backend->last_error(e->dev));
        if (c->saving) carry(c, c->page, row_bytes * n);
    }
}
/* Those of every layer: the latents, or keys and values; behind them the keys of the indexer. */
static void carry_rows(carrier *c, uint32_t n_rows) {
    const dsi_engine *e = c->session->engine;
    const uint32_t n_layers = e->model->config.n_layers;
    begin_part(c, ROWS, dsi_kv_row_bytes(e, n_layers) * n_rows);
    for (uint32_t i = 0; i < dsi_kv_areas(e) / e->n_kv_layers * n_layers; i++) {
        const uint32_t layer = i % n_layers, index = i / n_layers;
        const dsi_tensor area = dsi_kv_area(e, index * e->n_kv_layers + layer);
        carry_area(c, &area, n_rows);
    }
    end_part(c, ROWS);
}

/* The rows of the MTP block and the states it has not seen yet; an engine without drafts reads past
 * them. */
static void carry_drafts(carrier *c, const image *m) {
    const dsi_engine *e = c->session->engine;
    const uint32_t n_rows = m->head[COMPUTED], layer = e->model->config.n_layers;
    const uint64_t of_rows = dsi_kv_row_bytes(e, 1) * n_rows, most = dsi_kv_largest_page(e);
    const uint64_t of_states = held_bytes(e, n_held(m));
    begin_part(c, DRAFTS, of_rows + of_states);
    if (e->n_kv_layers == layer) {
        for (uint64_t n, left = of_rows; left && c->status == DSI_OK; left -= n) {
            n = left < most ? left : most;
            carry(c, c->page, n);
        }
    } else {
        for (uint32_t i = 0; i < dsi_kv_areas(e); i += e->n_kv_layers) {
            const dsi_tensor area = dsi_kv_area(e, i + layer);
            carry_area(c, &area, n_rows);
        }
    }
    carry(c, m->held, of_states);
    end_part(c, DRAFTS);
}

/* ---- The image --------------------------------------------------------------------------------
 */

static uint64_t n_forms(const image *m) { return m->head[TOTAL] / DSI_PROMPT_BLOCK + 1; }

/* Room for what HEAD says; it was checked, or comes from the session. */
static dsi_status allocate_image(image *m, const dsi_engine *e, dsi_error *error) {
    uint64_t tokens = padded(m->head[TOTAL] * sizeof *m->tokens), sampled = padded(m->head[TOTAL]);
    uint64_t forms = padded(n_forms(m)), logits = padded(m->head[VOCABULARY] * sizeof *m->logits);
    uint64_t held = held_bytes(e, n_held(m));
    uint8_t *block = dsi_sys_calloc(tokens + sampled + forms + logits + held, 1);
    if (!block)
        return dsi_fail(error, DSI_E_NOMEM, "no memory for the state of a session of %u tokens",
                        m->head[TOTAL]);
    m->block = block;
    m->tokens = (int32_t *)(void *)block;
    m->logits = (float *)(void *)(block + tokens);
    m->held = (float *)(void *)(block + tokens + logits);
    m->sampled = block + tokens + logits + held;
    m->forms = m->sampled + sampled;
    return DSI_OK;
}

static void carry_parts(carrier *c, image *m) {
    uint32_t n = m->head[TOTAL], has_logits = m->head[HAS_LOGITS];
    carry_part(c, TOKENS, m->tokens, n * sizeof *m->tokens);
    carry_part(c, SAMPLED, m->sampled, n);
    carry_part(c, FORMS, m->forms, n_forms(m));
    carry_part(c, LOGITS, m->logits, has_logits * m->head[VOCABULARY] * sizeof *m->logits);
    carry_rows(c, m->head[COMPUTED]);
    if (has_drafts(m)) carry_drafts(c, m);
    carry_known(c, c->whole_sum, "the end");
}

static dsi_status open_carrier(carrier *c, dsi_session *s, bool saving, const char *path) {
    dsi_error *error = &s->handle.error;
    *c = (carrier){.session = s, .saving = saving, .path = path};
    c->writer.fd = c->reader.fd = -1;
    c->page = dsi_sys_calloc(1, dsi_kv_largest_page(s->engine));
    if (saving) c->buffer = dsi_sys_calloc(1, BUFFER_BYTES);
    if (!c->page || (saving && !c->buffer))
        return dsi_fail(error, DSI_E_NOMEM, "no memory to save or restore a session");
    return saving ? dsi_sys_writer_open(path, &c->writer, error)
                  : dsi_sys_reader_open(path, &c->reader, error);
}
static void close_carrier(carrier *c, image *m) {
    dsi_sys_writer_abort(&c->writer);
    dsi_sys_reader_close(&c->reader);
    dsi_sys_free(c->buffer);
    dsi_sys_free(c->page);
    dsi_sys_free(m->block);
}

/* ---- Save -------------------------------------------------------------------------------------
 */

static dsi_status fill_image(const dsi_session *s, image *m, dsi_error *error) {
    uint64_t vocab = s->engine->model->config.vocab_size;
    uint32_t *head = m->head;
    engine_words(s->engine, s->options.adapter, head);
    sampler_words(&s->options, head + SAMPLER);
    head[TOTAL] = s->n_total, head[COMPUTED] = s->n_tokens, head[SEALED] = s->n_sealed;
    head[DRAWS] = s->n_sampled, head[FINISH] = s->finish, head[END_TOKEN] = (uint32_t)s->end_token;
    head[HAS_LOGITS] = s->n_logits && s->first_logit + s->n_logits == s->n_tokens;
    const uint32_t states = dsi_draft_held(s);
    if (s->held) head[LAYERS] |= (1 + states) << HELD_SHIFT;
    dsi_status st = allocate_image(m, s->engine, error);
    if (st != DSI_OK) return st;
    if (states)
        memcpy(m->held, s->held,
               (uint64_t)states * s->engine->model->config.hidden_size * sizeof *m->held);
    memcpy(m->tokens, s->tokens, s->n_total * sizeof *m->tokens);
    memcpy(m->sampled, s->sampled, s->n_total);
    memcpy(m->forms, s->expanded, n_forms(m));
    if (head[HAS_LOGITS])
        memcpy(m->logits, s->logits + (s->n_logits - 1) * vocab, vocab * sizeof *m->logits);
    return DSI_OK;
}

static void carry_magic(carrier *c) {
    uint64_t magic;
    memcpy(&magic, MAGIC, sizeof magic);
    carry_known(c, magic, "its first bytes are not those of a saved session");
}

dsi_status dsi_session_save(dsi_session *s, const char *path) {
    DSI_MEMORY_SCOPE(SESSIONS);
    dsi_status st = dsi_session_enter(s, "dsi_session_save");
    if (st != DSI_OK) return st;
    if (!path) return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_save: path is NULL");
    carrier c;
    image m = {.block = NULL};
    c.status = open_carrier(&c, s, true, path);
    dsi_draft_put_back(s);
    if (c.status == DSI_OK) c.status = fill_image(s, &m, &s->handle.error);
    carry_magic(&c);
    carry_known(&c, VERSION, "version");
    carry_part(&c, HEAD, m.head, sizeof m.head);
    if (c.status == DSI_OK) carry_parts(&c, &m);
    flush(&c);
    if (c.status == DSI_OK) c.status = dsi_sys_writer_commit(&c.writer, &s->handle.error);
    st = c.status;
    close_carrier(&c, &m);
    return st;
}

/* ---- Restore ----------------------------------------------------------------------------------
 */

static dsi_status other_engine(const carrier *c, const char *what, const char *there,
                               const char *here) {
    return dsi_fail(&c->session->handle.error, DSI_E_STATE,
                    "%s: was saved with %s %s, this engine has %s; open the engine with the same, "
                    "or compute the prompt again",
                    c->path, what, there, here);
}

static const char *attention_name(uint32_t attention) {
    static const char *const names[] = {"auto", "absorbed", "expanded"};
    return attention <= DSI_ATTENTION_EXPANDED ? names[attention] : "?";
}

static const char *indexer_name(uint32_t attention_word) {
    const uint32_t indexer = attention_word >> INDEXER_SHIFT;
    return indexer == DSI_INDEXER_PLAIN ? "plain" : indexer == DSI_INDEXER_FP8 ? "fp8" : "?";
}

static const char *kv_cache_name(uint32_t dtype_word) {
    switch (dtype_word >> KV_SHIFT) {
    case 0:
        return dtype_word == DSI_DTYPE_F32 ? "f32" : "bf16";
    case DSI_DTYPE_E4M3:
        return "fp8";
    case DSI_DTYPE_I8:
        return "int8";
    default:
        return "?";
    }
}

/* Is the file of this model, and of an engine that computes the same bits? */
static dsi_status check_engine(const carrier *c, const image *m) {
    const dsi_engine *e = c->session->engine;
    const uint32_t *head = m->head;
    uint32_t own[HEAD_WORDS] = {0};
    char there[33] = "", here[33] = "";
    const dsi_adapter *adapter = c->session->options.adapter;
    engine_words(e, adapter, own);
    if (head[MODEL_LOW] != own[MODEL_LOW] || head[MODEL_HIGH] != own[MODEL_HIGH])
        return dsi_fail(
            &c->session->handle.error, DSI_E_MODEL,
            "%s: was saved with another model or adapter (fingerprint %08x%08x, that "
            "of %s and %s is %08x%08x); restore it into a session with the same ones, or "
            "compute the prompt again",
            c->path, head[MODEL_HIGH], head[MODEL_LOW], e->model->checkpoint.dir,
            adapter ? adapter->name : "no adapter", own[MODEL_HIGH], own[MODEL_LOW]);
    const uint32_t operands = head[DTYPE] & OPERANDS, own_operands = own[DTYPE] & OPERANDS;
    if (operands != own_operands)
        return other_engine(c, "activations", dsi_dtype_name(operands),
                            dsi_dtype_name(own_operands));
    if (head[DTYPE] != own[DTYPE])
        return other_engine(c, "kv_cache", kv_cache_name(head[DTYPE]), kv_cache_name(own[DTYPE]));
    memcpy(there, head + KERNELS, 32);
    memcpy(here, own + KERNELS, 32);
    if (memcmp(there, here, sizeof here) != 0) return other_engine(c, "kernels", there, here);
    const uint32_t form = head[ATTENTION] & FORM, own_form = own[ATTENTION] & FORM;
    if (form != own_form)
        return other_engine(c, "attention", attention_name(form), attention_name(own_form));
    if (head[ATTENTION] != own[ATTENTION])
        return other_engine(c, "indexer", indexer_name(head[ATTENTION]),
                            indexer_name(own[ATTENTION]));
    return DSI_OK;
}

/* The numbers of HEAD: within this engine's limits, and in the order that every session keeps. */
static void check_numbers(carrier *c, const image *m) {
    const uint32_t *head = m->head;
    const dsi_engine *e = c->session->engine;
    uint32_t end = head[END_TOKEN], finish = head[FINISH];
    bool ok = (head[LAYERS] & LAYER_BITS) == e->model->config.n_layers &&
              n_held(m) <= 1 + DSI_MAX_DRAFTS && n_held(m) <= head[COMPUTED] &&
              head[COLUMNS] == (uint32_t)e->kv_columns &&
              head[VOCABULARY] == e->model->config.vocab_size && head[COMPUTED] <= head[SEALED] &&
              head[SEALED] <= head[TOTAL] && (end == UINT32_MAX || end < head[VOCABULARY]) &&
              (finish == DSI_FINISH_NONE || finish == DSI_FINISH_STOP ||
               finish == DSI_FINISH_LENGTH || finish == DSI_FINISH_STOP_TEXT) &&
              head[HAS_LOGITS] <= (head[COMPUTED] ? 1 : 0);
    if (!ok) refuse(c, "a number of the head");
    if (c->status == DSI_OK && head[TOTAL] > e->options.max_context)
        c->status = dsi_fail(&c->session->handle.error, DSI_E_CONTEXT,
                             "%s: holds %u tokens, this engine has max_context %u; open it with a "
                             "larger one",
                             c->path, head[TOTAL], e->options.max_context);
}

/* The bytes that follow from HEAD are those of the file. */
static void check_size(carrier *c, const image *m) {
    const dsi_engine *e = c->session->engine;
    uint64_t n = m->head[TOTAL], row_bytes = dsi_kv_row_bytes(e, e->model->config.n_layers);
    uint64_t data = padded(n * sizeof *m->tokens) + padded(n) + padded(n_forms(m)) +
                    padded((uint64_t)m->head[HAS_LOGITS] * m->head[VOCABULARY] * sizeof(float)) +
                    row_bytes * m->head[COMPUTED];
    if (has_drafts(m))
        data += 24 + dsi_kv_row_bytes(e, 1) * m->head[COMPUTED] + held_bytes(e, n_held(m));
    uint64_t size = 16 + sizeof m->head + data + N_PARTS * 24ull + 8;
    if (c->status == DSI_OK && size != c->reader.n_bytes)
        c->status = dsi_fail(&c->session->handle.error, DSI_E_FORMAT,
                             "%s: has %llu bytes, a saved session of %u tokens has %llu; use "
                             "another copy, or compute the prompt again",
                             c->path, (unsigned long long)c->reader.n_bytes, m->head[TOTAL],
                             (unsigned long long)size);
}

/* What a session could not have: ids outside the vocabulary, blocks of rows that are not there. */
static void check_image(carrier *c, const image *m) {
    const uint32_t *head = m->head;
    uint32_t n_sampled = 0;
    bool ok = true;
    for (uint32_t i = 0; i < head[TOTAL]; i++) {
        ok &= m->tokens[i] >= 0 && (uint32_t)m->tokens[i] < head[VOCABULARY] && m->sampled[i] <= 1;
        n_sampled += m->sampled[i];
    }
    for (uint64_t b = 0; b < n_forms(m); b++)
        ok &= m->forms[b] == 0 || (m->forms[b] == 1 && (b + 1) * DSI_PROMPT_BLOCK <= head[SEALED]);
    /* the last token may have been drawn without room for it */
    ok &= head[DRAWS] == n_sampled || head[DRAWS] == n_sampled + 1;
    if (!ok) refuse(c, "a token or mark that cannot be");
}

static void warn_of_options(const carrier *c, const image *m) {
    const dsi_session *s = c->session;
    uint32_t own[HEAD_WORDS - SAMPLER] = {0};
    sampler_words(&s->options, own);
    if (m->head[DRAWS] && memcmp(own, m->head + SAMPLER, sizeof own) != 0)
        dsi_logf(&s->engine->model->log, DSI_LOG_WARN, "session",
                 "%s was saved with other sampler options: the answer goes on with those of this "
                 "session",
                 c->path);
}

static void become(dsi_session *s, const image *m) {
    const uint32_t *head = m->head;
    uint64_t vocab = head[VOCABULARY];
    memcpy(s->tokens, m->tokens, head[TOTAL] * sizeof *m->tokens);
    memcpy(s->sampled, m->sampled, head[TOTAL]);
    memcpy(s->expanded, m->forms, n_forms(m));
    memcpy(s->logits, m->logits, head[HAS_LOGITS] * vocab * sizeof *m->logits);
    s->n_total = head[TOTAL], s->n_tokens = head[COMPUTED], s->n_sealed = head[SEALED];
    s->n_logits = head[HAS_LOGITS], s->first_logit = s->n_tokens - s->n_logits;
    dsi_session_count_samples(s);
    s->n_answer += head[DRAWS] - s->n_sampled;
    s->n_sampled = head[DRAWS];
    dsi_draft_hold(s, m->held, n_held(m));
    s->finish = head[FINISH], s->end_token = (int32_t)head[END_TOKEN];
    s->broken.name = NULL;
    s->has_logprob = false;
    dsi_answer_rebuild(s, s->n_total - (s->n_answer < s->n_total ? s->n_answer : s->n_total));
}

static void restore(carrier *c, image *m) {
    dsi_session *s = c->session;
    carry_magic(c);
    carry_known(c, VERSION, "the version of its format is not 1, the one this library reads");
    carry_part(c, HEAD, m->head, sizeof m->head);
    if (c->status == DSI_OK) c->status = check_engine(c, m);
    if (c->status == DSI_OK) check_numbers(c, m);
    if (c->status == DSI_OK) check_size(c, m);
    if (c->status == DSI_OK) c->status = allocate_image(m, s->engine, &s->handle.error);
    if (c->status != DSI_OK) return;
    pthread_mutex_lock(&s->engine->lock);
    c->status = dsi_session_reserve(s, m->head[COMPUTED]);
    pthread_mutex_unlock(&s->engine->lock);
    if (c->status == DSI_OK) carry_parts(c, m);
    if (c->status == DSI_OK) check_image(c, m);
    if (c->status == DSI_OK) {
        warn_of_options(c, m);
        become(s, m);
        return;
    }
    pthread_mutex_lock(&s->engine->lock);
    dsi_pages_release(s, 0);
    pthread_mutex_unlock(&s->engine->lock);
}

dsi_status dsi_session_restore(dsi_session *s, const char *path) {
    DSI_MEMORY_SCOPE(SESSIONS);
    dsi_status st = dsi_session_enter(s, "dsi_session_restore");
    if (st != DSI_OK) return st;
    if (!path) return dsi_fail(&s->handle.error, DSI_E_ARG, "dsi_session_restore: path is NULL");
    if (s->n_total)
        return dsi_fail(&s->handle.error, DSI_E_STATE,
                        "dsi_session_restore: the session holds %u tokens; restore into a new one, "
                        "or dsi_session_rewind to 0 first",
                        s->n_total);
    carrier c;
    image m = {.block = NULL};
    c.status = open_carrier(&c, s, false, path);
    if (c.status == DSI_OK) restore(&c, &m);
    st = c.status;
    close_carrier(&c, &m);
    return st;
}
