/* checkpoint.c: a folder of safetensors files as one list of tensors with a hash of their names.
 * Headers are read, tensor bytes are only mapped. */
#include "safetensors.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

/* ---- Names ---------------------------------------------------------------------------------- */

static const char *tensor_name(const void *owner, uint32_t id) {
    return ((const dsi_checkpoint *)owner)->tensors[id].name;
}

/* Smallest table of 2^n slots that n_names fill at most half. */
static uint32_t table_mask(uint32_t n_names) {
    uint32_t size = 16;
    while (size < 2 * n_names) size *= 2; /* n_names <= 1 M */
    return size - 1;
}

dsi_status dsi_checkpoint_build_index(dsi_checkpoint *c, dsi_error *error) {
    c->index_mask = table_mask(c->n_tensors);
    c->index = dsi_sys_calloc((uint64_t)c->index_mask + 1, sizeof *c->index);
    if (!c->index)
        return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for the hash of %u names", c->dir,
                        c->n_tensors);
    for (uint32_t i = 0; i < c->n_tensors; i++) {
        const dsi_file_tensor *t = &c->tensors[i];
        uint32_t slot = dsi_name_slot(c->index, c->index_mask, tensor_name, c, t->name);
        if (slot == DSI_NO_SLOT)
            return dsi_fail(error, DSI_E_FORMAT, "%s: tensor names built to collide in a hash",
                            c->shards[t->shard].path);
        if (c->index[slot])
            return dsi_fail(error, DSI_E_MODEL,
                            "%s: tensor \"%s\" lies in %s too; every tensor "
                            "belongs to exactly one file",
                            c->shards[t->shard].path, t->name,
                            c->shards[c->tensors[c->index[slot] - 1].shard].path);
        c->index[slot] = i + 1;
    }
    return DSI_OK;
}

const dsi_file_tensor *dsi_checkpoint_find(const dsi_checkpoint *c, const char *name) {
    if (!c->index) return NULL;
    uint32_t slot = dsi_name_slot(c->index, c->index_mask, tensor_name, c, name);
    if (slot == DSI_NO_SLOT || c->index[slot] == 0) return NULL;
    return &c->tensors[c->index[slot] - 1];
}

const uint8_t *dsi_checkpoint_data(const dsi_checkpoint *c, const dsi_file_tensor *tensor) {
    return c->shards[tensor->shard].map.data + tensor->file_offset;
}

/* ---- Shards --------------------------------------------------------------------------------- */

dsi_status dsi_checkpoint_alloc_shards(dsi_checkpoint *c, uint32_t n, dsi_error *error) {
    c->shards = dsi_sys_calloc(n, sizeof *c->shards);
    c->names_blocks = dsi_sys_calloc(n, sizeof *c->names_blocks);
    if (!c->shards || !c->names_blocks)
        return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for the list of %u shards", c->dir, n);
    c->n_shards = n;
    return DSI_OK;
}

/* Maps every shard first: the sum of the header bytes is the total of the progress calls. */
static dsi_status read_shards(dsi_checkpoint *c, dsi_checkpoint_progress progress, void *user,
                              dsi_error *error) {
    uint64_t total = 0, done = 0, n_bytes = 0;
    dsi_status status = DSI_OK;
    for (uint32_t i = 0; i < c->n_shards; i++) {
        dsi_sys_sort sort;
        status = dsi_sys_look(c->shards[i].path, &sort, error);
        if (status) return status;
        if (sort != DSI_SORT_FILE)
            return dsi_fail(error, DSI_E_IO,
                            "%s: no such file (shard %u of %u); download the "
                            "checkpoint again",
                            c->shards[i].path, i + 1, c->n_shards);
        status = dsi_sys_map(c->shards[i].path, &c->shards[i].map, error);
        if (!status) status = dsi_safetensors_header_bytes(&c->shards[i], &n_bytes, error);
        if (status) return status;
        total += n_bytes; /* at most 4096 * 100 MB */
    }
    for (uint32_t i = 0; i < c->n_shards && !status; i++) {
        status = dsi_safetensors_read(c, i, error);
        if (status) break;
        status = dsi_safetensors_header_bytes(&c->shards[i], &n_bytes, error);
        done += n_bytes;
        if (progress) progress(user, done, total);
    }
    return status ? status : dsi_checkpoint_build_index(c, error);
}

