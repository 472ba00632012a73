/* json.c: what --json writes, the error object of a failed command included. */
#include "cli.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct {
    bool wanted;  /* --json */
    bool written; /* an object stands on stdout */
    char name[32], message[1024], hint[1024];
} said;

void cli_json_want(bool wanted) { said.wanted = wanted; }

void cli_json_text(FILE *file, const char *text, size_t n_bytes) {
    uint32_t c = 0;
    fputc('"', file);
    for (size_t at = 0; at < n_bytes;) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        if (n == 0) {
            fputs("\xef\xbf\xbd", file);
            at++;
            continue;
        }
        if (c == '"' || c == '\\') {
            fprintf(file, "\\%c", (int)c);
        } else if (c == '\n') {
            fputs("\\n", file);
        } else if (cli_utf8_control(c)) {
            fprintf(file, "\\u%04x", (unsigned)c);
        } else {
            fwrite(text + at, 1, n, file);
        }
        at += n;
    }
    fputc('"', file);
}

void cli_json_number(FILE *file, double value) {
    if (isfinite(value)) {
        fprintf(file, "%.9g", value);
    } else {
        fputs("null", file);
    }
}

void cli_json_begin(FILE *file) {
    if (file == stdout) said.written = true;
    fputs("{\"schema\": 1", file);
}

/* ---- Errors: what cli_error and cli_hint said first is kept for the object. */

void cli_json_note_name(const char *name) {
    if (said.message[0] == 0) snprintf(said.name, sizeof said.name, "%s", name);
}

void cli_json_note_error(const char *message) {
    if (said.message[0] == 0) snprintf(said.message, sizeof said.message, "%s", message);
}

void cli_json_note_hint(const char *hint) {
    size_t n = strlen(said.hint);
    if (said.message[0] == 0) return;
    snprintf(said.hint + n, sizeof said.hint - n, "%s%s", n == 0 ? "" : "\n", hint);
}

void cli_json_forget_error(void) {
    said.written = false;
    said.name[0] = said.message[0] = said.hint[0] = 0;
}

static const char *code_name(int code) {
    static const char *const names[] = {"OK", "FAILED", "USAGE", "ENVIRONMENT", "BAD_FILE"};
    return code >= 0 && code < 5 ? names[code] : "UNKNOWN";
}

void cli_json_error_field(FILE *file, int code) {
    fprintf(file, ", \"error\": {\"code\": %d, \"name\": \"%s\", \"message\": ", code,
            said.name[0] != 0 ? said.name : code_name(code));
    cli_json_text(file, said.message, strlen(said.message));
    fputs(", \"hint\": ", file);
    if (said.hint[0] == 0) {
        fputs("null", file);
    } else {
        cli_json_text(file, said.hint, strlen(said.hint));
    }
    fputc('}', file);
}

void cli_json_report(int code) {
    if (!said.wanted || said.written || said.message[0] == 0) return;
    cli_json_begin(stdout);
    cli_json_error_field(stdout, code);
    fputs("}\n", stdout);
}

int cli_write_made(const cli_options *options, const char *name, cli_writer *write,
                   const void *what) {
    if (!options->json) {
        write(stdout, what);
        return CLI_OK;
    }
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *memory = open_memstream(&text, &n_bytes);
    if (memory != NULL) write(memory, what);
    if (memory == NULL || fclose(memory) != 0) {
        free(text);
        cli_error("%s", dsi_status_text(DSI_E_NOMEM));
        return CLI_ENVIRONMENT;
    }
    cli_json_begin(stdout);
    fputs(", \"name\": ", stdout);
    cli_json_text(stdout, name, strlen(name));
    fputs(", \"text\": ", stdout);
    cli_json_text(stdout, text, n_bytes);
    fputs("}\n", stdout);
    free(text);
    return CLI_OK;
}
