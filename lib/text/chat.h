/* chat.h: the chat formats, shared by what recognises them (chat_templates.c) and what writes them
 * (chat.c). */
#ifndef DSI_LIB_TEXT_CHAT_H
#define DSI_LIB_TEXT_CHAT_H

#include "text.h"

#define DSI_CHAT_BOS "<｜begin▁of▁sentence｜>"
#define DSI_CHAT_EOS "<｜end▁of▁sentence｜>"
#define DSI_CHAT_USER "<｜User｜>"
#define DSI_CHAT_ASSISTANT "<｜Assistant｜>"
#define DSI_CHAT_THINK "<think>"
#define DSI_CHAT_END_THINK "</think>"
#define DSI_CHAT_IM_START "<|im_start|>"
#define DSI_CHAT_IM_END "<|im_end|>"
#define DSI_CHAT_BEGIN_OF_TEXT "<|begin_of_text|>"
#define DSI_CHAT_START_HEADER "<|start_header_id|>"
#define DSI_CHAT_END_HEADER "<|end_header_id|>"
#define DSI_CHAT_EOT "<|eot_id|>"

/* How the messages are put together; chat.c describes each. */
enum {
    DSI_CHAT_MARKS,      /* DeepSeek-V3, R1 and its distills */
    DSI_CHAT_MARKS_V3_1, /* DeepSeek-V3.1 */
    DSI_CHAT_WORDS,      /* DeepSeek-V2, DeepSeek LLM */
    DSI_CHAT_CHATML,     /* Qwen2 */
    DSI_CHAT_HEADERS     /* Llama-3 */
};

#endif
