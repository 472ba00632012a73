/* safetensors.c: reads the header of one mapped file, and believes nothing in it.
 * Format: u64 little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, tensor bytes.
 */
#include "safetensors.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { LENGTH_BYTES = 8, NODES_PER_TENSOR = 14 /* key, object, 3 keys, 3 values, 4 + 2 numbers */ };

dsi_status dsi_path_join(char path[DSI_PATH_BYTES], const char *folder, const char *name,
                         dsi_error *error) {
    int n = snprintf(path, DSI_PATH_BYTES, "%s/%s", folder, name);
    if (n > 0 && n < DSI_PATH_BYTES) return DSI_OK;
    return dsi_fail(error, DSI_E_ARG,
                    "%.200s...: the path is longer than %d bytes; use a shorter one", folder,
                    DSI_PATH_BYTES - 1);
}

uint32_t dsi_name_slot(const uint32_t *slots, uint32_t mask, dsi_name_of name_of, const void *owner,
                       const char *name) {
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a, 64 bits */
    for (const char *c = name; *c; c++) hash = (hash ^ (uint8_t)*c) * UINT64_C(1099511628211);
    uint32_t slot = (uint32_t)(hash ^ (hash >> 32)) & mask;
    for (uint32_t probe = 0; probe < 256; probe++, slot = (slot + 1) & mask)
        if (slots[slot] == 0 || strcmp(name_of(owner, slots[slot] - 1), name) == 0) return slot;
    return DSI_NO_SLOT;
}

bool dsi_json_name(const dsi_json *json, uint32_t node, char buffer[DSI_NAME_BYTES + 1]) {
    if (node == DSI_JSON_NONE || json->nodes[node].kind != DSI_JSON_STRING) return false;
    uint64_t n = json->nodes[node].n_bytes;
    if (json->nodes[node].escaped) {
        char *text = dsi_json_string(json, node, &n);
        if (text && n <= DSI_NAME_BYTES) memcpy(buffer, text, n);
        if (!text) n = 0;
        dsi_sys_free(text);
    } else if (n <= DSI_NAME_BYTES) {
        memcpy(buffer, json->text + json->nodes[node].offset, n);
    }
    if (n == 0 || n > DSI_NAME_BYTES) return false;
    buffer[n] = 0;
    for (uint64_t i = 0; i < n; i++)
        if ((uint8_t)buffer[i] < 0x20 || buffer[i] == 0x7f) return false;
    return true;
}

dsi_status dsi_safetensors_header_bytes(const dsi_shard *shard, uint64_t *n_bytes,
                                        dsi_error *error) {
    const dsi_map *map = &shard->map;
    if (map->n_bytes < LENGTH_BYTES)
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: %" PRIu64 " bytes, a safetensors file has at least 8; "
                        "download it again",
                        shard->path, map->n_bytes);
    uint64_t n = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) n = n << 8 | map->data[i];
    if (n > DSI_MAX_HEADER_BYTES)
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: the header claims %" PRIu64 " bytes, the limit is %" PRIu64
                        "; this is no safetensors file or it is damaged",
                        shard->path, n, DSI_MAX_HEADER_BYTES);
    if (n > map->n_bytes - LENGTH_BYTES)
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: the header claims %" PRIu64 " bytes, the file has %" PRIu64
                        "; it is truncated, download it again",
                        shard->path, n, map->n_bytes);
    *n_bytes = n;
    return DSI_OK;
}

/* ---- One entry ------------------------------------------------------------------------------ */

typedef struct header {
    const char *path;
    const dsi_json *json;
    uint64_t n_bytes; /* of the JSON text */
    dsi_error *error;
} header;

