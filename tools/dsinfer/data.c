/* data.c: what goes in and out as data: stdin, stdout. */
#include "../../lib/base/base.h"
#include "../../lib/base/sys.h"
#include "cli.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* No text of this tool is longer: a runaway pipe must end in a message, not in the last page. */
#define INPUT_LIMIT (UINT64_C(1) << 30)

bool cli_bytes_add(cli_bytes *bytes, const void *data, size_t n_bytes) {
    uint64_t need;
    if (!dsi_add_ok(bytes->n_bytes, n_bytes, &need)) return false;
    if (need > bytes->capacity || bytes->data == NULL) {
        uint64_t capacity = need < 4096 ? 4096 : need + need / 2;
        char *grown = dsi_sys_realloc(bytes->data, capacity, 1);
        if (grown == NULL) return false;
        bytes->data = grown;
        bytes->capacity = capacity;
    }
    if (n_bytes > 0) memcpy(bytes->data + bytes->n_bytes, data, n_bytes);
    bytes->n_bytes = need;
    return true;
}

void cli_bytes_free(cli_bytes *bytes) {
    dsi_sys_free(bytes->data);
    memset(bytes, 0, sizeof *bytes);
}

int cli_input_failed(int reason) {
    const char *why = reason == ENOMEM ? dsi_status_text(DSI_E_NOMEM) : strerror(reason);
    cli_error(cli_tr("stdin: %s", "标准输入无法读取：%s"), why);
    cli_hint(
        cli_tr("give a text: ... < FILE, or PROGRAM | ...", "请给出文本：…… < 文件，或 程序 | ……"));
    return CLI_ENVIRONMENT;
}

static int input_too_long(void) {
    cli_error(cli_tr("stdin: a text of more than %s", "标准输入：一段文本超过 %s"),
              cli_bytes_text(INPUT_LIMIT).text);
    cli_hint(cli_tr("split it", "请拆分后再输入"));
    return CLI_USAGE;
}

int cli_read_stdin(cli_bytes *bytes) {
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0) {
        if (bytes->n_bytes + n > INPUT_LIMIT) return input_too_long();
        if (!cli_bytes_add(bytes, block, n)) return cli_input_failed(ENOMEM);
    }
    if (ferror(stdin)) return cli_input_failed(errno);
    return CLI_OK;
}

int cli_read_line(cli_bytes *bytes, bool *end) {
    char block[4096];
    bytes->n_bytes = 0;
    *end = true;
    for (;;) {
        /* getc_unlocked into a block: lines may hold zero bytes, so fgets does not do. */
        size_t n = 0;
        int c = 0;
        while (n < sizeof block && (c = getc_unlocked(stdin)) != EOF && c != '\n') {
            block[n++] = (char)c;
        }
        if (n > 0 || c == '\n') *end = false;
        if (bytes->n_bytes + n > INPUT_LIMIT) return input_too_long();
        if (!cli_bytes_add(bytes, block, n)) return cli_input_failed(ENOMEM);
        if (c == EOF || c == '\n') break;
    }
    if (ferror(stdin)) return cli_input_failed(errno);
    return CLI_OK;
}

void cli_print_safe(FILE *file, const char *text, size_t n_bytes) {
    uint32_t c = 0;
    for (size_t at = 0; at < n_bytes;) {
        size_t n = cli_utf8_next(text + at, n_bytes - at, &c);
        if (n == 0 || (cli_utf8_unsafe(c) && c != '\n' && c != '\t')) {
            fputs("\xef\xbf\xbd", file);
        } else {
            fwrite(text + at, 1, n, file);
        }
        at += n == 0 ? 1 : n;
    }
}

int cli_check_utf8(const char *what, const char *text, size_t n_bytes) {
    size_t at = cli_utf8_bad(text, n_bytes);
    if (at == n_bytes) return CLI_OK;
    cli_error(cli_tr("%s: byte %zu (0x%02x) is not UTF-8", "%s：第 %zu 字节（0x%02x）不是 UTF-8"),
              what, at, (uint8_t)text[at]);
    cli_hint(cli_tr("bytes count from 0; convert the text, e.g. iconv -f GB18030 -t UTF-8",
                    "字节从 0 数起；请先转换编码，例如 iconv -f GB18030 -t UTF-8"));
    return CLI_USAGE;
}

bool cli_stdout_broken(void) { return ferror(stdout) != 0; }

int cli_finish_stdout(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    int reason = errno;
    /* stdio keeps no error number of an earlier write: ask the pipe itself. */
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if (poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0) return code;
    cli_error(cli_tr("stdout could not be written: %s", "标准输出无法写入：%s"), strerror(reason));
    cli_hint(cli_tr("is the disk full, or stdout closed?", "磁盘是否已满，或标准输出已关闭？"));
    return CLI_ENVIRONMENT;
}
