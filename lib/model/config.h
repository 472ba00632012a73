/* config.h: inside lib/model only. Reading typed, limited values out of one JSON file; every
 * message names the file, the key, the value and the limit. */
#ifndef DSI_LIB_MODEL_CONFIG_H
#define DSI_LIB_MODEL_CONFIG_H

#include "../base/json.h"
#include "model.h"

typedef struct dsi_config_reader {
    const dsi_json *json;
    const char *path; /* of the file, for messages */
    dsi_error *error;
} dsi_config_reader;

/* "path: key is VALUE; <format>". node may be DSI_JSON_NONE ("missing"). Returns status. */
dsi_status dsi_config_bad(const dsi_config_reader *r, dsi_status status, const char *key,
                          uint32_t node, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Value of `key` in object `parent`; null counts as absent: DSI_JSON_NONE. */
uint32_t dsi_config_get(const dsi_config_reader *r, uint32_t parent, const char *key);

/* A number between min and max, or `fallback` when absent; NAN: the key must be there. */
dsi_status dsi_config_f64(const dsi_config_reader *r, uint32_t parent, const char *key, double min,
                          double max, double fallback, double *out);
dsi_status dsi_config_bool(const dsi_config_reader *r, uint32_t parent, const char *key,
                           bool fallback, bool *out);
/* Refuses (UNSUPPORTED) any value of `key` but `text`; absent is allowed. */
dsi_status dsi_config_must_be(const dsi_config_reader *r, uint32_t parent, const char *key,
                              const char *text);

/* rope_theta, rope_scaling (old style), rope_parameters (new style) -> config->rope. */
dsi_status dsi_config_rope(const dsi_config_reader *r, dsi_config *config);

/* quantization_config -> config->quantization (config_quant.c). */
dsi_status dsi_config_quantization(const dsi_config_reader *r, dsi_config *config);

/* The keys of a GGUF file as the text of a config.json (gguf_config.c). */
typedef struct dsi_gguf_config_text {
    char text[4096];
    size_t n_bytes;
    char warning[256]; /* what was assumed, "" if nothing */
} dsi_gguf_config_text;
dsi_status dsi_gguf_config_text_of(const dsi_checkpoint *checkpoint, dsi_gguf_config_text *text,
                                   dsi_error *error);

#endif
