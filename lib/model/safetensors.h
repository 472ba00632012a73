/* safetensors.h: inside lib/model only. The header of one mapped .safetensors file, and the hash
 * that finds names. */
#ifndef DSI_LIB_MODEL_SAFETENSORS_H
#define DSI_LIB_MODEL_SAFETENSORS_H

#include "../base/json.h"
#include "model.h"

enum {
    DSI_PATH_BYTES = 4096,
    DSI_NAME_BYTES = 512, /* longest tensor or shard name, without its zero byte */
    DSI_MAX_SHARDS = 4096,
    DSI_MAX_TENSORS = 1000000 /* DeepSeek-V3 has 91,991 */
};
#define DSI_MAX_HEADER_BYTES UINT64_C(100000000) /* the limit of the safetensors reference */

/* Length N of the JSON header: file >= 8 bytes, N <= 100 MB, 8 + N <= file size. */
dsi_status dsi_safetensors_header_bytes(const dsi_shard *shard, uint64_t *n_bytes,
                                        dsi_error *error);

/* Appends the tensors of checkpoint->shards[shard] to checkpoint->tensors, in order of offset;
 * checks every rule of lib/model/README.md that concerns one file. On failure the checkpoint stays
 * fit for dsi_checkpoint_close. */
dsi_status dsi_safetensors_read(dsi_checkpoint *checkpoint, uint32_t shard, dsi_error *error);

/* Room for n tensors in all, in powers of two so that 163 shards cost few moves; NULL: no memory.
 */
dsi_file_tensor *dsi_checkpoint_grow(dsi_checkpoint *checkpoint, uint64_t n);
/* The list and the names of n shards, their paths still NULL. */
dsi_status dsi_checkpoint_alloc_shards(dsi_checkpoint *checkpoint, uint32_t n, dsi_error *error);
/* The hash of the names, once all tensors are listed; refuses a name that is there twice. */
dsi_status dsi_checkpoint_build_index(dsi_checkpoint *checkpoint, dsi_error *error);

/* Copies the unescaped string `node` to buffer. false: no string, empty, longer than
 * DSI_NAME_BYTES, or it holds a control character (which has no place in a name or a message). */
bool dsi_json_name(const dsi_json *json, uint32_t node, char buffer[DSI_NAME_BYTES + 1]);

/* Open addressing over names that live elsewhere: a slot holds id + 1, 0 is empty. Returns the slot
 * of `name`, or the empty slot where it belongs, or DSI_NO_SLOT after 256 probes: with the table at
 * most half full that happens only to names built to collide, and bounds their cost. */
#define DSI_NO_SLOT UINT32_MAX
typedef const char *(*dsi_name_of)(const void *owner, uint32_t id);
uint32_t dsi_name_slot(const uint32_t *slots, uint32_t mask, dsi_name_of name_of, const void *owner,
                       const char *name);

/* folder/name into path; DSI_E_ARG if it does not fit. */
dsi_status dsi_path_join(char path[DSI_PATH_BYTES], const char *folder, const char *name,
                         dsi_error *error);

#endif