static dsi_status bad_tensor(const header *h, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static dsi_status bad_tensor(const header *h, const char *name, const char *format, ...) {
    char reason[DSI_NAME_BYTES + 256];
    va_list list;
    va_start(list, format);
    vsnprintf(reason, sizeof reason, format, list);
    va_end(list);
    return dsi_fail(h->error, DSI_E_FORMAT, "%s: tensor \"%s\" %s", h->path, name, reason);
}

static dsi_status read_shape(const header *h, uint32_t node, dsi_file_tensor *tensor) {
    const dsi_json *json = h->json;
    if (node == DSI_JSON_NONE || json->nodes[node].kind != DSI_JSON_ARRAY)
        return bad_tensor(h, tensor->name, "has no \"shape\" array");
    if (json->nodes[node].n_items > 4)
        return bad_tensor(h, tensor->name, "has %u dimensions, the limit is 4",
                          json->nodes[node].n_items);
    uint64_t n_bytes = dsi_dtype_bytes(tensor->dtype);
    uint32_t item = node + 1; /* children are numbers: one node each */
    for (; item < json->nodes[node].end; item = json->nodes[item].end) {
        uint64_t size;
        if (!dsi_json_u64(json, item, &size) || size > INT64_MAX)
            return bad_tensor(h, tensor->name,
                              "has a dimension that is no whole number below 2^63");
        /* Its place would be the neighbour's place: the order in the file would mean nothing. */
        if (size == 0) return bad_tensor(h, tensor->name, "has no elements (a dimension is 0)");
        if (!dsi_mul_ok(n_bytes, size, &n_bytes))
            return bad_tensor(h, tensor->name, "has a shape whose size passes 2^64 bytes");
        tensor->shape[tensor->n_dims++] = (int64_t)size;
    }
    tensor->n_bytes = n_bytes;
    return DSI_OK;
}

/* Leaves the offset inside the data part in tensor->file_offset. */
static dsi_status read_offsets(const header *h, uint32_t node, dsi_file_tensor *tensor) {
    const dsi_json *json = h->json;
    uint64_t begin, end;
    if (node == DSI_JSON_NONE || json->nodes[node].kind != DSI_JSON_ARRAY ||
        json->nodes[node].n_items != 2 || !dsi_json_u64(json, node + 1, &begin) ||
        !dsi_json_u64(json, json->nodes[node + 1].end, &end))
        return bad_tensor(h, tensor->name, "has no \"data_offsets\" of two whole numbers");
    if (end < begin)
        return bad_tensor(h, tensor->name, "ends at %" PRIu64 ", before its begin %" PRIu64, end,
                          begin);
    if (end - begin != tensor->n_bytes)
        return bad_tensor(h, tensor->name,
                          "has %" PRIu64 " bytes between its offsets, type and shape ask "
                          "for %" PRIu64,
                          end - begin, tensor->n_bytes);
    tensor->file_offset = begin;
    return DSI_OK;
}

static dsi_status read_tensor(const header *h, uint32_t value, dsi_file_tensor *tensor) {
    const dsi_json *json = h->json;
    if (json->nodes[value].kind != DSI_JSON_OBJECT || json->nodes[value].n_items != 3)
        return bad_tensor(h, tensor->name, "is no object of exactly dtype, shape, data_offsets");
    uint32_t dtype = dsi_json_get(json, value, "dtype");
    if (dtype == DSI_JSON_NONE || json->nodes[dtype].kind != DSI_JSON_STRING)
        return bad_tensor(h, tensor->name, "has no \"dtype\" string");
    uint64_t n = json->nodes[dtype].n_bytes;
    const char *text = json->text + json->nodes[dtype].offset;
    tensor->dtype = dsi_dtype_from_name(text, (size_t)n);
    if (tensor->dtype == DSI_DTYPE_NONE)
        return bad_tensor(h, tensor->name, "has the unknown dtype \"%.*s\"", (int)(n < 32 ? n : 32),
                          text);
    dsi_status status = read_shape(h, dsi_json_get(json, value, "shape"), tensor);
    if (status) return status;
    return read_offsets(h, dsi_json_get(json, value, "data_offsets"), tensor);
}

static dsi_status check_metadata(const header *h, uint32_t value) {
    const dsi_json *json = h->json;
    bool good = json->nodes[value].kind == DSI_JSON_OBJECT;
    if (good)
        for (uint32_t i = dsi_json_first(json, value); i < json->nodes[value].end;
             i = json->nodes[i + 1].end)
            if (json->nodes[i + 1].kind != DSI_JSON_STRING) good = false;
    if (good) return DSI_OK;
    return dsi_fail(h->error, DSI_E_FORMAT, "%s: __metadata__ is no map of strings to strings",
                    h->path);
}

/* ---- The whole header ----------------------------------------------------------------------- */

/* Heap sort by offset: no memory, no bad case. Files written by the reference come sorted. */
static void sift_down(dsi_file_tensor *t, uint32_t root, uint32_t n) {
    for (uint32_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && t[child].file_offset < t[child + 1].file_offset) child++;
        if (t[root].file_offset >= t[child].file_offset) return;
        dsi_file_tensor swap = t[root];
        t[root] = t[child];
        t[child] = swap;
    }
}
static void sort_by_offset(dsi_file_tensor *t, uint32_t n) {
    uint32_t sorted = 1;
    while (sorted < n && t[sorted - 1].file_offset <= t[sorted].file_offset) sorted++;
    if (sorted >= n) return;
    for (uint32_t i = n / 2; i-- > 0;) sift_down(t, i, n);
    for (uint32_t i = n; i-- > 1;) {
        dsi_file_tensor swap = t[0];
        t[0] = t[i];
        t[i] = swap;
        sift_down(t, 0, i);
    }
}