static dsi_status read_single(dsi_checkpoint *c, const char *path, dsi_checkpoint_progress progress,
                              void *user, dsi_error *error) {
    dsi_status status = dsi_checkpoint_alloc_shards(c, 1, error);
    if (status) return status;
    c->shards[0].path = dsi_sys_strdup(path, strlen(path));
    if (!c->shards[0].path) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory", path);
    return read_shards(c, progress, user, error);
}

/* ---- The index of a sharded checkpoint ------------------------------------------------------ */

typedef struct shard_set { /* distinct file names of weight_map */
    char (*names)[DSI_NAME_BYTES + 1];
    uint32_t n, capacity;
    uint32_t slots[2 * DSI_MAX_SHARDS];
} shard_set;

static const char *shard_name(const void *owner, uint32_t id) {
    return ((const shard_set *)owner)->names[id];
}

static bool plain_file_name(const char *name) {
    size_t n = strlen(name), tail = strlen(".safetensors");
    return !strchr(name, '/') && !strchr(name, '\\') && !strstr(name, "..") && n > tail &&
           strcmp(name + n - tail, ".safetensors") == 0;
}

static dsi_status add_shard(shard_set *set, const char *path, const char *name, dsi_error *error) {
    if (!plain_file_name(name))
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: shard \"%s\" is no plain file name ending in "
                        ".safetensors (no '/', no '..')",
                        path, name);
    uint32_t slot = dsi_name_slot(set->slots, 2 * DSI_MAX_SHARDS - 1, shard_name, set, name);
    if (slot != DSI_NO_SLOT && set->slots[slot]) return DSI_OK;
    if (slot == DSI_NO_SLOT || set->n == DSI_MAX_SHARDS)
        return dsi_fail(error, DSI_E_FORMAT, "%s: more than %d shards", path, DSI_MAX_SHARDS);
    if (set->n == set->capacity) {
        uint32_t capacity = set->capacity ? 2 * set->capacity : 64;
        void *grown = dsi_sys_realloc(set->names, capacity, sizeof *set->names);
        if (!grown) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for shard names", path);
        set->names = grown;
        set->capacity = capacity;
    }
    memcpy(set->names[set->n], name, strlen(name) + 1);
    set->slots[slot] = ++set->n;
    return DSI_OK;
}

/* Insertion by rank: shards in ascending order of their names, whatever the order of the index. */
static dsi_status place_shards(dsi_checkpoint *c, const shard_set *set, dsi_error *error) {
    dsi_status status = dsi_checkpoint_alloc_shards(c, set->n, error);
    for (uint32_t i = 0; i < set->n && !status; i++) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < set->n; j++) rank += strcmp(set->names[j], set->names[i]) < 0;
        char path[DSI_PATH_BYTES];
        status = dsi_path_join(path, c->dir, set->names[i], error);
        if (status) break;
        c->shards[rank].path = dsi_sys_strdup(path, strlen(path));
        if (!c->shards[rank].path)
            status = dsi_fail(error, DSI_E_NOMEM, "%s: no memory for shard names", c->dir);
    }
    return status;
}

static dsi_status collect_shards(dsi_checkpoint *c, const dsi_json *json, uint32_t weight_map,
                                 const char *path, dsi_error *error) {
    shard_set *set = dsi_sys_calloc(1, sizeof *set);
    if (!set) return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for shard names", path);
    dsi_status status = DSI_OK;
    char name[DSI_NAME_BYTES + 1];
    for (uint32_t key = dsi_json_first(json, weight_map);
         key < json->nodes[weight_map].end && !status; key = json->nodes[key + 1].end) {
        if (!dsi_json_name(json, key + 1, name))
            status = dsi_fail(error, DSI_E_FORMAT,
                              "%s: weight_map holds a value that is no file "
                              "name (a string of 1 to %d bytes)",
                              path, DSI_NAME_BYTES);
        else
            status = add_shard(set, path, name, error);
    }
    if (!status && set->n == 0)
        status = dsi_fail(error, DSI_E_FORMAT, "%s: weight_map is empty", path);
    if (!status) status = place_shards(c, set, error);
    dsi_sys_free(set->names);
    dsi_sys_free(set);
    return status;
}

