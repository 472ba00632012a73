/* cli.h: what the files of the dsinfer command share: options, exit codes, talk, data. */
#ifndef DSINFER_TOOL_CLI_H
#define DSINFER_TOOL_CLI_H

#include <deepseek/dsinfer.h>
#include <stdbool.h>
#include <stdio.h>

/* ---- Exit codes: a contract with scripts (README.md). */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_ENVIRONMENT = 3, CLI_BAD_FILE = 4 };

/* ---- Commands and options: two tables in table.c, from which the parser, --help, man pages and
 * completion are made. */
enum {
    CLI_RUN = 1 << 0,
    CLI_CHAT = 1 << 1,
    CLI_TOKENIZE = 1 << 2,
    CLI_INSPECT = 1 << 3,
    CLI_VERIFY = 1 << 4,
    CLI_DOCTOR = 1 << 9,
    CLI_COMPLETION = 1 << 10,
    CLI_MAN = 1 << 11,
    CLI_HELP = 1 << 12,
    CLI_QUANTIZE = 1 << 13,
    CLI_ASKS = CLI_RUN | CLI_CHAT,                       /* commands that let the model answer */
    CLI_COMPUTES = CLI_ASKS | CLI_INSPECT | CLI_VERIFY,  /* commands with an engine or its plan */
    CLI_PLANS = CLI_COMPUTES | CLI_DOCTOR,               /* commands with an engine's options */
    CLI_READS = CLI_PLANS | CLI_TOKENIZE | CLI_QUANTIZE, /* commands that read a model */
    CLI_ANY = CLI_READS | CLI_COMPLETION | CLI_MAN | CLI_HELP
};
enum { CLI_MAX_STOPS = 16, CLI_MAX_STOP_BYTES = 256 }; /* of dsi_session_options.stop */
typedef struct cli_options {
    uint32_t command; /* CLI_RUN ..., 0: none given */
    const char *model, *kernels, *lang, *system, *golden, *adapter;
    const char *to, *out, *keep, *text, *calibrate; /* of quantize */
    const char *manifest, *write_manifest, *hash;   /* hash: "sha256", "sm3", NULL: not given */
    const char *argument; /* the prompt, the text, or the command that help is wanted for */
    uint64_t max_memory, seed;
    uint32_t threads, chunk, context, activations, attention, mode, gemm, pin, weights, top_k;
    uint32_t kv_cache; /* DSI_KV_CACHE_* */
    uint32_t indexer;  /* DSI_INDEXER_* */
    uint32_t max_tokens, draft;
    uint32_t think; /* DSI_THINK_* */
    double temperature, top_p, min_p;
    double repetition_penalty, presence_penalty, frequency_penalty;
    double deadline;                 /* seconds, 0: none */
    const char *stop[CLI_MAX_STOPS]; /* n_stop of them */
    uint32_t n_stop;
    uint32_t logprobs;            /* 0: not wanted, n + 1: with the n likeliest tokens */
    double max_mean_kl, min_top1; /* below 0: not given */
    bool quiet, json, special, jsonl, tensors, help, version, all, list, no_commands;
} cli_options;

typedef struct cli_command {
    uint32_t bit; /* CLI_RUN ... */
    const char *name;
    int (*run)(const cli_options *options);
    const char *usage;    /* what stands behind "dsinfer NAME" */
    const char *argument; /* name of the one word it takes beside options; NULL: takes none */
    const char *words;    /* what that word can be, "bash|zsh"; NULL: any text */
    const char *en, *zh;  /* what it does, one line without a full stop */
    const char *examples[3];
    const char *note_en, *note_zh; /* what else must be known, lines of 80 columns; NULL: nothing */
} cli_command;
extern const cli_command cli_overview; /* dsinfer itself: bit 0 */
extern const cli_command cli_command_table[];
extern const size_t cli_n_commands;
/* NULL for a name or a number that is none. */
const cli_command *cli_find_command(const char *name);
const char *cli_command_name(uint32_t bit);

