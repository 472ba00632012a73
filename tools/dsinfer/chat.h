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
    dsi_adapter *adapter; /* NULL: none */
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
void chat_terminal_start(bool terminal);
/* Puts the terminal back as it was; signal handlers call it too. */
void chat_terminal_end(void);
void chat_terminal_edit(void); /* as it must be while a line is typed */
/* The next byte of stdin, or one of these. AGAIN: the screen may have changed; AFTER_WAIT: nothing
 * came in time. */
enum { CHAT_BYTE_END = -1, CHAT_BYTE_ERROR = -2, CHAT_BYTE_AGAIN = -3, CHAT_BYTE_AFTER_WAIT = -4 };
int chat_next_byte(int timeout_ms);
bool chat_has_bytes(void); /* read already, not handed out */

/* ---- A line on a terminal (chat_edit.c), appended to `text` without its end. `more`: a line of a
 * longer text. GIVEN_UP: Ctrl-C; END: Ctrl-D, or Ctrl-C on an empty line. */
enum { CHAT_LINE, CHAT_LINE_GIVEN_UP, CHAT_LINE_END, CHAT_LINE_ERROR };
uint32_t chat_edit_line(cli_bytes *text, bool more, bool *no_memory);
void chat_edit_forget(void); /* the older lines */

/* ---- Commands (chat_commands.c): `line` starts with a slash. */
int chat_command(chat *c, const cli_bytes *line);

/* ---- Files (chat_file.c) */
int chat_save(const chat *c, const char *path);
/* Everything is checked before the conversation changes. */
int chat_load(chat *c, const char *path);

#endif