/* The index and the headers must tell the same story, both ways. */
static dsi_status match_index(const dsi_checkpoint *c, const dsi_json *json, uint32_t weight_map,
                              const char *path, uint8_t *listed, dsi_error *error) {
    char name[DSI_NAME_BYTES + 1], file[DSI_NAME_BYTES + 1];
    uint32_t n_listed = 0;
    for (uint32_t key = dsi_json_first(json, weight_map); key < json->nodes[weight_map].end;
         key = json->nodes[key + 1].end) {
        if (!dsi_json_name(json, key, name) || !dsi_json_name(json, key + 1, file))
            return dsi_fail(error, DSI_E_FORMAT,
                            "%s: weight_map holds a name that is empty, longer "
                            "than %d bytes, or has control characters",
                            path, DSI_NAME_BYTES);
        const dsi_file_tensor *t = dsi_checkpoint_find(c, name);
        const char *real = t ? c->shards[t->shard].path + strlen(c->dir) + 1 : "no shard";
        if (!t || strcmp(real, file) != 0)
            return dsi_fail(error, DSI_E_MODEL,
                            "%s: tensor \"%s\" should lie in %s, but %s holds "
                            "it; index and shards are of different downloads",
                            path, name, file, real);
        listed[t - c->tensors] = 1;
        n_listed++;
    }
    for (uint32_t i = 0; i < c->n_tensors && n_listed < c->n_tensors; i++)
        if (!listed[i])
            return dsi_fail(error, DSI_E_MODEL,
                            "%s: tensor \"%s\" of %s is not listed; index and "
                            "shards are of different downloads",
                            path, c->tensors[i].name, c->shards[c->tensors[i].shard].path);
    return DSI_OK;
}

/* total_size is advice: DeepSeek-V3's own index states twice the true sum. */
static void check_total_size(dsi_checkpoint *c, const dsi_json *json) {
    uint32_t node = dsi_json_get(json, dsi_json_get(json, 0, "metadata"), "total_size");
    if (node == DSI_JSON_NONE) return;
    char stated[48] = "not a number";
    double value;
    uint64_t whole, sum = 0;
    for (uint32_t i = 0; i < c->n_tensors; i++) sum += c->tensors[i].n_bytes; /* all are mapped */
    if (dsi_json_u64(json, node, &whole)) {
        if (whole == sum) return;
        snprintf(stated, sizeof stated, "%" PRIu64, whole);
    } else if (dsi_json_f64(json, node, &value)) { /* some writers store 688574839360.0 */
        if (value >= (double)sum && value <= (double)sum) return;
        snprintf(stated, sizeof stated, "%.17g", value);
    }
    snprintf(c->warning, sizeof c->warning,
             "%s: metadata.total_size is %s, the tensors of the %u shards have %" PRIu64
             " bytes; the shards' own headers are used",
             index_name, stated, c->n_shards, sum);
}

static dsi_status read_index(dsi_checkpoint *c, const dsi_json *json, const char *path,
                             dsi_checkpoint_progress progress, void *user, dsi_error *error) {
    uint32_t weight_map = dsi_json_get(json, 0, "weight_map");
    if (weight_map == DSI_JSON_NONE || json->nodes[weight_map].kind != DSI_JSON_OBJECT)
        return dsi_fail(error, DSI_E_FORMAT, "%s: has no \"weight_map\" object", path);
    dsi_status status = collect_shards(c, json, weight_map, path, error);
    if (!status) status = read_shards(c, progress, user, error);
    if (status) return status;
    uint8_t *listed = dsi_sys_calloc(c->n_tensors, 1);
    if (!listed)
        return dsi_fail(error, DSI_E_NOMEM, "%s: no memory for %u marks", path, c->n_tensors);
    status = match_index(c, json, weight_map, path, listed, error);
    dsi_sys_free(listed);
    if (!status) check_total_size(c, json);
    return status;
}