/* Every byte behind the header belongs to exactly one tensor. Turns offsets into file offsets. */
static dsi_status check_layout(const header *h, uint64_t n_bytes_file, dsi_file_tensor *tensors,
                               uint32_t n) {
    uint64_t data = LENGTH_BYTES + h->n_bytes, next = 0; /* both below 100 MB + 8: no overflow */
    sort_by_offset(tensors, n);
    for (uint32_t i = 0; i < n; i++) {
        dsi_file_tensor *t = &tensors[i];
        if (t->file_offset < next)
            return bad_tensor(h, t->name,
                              "begins at %" PRIu64 ", inside \"%s\" which ends at %" PRIu64,
                              t->file_offset, tensors[i - 1].name, next);
        if (t->file_offset > next)
            return bad_tensor(h, t->name,
                              "begins at %" PRIu64 ", but the bytes from %" PRIu64
                              " on belong to no tensor (a hole)",
                              t->file_offset, next);
        next = t->file_offset + t->n_bytes; /* = end, which was read as a u64 */
        if (!dsi_add_ok(t->file_offset, data, &t->file_offset))
            return bad_tensor(h, t->name, "lies beyond 2^64 bytes");
    }
    uint64_t expected;
    if (!dsi_add_ok(data, next, &expected) || expected > n_bytes_file)
        return dsi_fail(h->error, DSI_E_FORMAT,
                        "%s: truncated: the header describes %" PRIu64
                        " bytes of tensors behind %" PRIu64
                        " bytes of header, the file has %" PRIu64 " bytes; download it again",
                        h->path, next, data, n_bytes_file);
    if (expected < n_bytes_file)
        return dsi_fail(h->error, DSI_E_FORMAT,
                        "%s: %" PRIu64 " bytes too many: the last tensor ends at %" PRIu64
                        ", the file at %" PRIu64 "; download it again",
                        h->path, n_bytes_file - expected, expected, n_bytes_file);
    return DSI_OK;
}

