/* quantize_files.c: the output of `dsinfer quantize`, so that a run that was killed can be taken up
 * again. Files are written as NAME.part and renamed when they are whole; quantize.journal, or for a
 * GGUF NAME.gguf.journal, holds a line for each weight whose bytes are on the disk; config.json
 * comes last, so what is unfinished is no model to anybody. */
#include "quantize.h"

#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, HEAD_BYTES = 512, MAX_JOURNAL_BYTES = 64 << 20 };
/* What a run that was killed, or a power cut, may have to do again: a 32nd, within these. */
static const uint64_t least_sync = UINT64_C(1) << 19, most_sync = UINT64_C(1) << 30;

static int io_error(const char *what, const char *path) {
    int reason = errno;
    cli_error("%s %s: %s", what, cli_show(path).text, strerror(reason));
    if (reason == ENOSPC || reason == EDQUOT)
        cli_hint(cli_tr("free some space and run the same command again: it goes on from here",
                        "请腾出空间后重新运行同一命令：会从此处继续"));
    return CLI_ENVIRONMENT;
}
static int no_memory(void) {
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}

static bool join(char path[PATH_BYTES], const char *folder, const char *name, const char *tail) {
    int n = snprintf(path, PATH_BYTES, "%s/%s%s", folder, name, tail);
    return n > 0 && n < PATH_BYTES;
}
static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool journal_path(char path[PATH_BYTES], const quantize_plan *plan, const char *out) {
    const char *tail = plan->form->blocks ? ".journal" : "/quantize.journal";
    int n = snprintf(path, PATH_BYTES, "%s%s", out, tail);
    return n > 0 && n < PATH_BYTES;
}
/* File `file` of the output; tail: ".part" until it is whole. */
static bool file_path(char path[PATH_BYTES], const quantize_plan *plan, uint32_t file,
                      const char *out, const char *tail) {
    if (!plan->form->blocks) return join(path, out, base_name(plan->from->shards[file].path), tail);
    int n = snprintf(path, PATH_BYTES, "%s%s", out, tail);
    return n > 0 && n < PATH_BYTES;
}

static int write_all(int fd, const void *data, uint64_t n, uint64_t offset) {
    const uint8_t *from = data;
    while (n > 0) {
        ssize_t written = pwrite(fd, from, n, (off_t)offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return -1;
        from += written, offset += (uint64_t)written, n -= (uint64_t)written;
    }
    return 0;
}

/* ---- The journal ---------------------------------------------------------------------------- */

/* What the run is about: another source, form or choice gives another line. */
static void head_line(const quantize_plan *plan, char line[HEAD_BYTES]) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < plan->from->n_tensors; i++) {
        const dsi_file_tensor *t = &plan->from->tensors[i];
        for (const char *c = t->name; *c; c++) sum = dsi_mix64(sum ^ (uint8_t)*c);
        sum = dsi_mix64(sum ^ t->file_offset) ^ dsi_mix64(t->n_bytes + t->dtype);
    }
    snprintf(line, HEAD_BYTES,
             "dsinfer quantize 2 %s keep %.200s calibrate %016" PRIx64 " tensors %u bytes %" PRIu64
             " sum %016" PRIx64 "\n",
             plan->form->name, plan->keep ? plan->keep : "-", plan->calibration_sum,
             plan->from->n_tensors, plan->n_bytes_in, sum);
}

/* Lines behind the first: number of a source tensor, its error or -1. The last one may be cut. */
static void read_lines(const quantize_plan *plan, const char *text, quantize_output *out) {
    for (const char *end; (end = strchr(text, '\n')) != NULL; text = end + 1) {
        char *rest;
        unsigned long i = strtoul(text, &rest, 10);
        float error = strtof(rest, NULL);
        if (rest == text || i >= plan->from->n_tensors || out->done[i]) continue;
        out->done[i] = true;
        out->errors[i] = error;
        out->n_done++;
    }
}