static dsi_status read_sharded(dsi_checkpoint *c, const char *path,
                               dsi_checkpoint_progress progress, void *user, dsi_error *error) {
    char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_status status = dsi_sys_read_file(path, DSI_MAX_HEADER_BYTES, &text, &n_bytes, error);
    if (status) return status;
    dsi_json json = {0};
    status = dsi_json_parse(text, n_bytes, 2 * DSI_MAX_TENSORS + 1024, &json, error);
    if (status)
        status = dsi_fail_prefix(error, path);
    else
        status = read_index(c, &json, path, progress, user, error);
    dsi_json_free(&json);
    dsi_sys_free(text);
    return status;
}

/* ---- Open and close ------------------------------------------------------------------------- */

static dsi_status open_folder(dsi_checkpoint *c, dsi_checkpoint_progress progress, void *user,
                              dsi_error *error) {
    char single[DSI_PATH_BYTES], index[DSI_PATH_BYTES];
    dsi_status status = dsi_path_join(single, c->dir, single_name, error);
    if (!status) status = dsi_path_join(index, c->dir, index_name, error);
    dsi_sys_sort at_single = DSI_SORT_NOTHING, at_index = DSI_SORT_NOTHING, at_folder;
    if (!status) status = dsi_sys_look(c->dir, &at_folder, error);
    if (!status) status = dsi_sys_look(single, &at_single, error);
    if (!status) status = dsi_sys_look(index, &at_index, error);
    if (status) return status;
    /* The order of transformers: the single file wins. */
    if (at_single == DSI_SORT_FILE) {
        status = read_single(c, single, progress, user, error);
        if (!status && at_index == DSI_SORT_FILE)
            snprintf(c->warning, sizeof c->warning, "%s is used, %s beside it is ignored",
                     single_name, index_name);
        return status;
    }
    if (at_index == DSI_SORT_FILE) return read_sharded(c, index, progress, user, error);
    if (at_folder != DSI_SORT_FOLDER)
        return dsi_fail(error, DSI_E_IO,
                        "%s: no such folder; give the folder that holds "
                        "config.json and %s",
                        c->dir, single_name);
    return dsi_fail(error, DSI_E_IO,
                    "%s: holds neither %s nor %s; download the safetensors files "
                    "of the model",
                    c->dir, single_name, index_name);
}

dsi_status dsi_checkpoint_open(const char *dir, dsi_checkpoint_progress progress, void *user,
                               dsi_checkpoint *checkpoint, dsi_error *error) {
    dsi_error local;
    if (!error) error = &local;
    *checkpoint = (dsi_checkpoint){0};
    checkpoint->dir = dsi_sys_strdup(dir, strlen(dir));
    dsi_status status = checkpoint->dir ? open_folder(checkpoint, progress, user, error)
                                        : dsi_fail(error, DSI_E_NOMEM, "%s: no memory", dir);
    if (status) dsi_checkpoint_close(checkpoint);
    return status;
}

dsi_status dsi_checkpoint_open_file(const char *path, dsi_checkpoint *checkpoint,
                                    dsi_error *error) {
    dsi_error local;
    if (!error) error = &local;
    *checkpoint = (dsi_checkpoint){0};
    const char *slash = strrchr(path, '/');
    checkpoint->dir = slash ? dsi_sys_strdup(path, (size_t)(slash - path)) : dsi_sys_strdup(".", 1);
    dsi_status status = checkpoint->dir ? read_single(checkpoint, path, NULL, NULL, error)
                                        : dsi_fail(error, DSI_E_NOMEM, "%s: no memory", path);
    if (status) dsi_checkpoint_close(checkpoint);
    return status;
}

void dsi_checkpoint_close(dsi_checkpoint *c) {
    for (uint32_t i = 0; i < c->n_shards; i++) {
        dsi_sys_unmap(&c->shards[i].map);
        dsi_sys_free(c->shards[i].path);
        dsi_sys_free(c->names_blocks[i]);
        if (c->gguf) dsi_gguf_free(&c->gguf[i]);
    }
    dsi_sys_free(c->shards);
    dsi_sys_free(c->names_blocks);
    dsi_sys_free(c->gguf);
    dsi_sys_free(c->tensors);
    dsi_sys_free(c->index);
    dsi_sys_free(c->dir);
    *c = (dsi_checkpoint){0};
}
