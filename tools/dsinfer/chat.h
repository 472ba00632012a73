/* chat.h: what the files of dsinfer chat share: the conversation, its lines and commands. */
#ifndef DSINFER_TOOL_CHAT_H
#define DSINFER_TOOL_CHAT_H

#include "answer.h"

/* ---- A conversation: at most one system message, in front; then user and assistant in turn. */
typedef struct chat_message {
    uint32_t role; /* DSI_ROLE_* */
    cli_bytes text, reasoning;
} chat_message;
typedef struct chat_talk {
    chat_message *messages; /* [n_messages] */
    size_t n_messages, capacity;
} chat_talk;
/* Appends a copy; reasoning may be NULL. false: no memory, nothing changed. */
bool chat_talk_add(chat_talk *talk, uint32_t role, const char *text, size_t n_bytes,
                   const cli_bytes *reasoning);
void chat_talk_cut(chat_talk *talk, size_t n_messages); /* drops those behind */
void chat_talk_free(chat_talk *talk);
/* The system message in front, or NULL. */
chat_message *chat_talk_system(const chat_talk *talk);

typedef struct chat {
    cli_options options; /* a copy: /think and /load change it */
    dsi_model *model;
    dsi_engine *engine;
    dsi_session *session;
    dsi_model_info info;
    uint32_t context; /* tokens the session can hold */
    chat_talk talk;
    cli_bytes stops; /* texts of options.stop that came from a file */
    cli_bytes retry; /* the last question, also if it has no answer */
    cli_answer answer;
    bool terminal; /* a person types */
    bool leave;
    int code; /* of the first failure; a pipe ends with it */
    uint64_t n_turns, n_in, n_kept, n_out;
    double prefill_seconds, decode_seconds;
} chat;

/* A new session with chat->options in place of the old one, which stays if that fails. */
int chat_open_session(chat *c);
/* Asks the text and prints the answer; a failure is explained and the text taken back. */
int chat_turn(chat *c, const char *text, size_t n_bytes);

/* ---- Input (chat_input.c) */
enum { CHAT_TEXT, CHAT_COMMAND, CHAT_NOTHING, CHAT_END };
/* The next text or command line, put together from the lines it was written in. CHAT_NOTHING: a
 * line was given up (Ctrl-C) or refused, after an explanation. */
uint32_t chat_read(const chat *c, cli_bytes *text, int *code);
/* Puts the terminal back as it was; also called by the handlers of signals that end the process. */
void chat_terminal_start(bool terminal);
void chat_terminal_end(void);

/* ---- Commands (chat_commands.c): `line` starts with a slash. */
int chat_command(chat *c, const cli_bytes *line);

/* ---- Files (chat_file.c) */
int chat_save(const chat *c, const char *path);
/* Everything is checked before the conversation changes. */
int chat_load(chat *c, const char *path);

#endif