static dsi_status read_entries(dsi_checkpoint *checkpoint, uint32_t shard, const header *h,
                               uint32_t *n_read) {
    const dsi_json *json = h->json;
    char *names = checkpoint->names_blocks[shard], name[DSI_NAME_BYTES + 1];
    dsi_file_tensor *tensors = checkpoint->tensors + checkpoint->n_tensors;
    uint32_t n = 0;
    dsi_status status = DSI_OK;
    for (uint32_t key = dsi_json_first(json, 0); key < json->nodes[0].end && !status;
         key = json->nodes[key + 1].end) {
        if (dsi_json_string_is(json, key, "__metadata__")) {
            status = check_metadata(h, key + 1);
            continue;
        }
        if (!dsi_json_name(json, key, name))
            return dsi_fail(h->error, DSI_E_FORMAT,
                            "%s: the name of tensor %u is empty, longer than %d bytes, or holds "
                            "control characters",
                            h->path, n, DSI_NAME_BYTES);
        size_t length = strlen(name) + 1;
        memcpy(names, name, length);
        tensors[n] = (dsi_file_tensor){.name = names, .shard = shard};
        names += length;
        status = read_tensor(h, key + 1, &tensors[n++]);
    }
    *n_read = n;
    return status;
}

dsi_file_tensor *dsi_checkpoint_grow(dsi_checkpoint *checkpoint, uint64_t n) {
    uint64_t capacity = 1024, had = checkpoint->tensors ? 1024 : 0;
    while (capacity < n) capacity *= 2;
    while (had && had < checkpoint->n_tensors) had *= 2;
    if (had >= n) return checkpoint->tensors;
    dsi_file_tensor *grown = dsi_sys_realloc(checkpoint->tensors, capacity, sizeof *grown);
    if (grown) checkpoint->tensors = grown;
    return grown;
}

static dsi_status read_parsed(dsi_checkpoint *checkpoint, uint32_t shard, const header *h) {
    const dsi_json *json = h->json;
    uint32_t n_items = json->nodes[0].n_items, n = 0;
    if (n_items > DSI_MAX_TENSORS - checkpoint->n_tensors)
        return dsi_fail(h->error, DSI_E_FORMAT, "%s: the checkpoint has more than %d tensors",
                        h->path, DSI_MAX_TENSORS);
    /* Unescaped names are never longer than the text they stand in. */
    uint64_t n_bytes_names = 1, n_wanted = (uint64_t)checkpoint->n_tensors + n_items + 1;
    for (uint32_t key = dsi_json_first(json, 0); key < json->nodes[0].end;
         key = json->nodes[key + 1].end)
        n_bytes_names += json->nodes[key].n_bytes + 1;
    checkpoint->names_blocks[shard] = dsi_sys_calloc(n_bytes_names, 1);
    dsi_file_tensor *grown = dsi_checkpoint_grow(checkpoint, n_wanted);
    if (!grown || !checkpoint->names_blocks[shard])
        return dsi_fail(h->error, DSI_E_NOMEM, "%s: no memory for the list of %u tensors", h->path,
                        n_items);
    dsi_status status = read_entries(checkpoint, shard, h, &n);
    if (status) return status;
    if (n == 0) return dsi_fail(h->error, DSI_E_FORMAT, "%s: holds no tensor", h->path);
    status = check_layout(h, checkpoint->shards[shard].map.n_bytes,
                          checkpoint->tensors + checkpoint->n_tensors, n);
    if (!status) checkpoint->n_tensors += n;
    return status;
}

dsi_status dsi_safetensors_read(dsi_checkpoint *checkpoint, uint32_t shard, dsi_error *error) {
    const dsi_shard *file = &checkpoint->shards[shard];
    header h = {.path = file->path, .error = error};
    dsi_status status = dsi_safetensors_header_bytes(file, &h.n_bytes, error);
    if (status) return status;
    const char *text = (const char *)file->map.data + LENGTH_BYTES;
    if (h.n_bytes == 0 || text[0] != '{')
        return dsi_fail(error, DSI_E_FORMAT,
                        "%s: the header does not begin with '{'; this is no safetensors file",
                        file->path);
    dsi_json json = {0};
    status = dsi_json_parse(text, h.n_bytes, NODES_PER_TENSOR * DSI_MAX_TENSORS, &json, error);
    if (status) return dsi_fail_prefix(error, file->path);
    h.json = &json;
    status = read_parsed(checkpoint, shard, &h);
    dsi_json_free(&json);
    return status;
}