static int take_up(const quantize_plan *plan, const char *path, quantize_output *out) {
    char head[HEAD_BYTES], *text = NULL;
    uint64_t n_bytes = 0;
    dsi_error error = {0};
    head_line(plan, head);
    dsi_status status = dsi_sys_read_file(path, MAX_JOURNAL_BYTES, &text, &n_bytes, &error);
    if (status != DSI_OK) {
        cli_error("%s", error.text);
        return cli_status_exit(status);
    }
    size_t n_head = strlen(head);
    bool same = n_bytes >= n_head && memcmp(text, head, n_head) == 0;
    if (same) read_lines(plan, text + n_head, out);
    dsi_sys_free(text);
    if (same) return CLI_OK;
    cli_error(cli_tr("%s was begun with another model or other options",
                     "%s 是用另一个模型或其他选项开始的"),
              cli_show(out->folder).text);
    cli_hint(cli_tr("give the same ones, or another --out", "请用相同的参数，或另选 --out"));
    return CLI_USAGE;
}

static bool is_empty(const char *folder) {
    DIR *dir = opendir(folder);
    bool empty = true;
    if (!dir) return false;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) empty = false;
    closedir(dir);
    return empty;
}

/* The folder in which a GGUF is made. */
static void parent_of(const char *path, char folder[PATH_BYTES]) {
    size_t n = (size_t)(base_name(path) - path);
    if (n > 1) n--;
    snprintf(folder, PATH_BYTES, "%.*s", n ? (int)n : 1, n ? path : ".");
}

