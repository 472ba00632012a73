/* answer_text.c: from the bytes of sampled tokens to the text of an answer: whole characters,
 * reasoning apart from the answer, nothing from a stop string on. Line ends that only part
 * reasoning and answer belong to neither: they are held back until other text follows in the same
 * part. */
#include "text.h"

#include <deepseek/dsinfer.h>

static const char line_ends[] = "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n";

void dsi_answer_text_start(dsi_answer_text *a, const dsi_stop_set *stop, bool reasoning) {
    *a = (dsi_answer_text){.sink = a->sink,
                           .user = a->user,
                           .stop = stop,
                           .part = reasoning ? DSI_PART_REASONING : DSI_PART_ANSWER,
                           .stop_index = -1};
}

static void hand_out(void *user, const char *text, size_t n) {
    dsi_answer_text *a = user;
    if (a->sink) a->sink(a->user, a->part, text, n);
}

/* Text of the current part, without the line ends around it. */
static void receive(dsi_answer_text *a, const char *text, size_t n) {
    if (a->stop_index >= 0) return;
    if (a->stop && a->part == DSI_PART_ANSWER)
        a->stop_index = dsi_stop_push(a->stop, &a->stop_state, text, n, hand_out, a);
    else
        hand_out(a, text, n);
}

static void receive_line_ends(dsi_answer_text *a, uint32_t n) {
    for (uint32_t left = n; left > 0;) {
        uint32_t some = left < sizeof line_ends - 1 ? left : sizeof line_ends - 1;
        receive(a, line_ends, some);
        left -= some;
    }
    a->n_line_ends -= n;
}

/* Whole characters from the detokenizer. */
static void trim(void *user, const char *text, size_t n) {
    dsi_answer_text *a = user;
    size_t begin = 0, end = n;
    if (!a->any_text && (a->part == DSI_PART_REASONING || a->reasoned))
        while (begin < n && text[begin] == '\n') begin++;
    if (a->part == DSI_PART_REASONING)
        while (end > begin && text[end - 1] == '\n') end--;
    if (end > begin) {
        receive_line_ends(a, a->n_line_ends);
        receive(a, text + begin, end - begin);
        a->any_text = true;
    }
    if (!a->any_text) return;
    a->n_line_ends += (uint32_t)(n - end); /* a piece has fewer bytes than a tokenizer has */
    if (a->n_line_ends > DSI_ANSWER_MAX_LINE_ENDS)
        receive_line_ends(a, a->n_line_ends - DSI_ANSWER_MAX_LINE_ENDS);
}

static void switch_part(dsi_answer_text *a, uint32_t part) {
    dsi_detokenizer_finish(&a->detokenizer, trim, a);
    a->part = part;
    a->any_text = false;
    a->n_line_ends = 0;
}

bool dsi_answer_text_think(dsi_answer_text *a, bool opens) {
    bool reasoning = a->part == DSI_PART_REASONING;
    if (opens && (reasoning || a->any_text || a->reasoned || a->detokenizer.n_held)) return false;
    if (!opens && !reasoning) return false;
    switch_part(a, opens ? DSI_PART_REASONING : DSI_PART_ANSWER);
    a->reasoned = !opens; /* no second reasoning */
    return true;
}

void dsi_answer_text_push(dsi_answer_text *a, const char *bytes, size_t n_bytes) {
    dsi_detokenizer_push(&a->detokenizer, bytes, n_bytes, trim, a);
}

void dsi_answer_text_finish(dsi_answer_text *a) {
    dsi_detokenizer_finish(&a->detokenizer, trim, a);
    if (a->stop && a->stop_index < 0) dsi_stop_finish(a->stop, &a->stop_state, hand_out, a);
}
