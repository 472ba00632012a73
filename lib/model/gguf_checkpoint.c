/* gguf_checkpoint.c: one or several GGUF files as one list of tensors with official names. A tensor
 * that holds the matrices of all experts becomes one entry for each: they lie one behind the other,
 * so nothing is moved. */
#include "gguf_names.h"
#include "safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- The files of a model ------------------------------------------------------------------- */

static const char gguf_tail[] = ".gguf";
/* "-00002-of-00005.gguf" */
enum { PART_DIGITS = 5, PART_TAIL_BYTES = 1 + PART_DIGITS + 4 + PART_DIGITS + 5 };

bool dsi_is_gguf_name(const char *path) {
    size_t n = strlen(path), tail = sizeof gguf_tail - 1;
    return n > tail && strcmp(path + n - tail, gguf_tail) == 0;
}

static bool read_digits(const char *text, uint32_t *number) {
    *number = 0;
    for (int i = 0; i < PART_DIGITS; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        *number = 10 * *number + (uint32_t)(text[i] - '0');
    }
    return true;
}

/* How many files belong together by the name of one of them; 1 if the name says nothing. */
static uint32_t count_parts(const char *path) {
    size_t n = strlen(path);
    uint32_t part, n_parts;
    if (n <= PART_TAIL_BYTES) return 1;
    const char *tail = path + n - PART_TAIL_BYTES;
    bool named = tail[0] == '-' && read_digits(tail + 1, &part) &&
                 memcmp(tail + 1 + PART_DIGITS, "-of-", 4) == 0 &&
                 read_digits(tail + 1 + PART_DIGITS + 4, &n_parts) && part >= 1 && part <= n_parts;
    return named ? n_parts : 1;
}

static dsi_status name_parts(dsi_checkpoint *c, const char *path, dsi_error *error) {
    uint32_t n = count_parts(path);
    if (n > DSI_MAX_SHARDS)
        return dsi_fail(error, DSI_E_FORMAT, "%s: a model of %u files, the limit is %d", path, n,
                        DSI_MAX_SHARDS);
    dsi_status status = dsi_checkpoint_alloc_shards(c, n, error);
    if (status) return status;
    c->gguf = dsi_sys_calloc(n, sizeof *c->gguf);
    if (!c->gguf) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for %u headers", path, n);
    for (uint32_t i = 0; i < n; i++) {
        size_t n_bytes = strlen(path);
        char *name = dsi_sys_strdup(path, n_bytes);
        if (!name) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for names of files", path);
        c->shards[i].path = name;
        if (n == 1) break;
        char number[16];
        snprintf(number, sizeof number, "%0*u", PART_DIGITS, i + 1);
        memcpy(name + n_bytes - PART_TAIL_BYTES + 1, number, PART_DIGITS);
    }
    return DSI_OK;
}

/* What a part says of itself must be what its name says. */
static dsi_status check_part(const dsi_checkpoint *c, uint32_t i, dsi_error *error) {
    const dsi_gguf *g = &c->gguf[i];
    const dsi_gguf_value *count = dsi_gguf_find(g, "split.count");
    const dsi_gguf_value *number = dsi_gguf_find(g, "split.no");
    uint64_t n = 1, no = 0;
    bool good = (!count || dsi_gguf_u64(count, &n)) && (!number || dsi_gguf_u64(number, &no));
    if (n == 0) n = 1; /* a file that was put together again may say so */
    if (good && n == c->n_shards && (n == 1 || no == i)) return DSI_OK;
    return dsi_fail(error, DSI_E_MODEL,
                    "%s: says that it is part %" PRIu64 " of %" PRIu64
                    ", its name that it is part %u of %u; the parts of a model are named "
                    "NAME-00001-of-00005.gguf and lie in one folder",
                    g->path, no + 1, n, i + 1, c->n_shards);
}

static dsi_status read_part(dsi_checkpoint *c, uint32_t i, dsi_error *error) {
    dsi_shard *shard = &c->shards[i];
    dsi_sys_sort sort;
    dsi_status status = dsi_sys_look(shard->path, &sort, error);
    if (status) return status;
    if (sort != DSI_SORT_FILE)
        return dsi_fail(error, DSI_E_IO, "%s: no such file (part %u of %u); download all of them",
                        shard->path, i + 1, c->n_shards);
    status = dsi_sys_map(shard->path, &shard->map, error);
    if (!status) status = dsi_gguf_read(shard->path, &shard->map, &c->gguf[i], error);
    return status ? status : check_part(c, i, error);
}

/* ---- Their tensors -------------------------------------------------------------------------- */

static dsi_status bad_tensor(const dsi_gguf *g, const dsi_gguf_tensor *t, dsi_error *error,
                             const char *what) {
    return dsi_fail(error, DSI_E_MODEL, "%s: tensor \"%.*s\" %s", g->path, (int)t->name_bytes,
                    t->name, what);
}

/* The places of one tensor: how many entries it becomes, and their shape, official order. */
typedef struct entries {
    dsi_gguf_place place;
    bool known;
    uint32_t n;
    dsi_file_tensor one;
} entries;