enum {
    CLI_FLAG,
    CLI_U32,
    CLI_U64,
    CLI_F64,
    CLI_SIZE,
    CLI_TEXT,
    CLI_WORD,
    CLI_INDEX,
    CLI_SET,
    CLI_STOPS,   /* a text behind those that were given before */
    CLI_OPTIONAL /* a whole number that may be left out, only as --name=N; stored as 1 + N */
};
typedef struct cli_option {
    const char *name;     /* without its dashes */
    char letter;          /* 0: no short form */
    uint32_t kind;        /* CLI_FLAG ... */
    uint32_t commands;    /* that have it */
    uint32_t rare;        /* commands whose help only names it, unless --all explains it */
    size_t offset;        /* of its field in cli_options */
    double low, high;     /* limits of a number; CLI_SET: low is the value that is stored */
    const char *argument; /* name of the value; DIR and FILE are completed; NULL: takes none */
    const char *words;    /* CLI_WORD (stored as text), CLI_INDEX (stored as its place) */
    const char *en, *zh;  /* one line of help */
} cli_option;
extern const cli_option cli_option_table[];
extern const size_t cli_n_options;
const cli_option *cli_find_option(const char *name); /* NULL for a name that is none */

/* Fills `options` from the command line. CLI_OK, or CLI_USAGE after the mistake was explained. */
int cli_parse(int argc, char **argv, cli_options *options);
/* Puts what shapes an answer (temperature ... stop, not the system message) to its default. */
void cli_default_sampling(cli_options *options);

/* Strict readers of one value: the whole text or nothing. Sizes: digits, at most one point, then
 * nothing or B, K, M, G, T (also KiB ...: powers of 1024) or KB, MB, GB, TB (powers of 1000). */
bool cli_read_u64(const char *text, uint64_t *value);
bool cli_read_f64(const char *text, double *value);
bool cli_read_size(const char *text, uint64_t *value);
/* Edits (insert, delete, replace, swap neighbours) between two words; long words count as far. */
uint32_t cli_distance(const char *a, const char *b);

/* help.c: the help of a command or of cli_overview, at most 24 lines; --all: everything; --json:
 * the tables as data. */
int cli_print_help(FILE *file, const cli_command *command, const cli_options *options);
/* The command of this name; CLI_USAGE, with the nearest one named, if there is none. */
int cli_need_command(const char *name, const cli_command **command);

/* ---- Talk: stderr, in the reader's language (ui.c). Data never goes this way. */
/* Decides language and terminal: --lang among the arguments, LC_ALL, LC_MESSAGES, LANG, TERM,
 * NO_COLOR. Called first, so that mistakes in options are explained in the right language. */