static int begin(const quantize_plan *plan, const char *path, const quantize_output *out) {
    char head[HEAD_BYTES], folder[PATH_BYTES];
    struct statvfs disk;
    if (plan->form->blocks)
        parent_of(out->folder, folder);
    else
        snprintf(folder, sizeof folder, "%s", out->folder);
    if (!plan->form->blocks && !is_empty(out->folder)) {
        cli_error(cli_tr("%s is not empty", "%s 不是空目录"), cli_show(out->folder).text);
        cli_hint(cli_tr("give a folder that is not there yet", "请给出尚不存在的目录"));
        return CLI_USAGE;
    }
    uint64_t free_bytes = UINT64_MAX;
    if (statvfs(folder, &disk) == 0) free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (free_bytes < plan->n_bytes_out) {
        cli_error(
            cli_tr("%s: the model takes %s, the disk has %s free", "%s：模型需要 %s，磁盘只剩 %s"),
            cli_show(out->folder).text, cli_bytes_text(plan->n_bytes_out).text,
            cli_bytes_text(free_bytes).text);
        cli_hint(cli_tr("free some space or give a folder on another disk",
                        "请腾出空间，或换用其他磁盘上的目录"));
        return CLI_ENVIRONMENT;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    head_line(plan, head);
    bool good = fd >= 0 && write_all(fd, head, strlen(head), 0) == 0 && fsync(fd) == 0;
    if (fd >= 0 && close(fd) != 0) good = false;
    return good ? CLI_OK : io_error(cli_tr("cannot write", "无法写入"), path);
}

/* What is there only when all is done. */
static bool last_path(char path[PATH_BYTES], const quantize_plan *plan, const char *out) {
    return plan->form->blocks ? file_path(path, plan, 0, out, "")
                              : join(path, out, "config.json", "");
}

int quantize_open_output(const quantize_plan *plan, const char *folder, quantize_output *out) {
    char path[PATH_BYTES], last[PATH_BYTES];
    *out = (quantize_output){.folder = folder, .journal = -1, .file = -1};
    out->sync_bytes = plan->n_bytes_out / 32;
    if (out->sync_bytes < least_sync) out->sync_bytes = least_sync;
    if (out->sync_bytes > most_sync) out->sync_bytes = most_sync;
    out->done = dsi_sys_calloc(plan->from->n_tensors, sizeof *out->done);
    out->errors = dsi_sys_calloc(plan->from->n_tensors, sizeof *out->errors);
    if (!out->done || !out->errors) return no_memory();
    if (!journal_path(path, plan, folder) || !last_path(last, plan, folder)) {
        cli_error(cli_tr("--out: the path is too long", "--out：路径过长"));
        return CLI_USAGE;
    }
    if (!plan->form->blocks && mkdir(folder, 0777) != 0 && errno != EEXIST)
        return io_error(cli_tr("cannot create", "无法创建"), folder);
    if (dsi_sys_is_file(last) && !dsi_sys_is_file(path)) {
        cli_error(plan->form->blocks ? cli_tr("%s is there already", "%s 已存在")
                                     : cli_tr("%s holds a model already", "%s 中已有模型"),
                  cli_show(folder).text);
        cli_hint(cli_tr("give another --out", "请另选 --out"));
        return CLI_USAGE;
    }
    int code = dsi_sys_is_file(path) ? take_up(plan, path, out) : begin(plan, path, out);
    if (code != CLI_OK) return code;
    out->journal = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (out->journal < 0) return io_error(cli_tr("cannot write", "无法写入"), path);
    /* behind a line that was cut off; the reader passes over it */
    if (write(out->journal, "\n", 1) != 1)
        return io_error(cli_tr("cannot write", "无法写入"), path);
    return CLI_OK;
}

/* Bytes first, then the lines that say so. */
static int sync_lines(quantize_output *out) {
    if (out->lines.n_bytes == 0) return CLI_OK;
    const char *data = out->lines.data;
    size_t n = out->lines.n_bytes;
    bool good = fdatasync(out->file) == 0;
    while (good && n > 0) {
        ssize_t written = write(out->journal, data, n);
        if (written < 0 && errno == EINTR) continue;
        good = written > 0;
        if (good) data += written, n -= (size_t)written;
    }
    if (!good || fdatasync(out->journal) != 0)
        return io_error(cli_tr("cannot write to", "无法写入"), out->folder);
    out->lines.n_bytes = 0;
    out->n_unsynced = 0;
    return CLI_OK;
}

int quantize_note(quantize_output *out, uint32_t i, double error, uint64_t n_bytes) {
    char line[64];
    int n = snprintf(line, sizeof line, "%u %.6g\n", i, error);
    out->done[i] = true;
    out->errors[i] = (float)error;
    out->n_unsynced += n_bytes;
    if (!cli_bytes_add(&out->lines, line, (size_t)n)) return no_memory();
    /* the disk begins now, so that there is little to wait for later; a failure shows then */
    (void)sync_file_range(out->file, 0, 0, SYNC_FILE_RANGE_WRITE);
    return out->n_unsynced < out->sync_bytes ? CLI_OK : sync_lines(out);
}

/* ---- Shards --------------------------------------------------------------------------------- */

static void add_format(cli_bytes *bytes, bool *good, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void add_format(cli_bytes *bytes, bool *good, const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    *good = *good && n >= 0 && (size_t)n < sizeof text && cli_bytes_add(bytes, text, (size_t)n);
}

/* The header of a safetensors file, its length in front. */
static bool make_header(const quantize_plan *plan, uint32_t shard, cli_bytes *header) {
    bool good = cli_bytes_add(header, "01234567", 8);
    add_format(header, &good, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = plan->first_of_shard[shard]; i < plan->first_of_shard[shard + 1]; i++) {
        const quantize_tensor *t = &plan->tensors[i];
        char name[640];
        if (!quantize_name(plan, t, name, sizeof name)) return false;
        add_format(header, &good, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name,
                   dsi_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->n_dims; d++)
            add_format(header, &good, "%s%" PRId64, d ? "," : "", t->shape[d]);
        add_format(header, &good, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->offset,
                   t->offset + t->n_bytes);
    }
    add_format(header, &good, "}");
    while (good && header->n_bytes % 64 != 0) good = cli_bytes_add(header, " ", 1);
    for (size_t i = 0; good && i < 8; i++)
        header->data[i] = (char)((header->n_bytes - 8) >> (8 * i) & 255);
    return good;
}

static uint64_t data_bytes(const quantize_plan *plan, uint32_t file) {
    uint64_t n = 0;
    if (plan->form->blocks) return plan->n_bytes_out;
    for (uint32_t i = plan->first_of_shard[file]; i < plan->first_of_shard[file + 1]; i++)
        n += plan->tensors[i].n_bytes;
    return n;
}

int quantize_open_file(const quantize_plan *plan, uint32_t file, quantize_output *out,
                       bool *whole) {
    char path[PATH_BYTES], part[PATH_BYTES];
    int code = CLI_OK;
    if (!file_path(path, plan, file, out->folder, "") ||
        !file_path(part, plan, file, out->folder, ".part"))
        return no_memory();
    *whole = dsi_sys_is_file(path);
    if (*whole) return CLI_OK;
    cli_bytes header = {0};
    if (plan->form->blocks)
        code = quantize_gguf_header(plan, &header, &out->header_bytes, out->folder);
    else if (make_header(plan, file, &header))
        out->header_bytes = header.n_bytes;
    else
        code = no_memory();
    if (code == CLI_OK) {
        uint64_t n_bytes = out->header_bytes + data_bytes(plan, file);
        out->file = open(part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (out->file < 0 || ftruncate(out->file, (off_t)n_bytes) != 0 ||
            write_all(out->file, header.data, header.n_bytes, 0) != 0)
            code = io_error(cli_tr("cannot write", "无法写入"), part);
    }
    cli_bytes_free(&header);
    return code;
}

int quantize_write(const quantize_output *out, const void *data, uint64_t n_bytes,
                   uint64_t offset) {
    return write_all(out->file, data, n_bytes, out->header_bytes + offset);
}

int quantize_close_file(const quantize_plan *plan, uint32_t file, quantize_output *out) {
    char path[PATH_BYTES], part[PATH_BYTES];
    int code = sync_lines(out);
    if (!file_path(path, plan, file, out->folder, "") ||
        !file_path(part, plan, file, out->folder, ".part"))
        return no_memory();
    bool good = code == CLI_OK && fsync(out->file) == 0;
    if (close(out->file) != 0) good = false;
    out->file = -1;
    if (code != CLI_OK) return code;
    if (good && rename(part, path) == 0) return CLI_OK;
    return io_error(cli_tr("cannot write", "无法写入"), path);
}

/* ---- What makes it a model ------------------------------------------------------------------ */

static int write_text(const char *folder, const char *name, const void *data, uint64_t n_bytes) {
    char path[PATH_BYTES];
    dsi_sys_writer writer = {.fd = -1};
    dsi_error error = {0};
    if (!join(path, folder, name, "")) return no_memory();
    dsi_status status = dsi_sys_writer_open(path, &writer, &error);
    if (status == DSI_OK) status = dsi_sys_writer_add(&writer, data, n_bytes, &error);
    if (status == DSI_OK) status = dsi_sys_writer_commit(&writer, &error);
    dsi_sys_writer_abort(&writer);
    if (status == DSI_OK && chmod(path, 0644) == 0) return CLI_OK;
    cli_error("%s", status != DSI_OK ? error.text : strerror(errno));
    return CLI_ENVIRONMENT;
}

static int write_index(const quantize_plan *plan, const quantize_output *out) {
    cli_bytes text = {0};
    bool good = true;
    if (plan->from->n_shards == 1 &&
        strcmp(base_name(plan->from->shards[0].path), "model.safetensors") == 0)
        return CLI_OK;
    add_format(&text, &good, "{\n  \"metadata\": {\"total_size\": %" PRIu64 "},\n",
               plan->n_bytes_out);
    add_format(&text, &good, "  \"weight_map\": {\n");
    for (uint32_t i = 0; i < plan->n_tensors; i++) {
        const quantize_tensor *t = &plan->tensors[i];
        char name[640];
        good = good && quantize_name(plan, t, name, sizeof name);
        if (!good) break;
        add_format(&text, &good, "    \"%s\": \"%s\"%s\n", name,
                   base_name(plan->from->shards[plan->from->tensors[t->source].shard].path),
                   i + 1 < plan->n_tensors ? "," : "");
    }
    add_format(&text, &good, "  }\n}\n");
    int code =
        good ? write_text(out->folder, "model.safetensors.index.json", text.data, text.n_bytes)
             : no_memory();
    cli_bytes_free(&text);
    return code;
}

static int copy_small_files(const quantize_plan *plan, const quantize_output *out) {
    static const char *const names[] = {"tokenizer.json",         "tokenizer_config.json",
                                        "generation_config.json", "special_tokens_map.json",
                                        "chat_template.jinja",    "LICENSE"};
    enum { MAX_BYTES = 128 << 20 };
    int code = CLI_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && code == CLI_OK; i++) {
        char path[PATH_BYTES], *text = NULL;
        uint64_t n_bytes = 0;
        dsi_error error = {0};
        if (!join(path, plan->from->dir, names[i], "")) return no_memory();
        if (!dsi_sys_is_file(path)) continue;
        dsi_status status = dsi_sys_read_file(path, MAX_BYTES, &text, &n_bytes, &error);
        if (status == DSI_OK) {
            code = write_text(out->folder, names[i], text, n_bytes);
        } else {
            cli_error("%s", error.text);
            code = cli_status_exit(status);
        }
        dsi_sys_free(text);
    }
    return code;
}

/* The list of modules that are left plain, as JSON strings. */
static void ignored(const quantize_plan *plan, char list[512]) {
    const char *indexer = plan->config->arch->indexer ? ", \"re:.*indexer.*\"" : "";
    size_t n = (size_t)snprintf(list, 512, "\"lm_head\", \"re:.*mlp.gate$\"%s", indexer);
    if (!plan->keep) return;
    n += (size_t)snprintf(list + n, 512 - n, ", \"re:.*");
    for (const char *c = plan->keep; *c && n < 480; c++) {
        if (*c == '.') list[n++] = '\\', list[n++] = '\\'; /* a point, in JSON */
        list[n++] = *c;
    }
    snprintf(list + n, 512 - n, ".*\"");
}

/* config.json with another quantization_config, everything else as it stands. */
static bool change_config(const quantize_plan *plan, const char *text, const dsi_json *json,
                          cli_bytes *to) {
    const char *begin = strchr(text, '{') + 1, *end = strrchr(text, '}');
    const char *cut = end, *rest = end; /* what lies between them goes */
    const dsi_json_node *nodes = json->nodes;
    for (uint32_t key = 1; key < nodes[0].end; key = nodes[key + 1].end) {
        if (!dsi_json_string_is(json, key, "quantization_config")) continue;
        uint32_t next = nodes[key + 1].end;
        cut = text + nodes[key].offset - 1;
        rest = next < nodes[0].end ? text + nodes[next].offset - 1 : end;
        while (rest == end && cut > begin && *cut != ',') cut--; /* it was the last one */
    }
    char list[512];
    bool good = cli_bytes_add(to, text, (size_t)(begin - text));
    ignored(plan, list);
    add_format(to, &good, "\n  \"quantization_config\": ");
    const char *hole = strstr(plan->form->config, "%s");
    good = good && cli_bytes_add(to, plan->form->config, (size_t)(hole - plan->form->config)) &&
           cli_bytes_add(to, list, strlen(list)) && cli_bytes_add(to, hole + 2, strlen(hole + 2));
    return good && cli_bytes_add(to, ",", 1) && cli_bytes_add(to, begin, (size_t)(cut - begin)) &&
           cli_bytes_add(to, rest, strlen(rest));
}

static int write_config(const quantize_plan *plan, const quantize_output *out) {
    enum { MAX_BYTES = 4 << 20, MAX_NODES = 1 << 18 };
    char path[PATH_BYTES], *text = NULL;
    uint64_t n_bytes = 0;
    dsi_error error = {0};
    dsi_json json = {0};
    cli_bytes changed = {0};
    if (!join(path, plan->from->dir, "config.json", "")) return no_memory();
    dsi_status status = dsi_sys_read_file(path, MAX_BYTES, &text, &n_bytes, &error);
    if (status == DSI_OK) status = dsi_json_parse(text, n_bytes, MAX_NODES, &json, &error);
    int code = CLI_OK;
    if (status != DSI_OK) {
        cli_error("%s", error.text);
        code = cli_status_exit(status);
    } else if (!change_config(plan, text, &json, &changed)) {
        code = no_memory();
    } else {
        code = write_text(out->folder, "config.json", changed.data, changed.n_bytes);
    }
    cli_bytes_free(&changed);
    dsi_json_free(&json);
    dsi_sys_free(text);
    return code;
}

int quantize_finish(const quantize_plan *plan, quantize_output *out) {
    char path[PATH_BYTES];
    int code = CLI_OK;
    if (!plan->form->blocks) {
        code = write_index(plan, out);
        if (code == CLI_OK) code = copy_small_files(plan, out);
        if (code == CLI_OK) code = write_config(plan, out);
    }
    if (code != CLI_OK) return code;
    if (journal_path(path, plan, out->folder) && unlink(path) == 0) return CLI_OK;
    return io_error(cli_tr("cannot remove", "无法删除"), path);
}

void quantize_discard_output(const quantize_plan *plan, const quantize_output *out) {
    char path[PATH_BYTES];
    if (journal_path(path, plan, out->folder)) unlink(path);
    if (!plan->form->blocks) rmdir(out->folder);
}

void quantize_close_output(quantize_output *out) {
    if (out->file >= 0) close(out->file);
    if (out->journal >= 0) close(out->journal);
    cli_bytes_free(&out->lines);
    dsi_sys_free(out->done);
    dsi_sys_free(out->errors);
    *out = (quantize_output){.journal = -1, .file = -1};
}
