/* tokenizer_rules.h: which tokenizer.json files the library understands. Shared by its two loaders'
 * files. */
#ifndef DSI_LIB_TEXT_TOKENIZER_RULES_H
#define DSI_LIB_TEXT_TOKENIZER_RULES_H

#include "../base/json.h"
#include "text.h"
#include "utf8.h"

/* One more than the largest character of the byte-level alphabet: 256 + 68 bytes that are not
 * printable Latin-1. */
enum { DSI_BYTE_LEVEL_END = 0x100 + 68 };

/* What the families differ in. */
typedef struct dsi_tokenizer_rules {
    dsi_pretok pretok;
    bool normalizes;  /* form C */
    bool whole_first; /* "ignore_merges" */
} dsi_tokenizer_rules;
/* Checks everything but the ids: normalizer, pre-tokenizer, post-processor, decoder, the options of
 * the model. Afterwards model.vocab is an object, model.merges an array, and added_tokens an array
 * or absent. Errors: UNSUPPORTED with the name and value, FORMAT. */
dsi_status dsi_tokenizer_check_rules(const dsi_json *json, dsi_tokenizer_rules *rules,
                                     dsi_error *error);

/* Loads the text of a tokenizer.json. given: rules that are known from elsewhere; then `text` needs
 * added_tokens, model.vocab and model.merges alone. Messages lack the name of the file. */
dsi_status dsi_tokenizer_load_text(const char *text, uint64_t n_bytes,
                                   const dsi_tokenizer_rules *given, dsi_tokenizer **tokenizer,
                                   dsi_error *error);

/* Checks the options of one added token, whose text is for the message. Errors: UNSUPPORTED. */
dsi_status dsi_tokenizer_check_added(const dsi_json *json, uint32_t node, const char *text,
                                     int n_text, dsi_error *error);

#endif