void cli_ui_init(int argc, char **argv);
void cli_ui_quiet(bool quiet);
/* The text in the reader's language. */
const char *cli_tr(const char *en, const char *zh) __attribute__((format_arg(1), format_arg(2)));
/* One line on stderr: say is silent under --quiet. Control characters are made visible. */
void cli_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_hint(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A short, printable form of text from outside, for messages; returns out. */
enum { CLI_SHOWN_BYTES = 160 };
typedef struct cli_shown {
    char text[CLI_SHOWN_BYTES];
} cli_shown;
cli_shown cli_show(const char *text);
/* What stands behind the name of an option in help (help.c): " FILE", "[=N]", "". */
cli_shown cli_value_text(const cli_option *option);
/* Progress of a long stage; fits dsi_progress_fn. Draws on a terminal only. CLI_STAGE_*: stages of
 * the command itself, beside DSI_STAGE_*. */
enum { CLI_STAGE_HASH = 100, CLI_STAGE_QUANTIZE = 101 /* bytes */ };
void cli_progress(void *user, uint32_t stage, uint64_t done, uint64_t total);
void cli_progress_clear(void);
bool cli_stdout_is_terminal(void);
bool cli_stdout_has_colour(void);
bool cli_stderr_moves(void); /* a terminal that can move its cursor */

/* "20.1 MiB"; "1,234". Each returns a struct so that it can be used in an argument list. */
typedef struct cli_number {
    char text[32];
} cli_number;
cli_number cli_bytes_text(uint64_t n_bytes);
cli_number cli_count_text(uint64_t n);
cli_number cli_rate_text(double per_second); /* "-" where nothing was measured */

/* ---- UTF-8 (utf8.c). */
/* Bytes of the character at text[0] and its code point; 0 if the bytes are not UTF-8. */
size_t cli_utf8_next(const char *text, size_t n_bytes, uint32_t *code_point);
/* Place of the first byte that is not UTF-8, n_bytes if all is well. */
size_t cli_utf8_bad(const char *text, size_t n_bytes);
/* Columns on a terminal; Chinese characters take two. */
size_t cli_utf8_width(const char *text, size_t n_bytes);
bool cli_utf8_control(uint32_t code_point);
/* Control characters, and those that turn the direction or the line of what follows. */
bool cli_utf8_unsafe(uint32_t code_point);

/* ---- Data: stdout and stdin (data.c). */
typedef struct cli_bytes {
    char *data; /* cli_bytes_free releases it */
    size_t n_bytes, capacity;
} cli_bytes;
bool cli_bytes_add(cli_bytes *bytes, const void *data, size_t n_bytes); /* false: no memory */
void cli_bytes_free(cli_bytes *bytes);
/* All of stdin, or one line of it without its newline (*end: nothing was left). A status code and
 * its explanation are given as an exit code. */
int cli_read_stdin(cli_bytes *bytes);
int cli_read_line(cli_bytes *bytes, bool *end);
int cli_input_failed(int reason); /* errno code; explains it */
/* Text for a terminal: unsafe characters other than newline and tab become U+FFFD. */
void cli_print_safe(FILE *file, const char *text, size_t n_bytes);
/* Refuses text that is not UTF-8, naming the byte. `what` names the text in the message. */
int cli_check_utf8(const char *what, const char *text, size_t n_bytes);
bool cli_stdout_broken(void); /* writing failed so far */
/* Flushes stdout at the end; a reader that left is no failure, a full disk is. */
int cli_finish_stdout(int code);

/* ---- JSON (json.c): --json means one object on stdout, also when the command fails. */
void cli_json_want(bool wanted);
/* A JSON string with its quotes; bytes that are not UTF-8 become U+FFFD. */
void cli_json_text(FILE *file, const char *text, size_t n_bytes);
void cli_json_number(FILE *file, double value); /* null if it is not finite */
/* The start of every object, {"schema": 1 and no comma; then there is no object for the error. */
void cli_json_begin(FILE *file);
/* , "error": {code, name, message, hint}: what was said since the last forget. */
void cli_json_error_field(FILE *file, int code);
/* The object of a failed command, if --json was given and no object was written. */
void cli_json_report(int code);
void cli_json_forget_error(void);
/* From cli_fail, cli_error and cli_hint: the first error counts, hints behind it are joined. */
void cli_json_note_name(const char *name);
void cli_json_note_error(const char *message);
void cli_json_note_hint(const char *hint);
/* A text that `write` makes, plain or as "text" of an object with this name. */
typedef void cli_writer(FILE *file, const void *what);
int cli_write_made(const cli_options *options, const char *name, cli_writer *write,
                   const void *what);

/* ---- Model and engine (engine.c). */
/* Explains a failed call of the library and returns the exit code for its status. handle as in
 * dsi_last_error. */
int cli_fail(dsi_status status, const void *handle, const char *what);
int cli_status_exit(dsi_status status);
/* --model or the mistake that it is missing. */
int cli_need_model(const cli_options *options);
int cli_open_model(const cli_options *options, dsi_model **model, dsi_model_info *info);
/* A tokenizer and a chat template are there, or the mistake is explained. */
int cli_need_template(const cli_options *options, const dsi_model *model,
                      const dsi_model_info *info);
/* need_context: tokens this command must hold; 0: as the option or the default says. */
void cli_engine_options(const cli_options *options, const dsi_model_info *info,
                        uint32_t need_context, dsi_engine_options *engine);
int cli_plan(dsi_model *model, const dsi_engine_options *options, dsi_memory_plan *plan);
/* Prints the memory plan, then opens. */
int cli_open_engine(dsi_model *model, const dsi_engine_options *options, dsi_engine **engine);
/* The adapter of --adapter, NULL without it; its size is said. */
int cli_open_adapter(const cli_options *options, dsi_engine *engine, dsi_adapter **adapter);
uint64_t cli_peak_memory(void); /* bytes of this process at its peak, 0 if unknown */

/* ---- Manifests (manifest.c): digests of a model's files. */
/* The model's files against --manifest. CLI_OK if all match; CLI_FAILED after naming each that does
 * not. print: the verdict as data on stdout (--json: one object). */
int cli_check_manifest(const cli_options *options, bool print);
int cli_write_manifest(const cli_options *options);

/* ---- Commands. */
int cli_run(const cli_options *options);
int cli_chat(const cli_options *options);
int cli_tokenize(const cli_options *options);
int cli_inspect(const cli_options *options);
int cli_verify(const cli_options *options);
int cli_quantize(const cli_options *options);
int cli_doctor(const cli_options *options);
int cli_completion(const cli_options *options);
int cli_man(const cli_options *options);
int cli_help(const cli_options *options);

#endif