static dsi_status look_at(const dsi_gguf *g, const dsi_gguf_tensor *t, entries *e,
                          dsi_error *error) {
    *e = (entries){.n = 1};
    e->known = dsi_gguf_place_of(t->name, t->name_bytes, &e->place);
    uint32_t n_dims = t->n_dims;
    int64_t ne[4];
    memcpy(ne, t->ne, sizeof ne);
    e->one =
        (dsi_file_tensor){.dtype = t->dtype, .file_offset = t->file_offset, .n_bytes = t->n_bytes};
    if (e->known && e->place.experts) {
        if (n_dims != 3 || ne[2] > 1024)
            return bad_tensor(g, t, error, "must have three dimensions, the last one at most 1024");
        e->n = (uint32_t)ne[2];
        e->one.n_bytes = t->n_bytes / e->n; /* whole rows of whole blocks */
        n_dims = 2;
    } else if (e->known && e->place.heads && n_dims == 3) {
        ne[1] *= ne[2]; /* their product was checked when the header was read */
        n_dims = 2;
    }
    e->one.n_dims = n_dims;
    for (uint32_t i = 0; i < n_dims; i++) e->one.shape[i] = ne[n_dims - 1 - i];
    return DSI_OK;
}

static size_t name_bytes(const dsi_gguf_tensor *t, const entries *e, uint32_t expert) {
    if (!e->known) return t->name_bytes;
    return (size_t)dsi_gguf_official_name(&e->place, expert, NULL, 0);
}

static dsi_status list_tensors(dsi_checkpoint *c, uint32_t shard, dsi_error *error) {
    const dsi_gguf *g = &c->gguf[shard];
    uint64_t n_bytes = 1, n = c->n_tensors;
    entries e;
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; i < g->n_tensors && !status; i++) {
        status = look_at(g, &g->tensors[i], &e, error);
        n += e.n;
        if (!status) n_bytes += e.n * (name_bytes(&g->tensors[i], &e, 1023) + 1);
    }
    if (status) return status;
    if (n > DSI_MAX_TENSORS)
        return dsi_fail(error, DSI_E_FORMAT, "%s: the model has more than %d tensors", g->path,
                        DSI_MAX_TENSORS);
    char *name = c->names_blocks[shard] = dsi_sys_calloc(n_bytes, 1);
    if (!name || !dsi_checkpoint_grow(c, n + 1))
        return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for the list of %" PRIu64 " tensors",
                        g->path, n);
    for (uint32_t i = 0; i < g->n_tensors; i++) {
        const dsi_gguf_tensor *t = &g->tensors[i];
        look_at(g, t, &e, error);
        for (uint32_t expert = 0; expert < e.n; expert++) {
            dsi_file_tensor *to = &c->tensors[c->n_tensors++];
            size_t length = name_bytes(t, &e, expert);
            if (e.known)
                dsi_gguf_official_name(&e.place, expert, name, length + 1);
            else
                memcpy(name, t->name, length);
            *to = e.one;
            to->name = name;
            to->shard = shard;
            to->file_offset += expert * e.one.n_bytes;
            name += length + 1;
        }
    }
    return DSI_OK;
}

/* The sum over the parts, where the first one says what it should be. */
static dsi_status check_count(const dsi_checkpoint *c, dsi_error *error) {
    uint64_t stated, n = 0;
    for (uint32_t i = 0; i < c->n_shards; i++) n += c->gguf[i].n_tensors;
    const dsi_gguf_value *value = dsi_gguf_find(&c->gguf[0], "split.tensors.count");
    if (c->n_shards == 1 || !dsi_gguf_u64(value, &stated) || stated == n) return DSI_OK;
    return dsi_fail(error, DSI_E_MODEL,
                    "%s: says that the parts hold %" PRIu64 " tensors, they hold %" PRIu64
                    "; they are of different models",
                    c->shards[0].path, stated, n);
}

static dsi_status open_parts(dsi_checkpoint *c, const char *path, dsi_checkpoint_progress progress,
                             void *user, dsi_error *error) {
    dsi_status status = name_parts(c, path, error);
    for (uint32_t i = 0; i < c->n_shards && !status; i++) {
        status = read_part(c, i, error);
        if (!status) status = list_tensors(c, i, error);
        if (!status && progress) progress(user, i + 1, c->n_shards);
    }
    if (!status) status = check_count(c, error);
    return status ? status : dsi_checkpoint_build_index(c, error);
}

dsi_status dsi_checkpoint_open_gguf(const char *path, dsi_checkpoint_progress progress, void *user,
                                    dsi_checkpoint *checkpoint, dsi_error *error) {
    dsi_error local;
    if (!error) error = &local;
    *checkpoint = (dsi_checkpoint){0};
    checkpoint->dir = dsi_sys_strdup(path, strlen(path));
    dsi_status status = checkpoint->dir ? open_parts(checkpoint, path, progress, user, error)
                                        : dsi_fail(error, DSI_E_NOMEM, "%s: no memory", path);
    if (status) dsi_checkpoint_close(checkpoint);
    return status;
}
