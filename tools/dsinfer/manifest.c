/* manifest.c: a manifest lists the files of a model with their digests, in the lines of sha256sum
 * or, for SM3, in the tagged lines of cksum. It is checked before a model is opened. */
#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include "cli.h"
#include "digest.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_MANIFEST_BYTES = 16 << 20,
    MAX_INDEX_BYTES = 100000000, /* as lib/model */
    MAX_INDEX_NODES = 2001024,
    MAX_ENTRIES = 65536,
    MAX_NAME_BYTES = 1024,
    PATH_BYTES = 4096
};

/* How a file stands to the manifest. */
enum { MATCHES, MISMATCH, MISSING, EXTRA, UNREADABLE };
static const char *const verdict_names[] = {"ok", "mismatch", "missing", "extra", "unreadable"};

typedef struct entry {
    char *name;                          /* relative to the model's folder */
    char expected[DIGEST_HEX_CHARS + 1]; /* "": not in the manifest */
    uint32_t verdict, job;               /* job: place in jobs, if the file is there */
} entry;

typedef struct manifest {
    const char *path, *dir;
    uint32_t kind; /* DIGEST_* */
    bool has_kind;
    entry *entries;
    uint32_t n_entries, capacity;
    digest_job *jobs;
    uint32_t n_jobs;
    uint64_t n_bytes; /* of the files that are there */
    uint32_t counts[UNREADABLE + 1];
} manifest;

static int no_memory(void) {
    cli_error("%s", dsi_status_text(DSI_E_NOMEM));
    return CLI_ENVIRONMENT;
}

static void manifest_free(manifest *m) {
    for (uint32_t i = 0; i < m->n_entries; i++) dsi_sys_free(m->entries[i].name);
    for (uint32_t i = 0; i < m->n_jobs; i++) dsi_sys_free(m->jobs[i].path);
    dsi_sys_free(m->entries);
    dsi_sys_free(m->jobs);
}

/* ---- Entries -------------------------------------------------------------------------------- */

static entry *add_entry(manifest *m, const char *name, size_t n_bytes) {
    if (m->n_entries == m->capacity) {
        uint32_t capacity = m->capacity != 0 ? 2 * m->capacity : 64;
        entry *grown = dsi_sys_realloc(m->entries, capacity, sizeof *grown);
        if (grown == NULL) return NULL;
        m->entries = grown;
        m->capacity = capacity;
    }
    entry *made = &m->entries[m->n_entries];
    memset(made, 0, sizeof *made);
    made->name = dsi_sys_strdup(name, n_bytes);
    if (made->name == NULL) return NULL;
    m->n_entries++;
    return made;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

/* The first n entries are sorted. */
static entry *find_entry(const manifest *m, uint32_t n, const char *name) {
    const entry key = {.name = (char *)(uintptr_t)name};
    return n == 0 ? NULL : bsearch(&key, m->entries, n, sizeof key, by_name);
}

/* A name below the model's folder: not absolute, no ".." on the way, nothing invisible. */
static bool good_name(const char *name, size_t n_bytes) {
    if (n_bytes == 0 || n_bytes > MAX_NAME_BYTES || name[0] == '/') return false;
    for (size_t i = 0; i < n_bytes; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f || name[i] == '\\') return false;
    }
    for (size_t at = 0; at < n_bytes;) {
        const char *slash = memchr(name + at, '/', n_bytes - at);
        size_t n = slash != NULL ? (size_t)(slash - name) - at : n_bytes - at;
        if (n == 0 || (n == 2 && memcmp(name + at, "..", 2) == 0)) return false;
        at += n + 1;
    }
    return name[n_bytes - 1] != '/';
}

/* ---- Reading a manifest --------------------------------------------------------------------- */

static int bad_line(const manifest *m, uint32_t line, const char *why) {
    cli_error(cli_tr("--manifest: %s: line %u: %s", "--manifest：%s：第 %u 行：%s"),
              cli_show(m->path).text, line, why);
    cli_hint(cli_tr("write it again from a trusted copy: dsinfer verify -m DIR --write-manifest "
                    "FILE",
                    "请用可信的副本重新生成：dsinfer verify -m 目录 --write-manifest 文件"));
    return CLI_BAD_FILE;
}

static bool is_hex(const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        bool digit = text[i] >= '0' && text[i] <= '9';
        char letter = (char)(text[i] | 0x20);
        if (!digit && (letter < 'a' || letter > 'f')) return false;
    }
    return true;
}

/* Splits "HEX  NAME", "HEX *NAME" or "SM3 (NAME) = HEX"; false if it is none of them. */
static bool split_line(const char *text, size_t n_bytes, uint32_t *kind, const char **hex,
                       const char **name, size_t *n_name) {
    enum { HEX = DIGEST_HEX_CHARS };
    for (uint32_t i = DIGEST_SHA256; i <= DIGEST_SM3; i++) {
        size_t n_tag = strlen(digest_name(i));
        if (n_bytes < n_tag + HEX + 6 || memcmp(text, digest_name(i), n_tag) != 0) continue;
        const char *end = text + n_bytes - HEX;
        if (memcmp(text + n_tag, " (", 2) != 0 || memcmp(end - 4, ") = ", 4) != 0) continue;
        *kind = i;
        *hex = end;
        *name = text + n_tag + 2;
        *n_name = n_bytes - HEX - 4 - n_tag - 2;
        return is_hex(end, HEX);
    }
    if (n_bytes < HEX + 3 || text[HEX] != ' ') return false;
    if (text[HEX + 1] != ' ' && text[HEX + 1] != '*') return false;
    *kind = DIGEST_SHA256;
    *hex = text;
    *name = text + HEX + 2;
    *n_name = n_bytes - HEX - 2;
    return is_hex(text, HEX);
}

static int read_line(manifest *m, uint32_t line, const char *text, size_t n_bytes) {
    const char *hex, *name;
    size_t n_name;
    uint32_t kind;
    if (!split_line(text, n_bytes, &kind, &hex, &name, &n_name)) {
        return bad_line(m, line,
                        cli_tr("neither \"HEX  FILE\" (sha256sum) nor \"SM3 (FILE) = HEX\"",
                               "既不是“HEX  文件”（sha256sum），也不是“SM3 (文件) = HEX”"));
    }
    if (n_name > 2 && memcmp(name, "./", 2) == 0) name += 2, n_name -= 2;
    if (!good_name(name, n_name)) {
        return bad_line(
            m, line,
            cli_tr("the file name is not one below the model's folder", "文件名不在模型目录之内"));
    }
    if (m->has_kind && m->kind != kind) {
        return bad_line(m, line, cli_tr("SHA256 and SM3 are mixed", "SHA256 与 SM3 混用"));
    }
    if (m->n_entries == MAX_ENTRIES) {
        return bad_line(m, line, cli_tr("more than 65,536 files", "超过 65,536 个文件"));
    }
    entry *made = add_entry(m, name, n_name);
    if (made == NULL) return no_memory();
    m->kind = kind;
    m->has_kind = true;
    for (size_t i = 0; i < DIGEST_HEX_CHARS; i++) {
        made->expected[i] = (char)(hex[i] >= 'A' && hex[i] <= 'F' ? hex[i] | 0x20 : hex[i]);
    }
    return CLI_OK;
}

static int read_text(manifest *m, const char *text, uint64_t n_bytes) {
    uint32_t line = 1;
    for (uint64_t at = 0; at < n_bytes; line++) {
        const char *newline = memchr(text + at, '\n', n_bytes - at);
        uint64_t end = newline != NULL ? (uint64_t)(newline - text) : n_bytes, n = end - at;
        if (n > 0 && text[end - 1] == '\r') n--;
        int code = n == 0 || text[at] == '#' ? CLI_OK : read_line(m, line, text + at, n);
        if (code != CLI_OK) return code;
        at = end + 1;
    }
    if (m->n_entries == 0) return bad_line(m, line, cli_tr("it lists no file", "没有列出文件"));
    qsort(m->entries, m->n_entries, sizeof *m->entries, by_name);
    for (uint32_t i = 1; i < m->n_entries; i++) {
        if (by_name(&m->entries[i - 1], &m->entries[i]) != 0) continue;
        cli_error(cli_tr("--manifest: %s: %s is listed twice", "--manifest：%s：%s 列出了两次"),
                  cli_show(m->path).text, cli_show(m->entries[i].name).text);
        cli_hint(cli_tr("take one of the two lines away", "请去掉其中一行"));
        return CLI_BAD_FILE;
    }
    return CLI_OK;
}

static int read_manifest(manifest *m, const char *hash) {
    dsi_error error = {0};
    char *text = NULL;
    uint64_t n_bytes = 0;
    dsi_status status = dsi_sys_read_file(m->path, MAX_MANIFEST_BYTES, &text, &n_bytes, &error);
    if (status != DSI_OK) {
        cli_error("--manifest: %s", error.text);
        cli_hint(cli_tr("check path and permissions", "检查路径与权限"));
        return cli_status_exit(status);
    }
    int code = read_text(m, text, n_bytes);
    dsi_sys_free(text);
    uint32_t wanted = hash != NULL && strcmp(hash, "sm3") == 0 ? DIGEST_SM3 : DIGEST_SHA256;
    if (code == CLI_OK && hash != NULL && wanted != m->kind) {
        cli_error(cli_tr("--hash: %s holds %s digests, not %s", "--hash：%s 中是 %s，不是 %s"),
                  cli_show(m->path).text, digest_name(m->kind), digest_name(wanted));
        cli_hint(cli_tr("leave --hash out, or name the other manifest",
                        "去掉 --hash，或换用另一份清单"));
        code = CLI_FAILED;
    }
    return code;
}

/* ---- The files that the library reads ------------------------------------------------------- */

static bool path_of(const manifest *m, const char *name, char path[PATH_BYTES]) {
    int n = snprintf(path, PATH_BYTES, "%s/%s", m->dir, name);
    return n > 0 && n < PATH_BYTES;
}

static bool is_there(const manifest *m, const char *name) {
    char path[PATH_BYTES];
    struct stat facts;
    return path_of(m, name, path) && stat(path, &facts) == 0;
}

/* A file that the library reads: added if the manifest (n_sorted entries) has it not. Several
 * shards may be added twice; unique() follows. */
static bool use_file(manifest *m, uint32_t n_sorted, const char *name) {
    return find_entry(m, n_sorted, name) != NULL || add_entry(m, name, strlen(name)) != NULL;
}

static void unique(manifest *m) {
    uint32_t n = 0;
    qsort(m->entries, m->n_entries, sizeof *m->entries, by_name);
    for (uint32_t i = 0; i < m->n_entries; i++) {
        if (n > 0 && by_name(&m->entries[n - 1], &m->entries[i]) == 0) {
            dsi_sys_free(m->entries[i].name);
        } else {
            m->entries[n++] = m->entries[i];
        }
    }
    m->n_entries = n;
}

/* The shards that the index names. An index that cannot be read adds none: its own digest, or the
 * opening of the model, tells. */
static bool use_shards(manifest *m, uint32_t n_sorted, const char *index) {
    char path[PATH_BYTES], *text = NULL;
    uint64_t n_bytes = 0;
    dsi_json json = {0};
    bool good = true;
    if (!path_of(m, index, path) ||
        dsi_sys_read_file(path, MAX_INDEX_BYTES, &text, &n_bytes, NULL) != DSI_OK) {
        return true;
    }
    uint32_t map = DSI_JSON_NONE;
    if (dsi_json_parse(text, n_bytes, MAX_INDEX_NODES, &json, NULL) == DSI_OK) {
        map = dsi_json_get(&json, 0, "weight_map");
    }
    bool is_map = map != DSI_JSON_NONE && json.nodes[map].kind == DSI_JSON_OBJECT;
    char *last = NULL; /* neighbours mostly lie in one shard */
    for (uint32_t key = map + 1; is_map && good && key < json.nodes[map].end;
         key = json.nodes[key + 1].end) {
        uint64_t n_name = 0;
        char *name = dsi_json_string(&json, key + 1, &n_name);
        bool plain = name != NULL && good_name(name, n_name) && strchr(name, '/') == NULL;
        bool again = plain && last != NULL && strcmp(name, last) == 0;
        if (plain && !again) good = use_file(m, n_sorted, name);
        dsi_sys_free(plain ? last : name);
        if (plain) last = name;
    }
    dsi_sys_free(last);
    dsi_json_free(&json);
    dsi_sys_free(text);
    return good;
}

static int use_files(manifest *m) {
    static const char single[] = "model.safetensors", index[] = "model.safetensors.index.json";
    static const char *const small[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json"};
    uint32_t n_sorted = m->n_entries;
    bool good = true;
    if (!dsi_sys_is_dir(m->dir)) {
        cli_error(cli_tr("model: %s: no such folder", "模型：%s：没有这个目录"),
                  cli_show(m->dir).text);
        cli_hint(cli_tr("give the folder that holds config.json", "请给出含 config.json 的目录"));
        return CLI_BAD_FILE;
    }
    for (size_t i = 0; i < sizeof small / sizeof small[0]; i++) {
        if (is_there(m, small[i])) good = good && use_file(m, n_sorted, small[i]);
    }
    /* The order of the library: the single file wins, and the index beside it is not read. */
    if (is_there(m, single)) {
        good = good && use_file(m, n_sorted, single);
    } else if (is_there(m, index)) {
        good = good && use_file(m, n_sorted, index) && use_shards(m, n_sorted, index);
    }
    if (m->n_entries > 0) unique(m);
    return good ? CLI_OK : no_memory();
}

/* ---- Comparing ------------------------------------------------------------------------------ */

static int add_job(manifest *m, entry *e) {
    char path[PATH_BYTES];
    struct stat facts;
    e->job = m->n_jobs;
    e->verdict = MISSING;
    if (!path_of(m, e->name, path) || stat(path, &facts) != 0) return CLI_OK;
    digest_job *job = &m->jobs[m->n_jobs];
    job->path = dsi_sys_strdup(path, strlen(path));
    if (job->path == NULL) return no_memory();
    m->n_jobs++;
    job->n_bytes = (uint64_t)facts.st_size;
    m->n_bytes += job->n_bytes;
    e->verdict = MATCHES;
    return CLI_OK;
}

/* Digests of every entry that is there; then a verdict for each. */
static int hash_entries(manifest *m, uint32_t n_threads) {
    m->jobs = dsi_sys_calloc(m->n_entries, sizeof *m->jobs);
    if (m->jobs == NULL) return no_memory();
    int code = CLI_OK;
    for (uint32_t i = 0; i < m->n_entries && code == CLI_OK; i++) {
        code = add_job(m, &m->entries[i]);
    }
    if (code == CLI_OK) code = digest_files(m->jobs, m->n_jobs, m->kind, n_threads);
    for (uint32_t i = 0; i < m->n_entries && code == CLI_OK; i++) {
        entry *e = &m->entries[i];
        if (e->verdict != MISSING && m->jobs[e->job].code != 0) e->verdict = UNREADABLE;
        if (e->verdict == MATCHES && e->expected[0] == 0) e->verdict = EXTRA;
        if (e->verdict == MATCHES && strcmp(e->expected, m->jobs[e->job].hex) != 0) {
            e->verdict = MISMATCH;
        }
        m->counts[e->verdict]++;
    }
    return code;
}

static void report(const manifest *m, const entry *e) {
    const char *actual = e->verdict == MISSING ? "" : m->jobs[e->job].hex;
    cli_shown shown = cli_show(e->name);
    const char *name = shown.text, *tag = digest_name(m->kind);
    if (e->verdict == MISMATCH) {
        cli_error(cli_tr("%s: %s is %s, the manifest says %s", "%s：%s 为 %s，清单中是 %s"), name,
                  tag, actual, e->expected);
    } else if (e->verdict == MISSING) {
        cli_error(cli_tr("%s: missing; the manifest lists it with %s %s",
                         "%s：缺少；清单列有它，%s 为 %s"),
                  name, tag, e->expected);
    } else if (e->verdict == EXTRA) {
        cli_error(cli_tr("%s: not in the manifest, and the model reads it; its %s is %s",
                         "%s：清单中没有，而模型会读取它；其 %s 为 %s"),
                  name, tag, actual);
    } else if (e->verdict == UNREADABLE) {
        int code = m->jobs[e->job].code;
        cli_error("%s: %s", name,
                  code != DIGEST_NOT_REGULAR ? strerror(code)
                                             : cli_tr("not a regular file", "不是普通文件"));
    }
}

static void print_json(const manifest *m, int code) {
    cli_json_begin(stdout);
    fputs(", \"manifest\": ", stdout);
    cli_json_text(stdout, m->path, strlen(m->path));
    printf(", \"hash\": \"%s\", \"files\": %u, \"bytes\": %llu, \"ok\": %s, \"problems\": [",
           m->kind == DIGEST_SM3 ? "sm3" : "sha256", m->n_entries, (unsigned long long)m->n_bytes,
           m->counts[MATCHES] == m->n_entries ? "true" : "false");
    const char *comma = "";
    for (uint32_t i = 0; i < m->n_entries; i++) {
        const entry *e = &m->entries[i];
        if (e->verdict == MATCHES) continue;
        printf("%s{\"file\": ", comma);
        cli_json_text(stdout, e->name, strlen(e->name));
        printf(", \"problem\": \"%s\", \"expected\": \"%s\", \"actual\": \"%s\"}",
               verdict_names[e->verdict], e->expected,
               e->verdict == MISSING ? "" : m->jobs[e->job].hex);
        comma = ", ";
    }
    fputc(']', stdout);
    if (code != CLI_OK) cli_json_error_field(stdout, code);
    fputs("}\n", stdout);
}

static int judge(const manifest *m) {
    for (uint32_t i = 0; i < m->n_entries; i++) report(m, &m->entries[i]);
    uint32_t n_bad = m->n_entries - m->counts[MATCHES];
    if (n_bad == 0) return CLI_OK;
    cli_error(cli_tr("%s: %u of %u files differ from the manifest %s",
                     "%s：%u / %u 个文件与清单 %s 不符"),
              cli_show(m->dir).text, n_bad, m->n_entries, cli_show(m->path).text);
    cli_hint(cli_tr("copy these files again from the source; nothing was computed",
                    "请从来源重新复制这些文件；尚未进行任何计算"));
    return m->counts[UNREADABLE] == n_bad ? CLI_ENVIRONMENT : CLI_FAILED;
}

int cli_check_manifest(const cli_options *options, bool print) {
    manifest m = {.path = options->manifest, .dir = options->model};
    int code = read_manifest(&m, options->hash);
    if (code == CLI_OK) code = use_files(&m);
    if (code == CLI_OK) code = hash_entries(&m, options->threads);
    if (code == CLI_OK) {
        code = judge(&m);
        if (print && options->json) print_json(&m, code);
        if (print && !options->json && code == CLI_OK) {
            printf(cli_tr("%s: %u files, %s, %s: PASS\n", "%s：%u 个文件，%s，%s：PASS\n"),
                   cli_show(m.path).text, m.n_entries, cli_bytes_text(m.n_bytes).text,
                   digest_name(m.kind));
        }
    }
    manifest_free(&m);
    return code;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static int write_failed(const char *path, int code) {
    cli_error("--write-manifest: %s: %s", cli_show(path).text, strerror(code));
    cli_hint(cli_tr("name a file in a folder that can be written and has room",
                    "请指定可写且有空间的目录中的文件"));
    return CLI_ENVIRONMENT;
}

static void write_lines(const manifest *m, FILE *file) {
    for (uint32_t i = 0; i < m->n_entries; i++) {
        const entry *e = &m->entries[i];
        const char *hex = m->jobs[e->job].hex;
        if (m->kind == DIGEST_SHA256) {
            fprintf(file, "%s  %s\n", hex, e->name);
        } else {
            fprintf(file, "%s (%s) = %s\n", digest_name(m->kind), e->name, hex);
        }
    }
}

/* Beside its place first: a full disk leaves the old manifest whole. */
static int write_manifest(const manifest *m) {
    char part[PATH_BYTES];
    int n = snprintf(part, sizeof part, "%s.part", m->path);
    if (n < 0 || n >= (int)sizeof part) return write_failed(m->path, ENAMETOOLONG);
    FILE *file = fopen(part, "w");
    if (file == NULL) return write_failed(part, errno);
    write_lines(m, file);
    bool good = fflush(file) == 0 && fsync(fileno(file)) == 0;
    int code = good ? 0 : errno;
    if (fclose(file) != 0 && code == 0) code = errno;
    if (code == 0 && rename(part, m->path) != 0) code = errno;
    if (code == 0) return CLI_OK;
    unlink(part);
    return write_failed(m->path, code);
}

/* Every file of the model must be there and readable: half a manifest would pass half a model. */
static int all_there(const manifest *m) {
    bool weights = false;
    for (uint32_t i = 0; i < m->n_entries; i++) {
        const entry *e = &m->entries[i];
        size_t n = strlen(e->name);
        weights = weights || (n > 12 && strcmp(e->name + n - 12, ".safetensors") == 0);
        if (e->verdict == EXTRA) continue; /* "not in the manifest": there is none yet */
        if (e->verdict == MISSING) {
            cli_error(cli_tr("%s: missing; the index names it", "%s：缺少；索引中有它"),
                      cli_show(e->name).text);
            cli_hint(cli_tr("complete the model first", "请先补全模型"));
            return CLI_BAD_FILE;
        }
        report(m, e);
        cli_hint(cli_tr("check path and permissions", "检查路径与权限"));
        return CLI_ENVIRONMENT;
    }
    if (weights) return CLI_OK;
    cli_error(cli_tr("%s: holds no weights (.safetensors)", "%s：没有权重文件（.safetensors）"),
              cli_show(m->dir).text);
    cli_hint(cli_tr("give the folder that holds config.json", "请给出含 config.json 的目录"));
    return CLI_BAD_FILE;
}

int cli_write_manifest(const cli_options *options) {
    bool sm3 = options->hash != NULL && strcmp(options->hash, "sm3") == 0;
    manifest m = {.path = options->write_manifest,
                  .dir = options->model,
                  .kind = sm3 ? DIGEST_SM3 : DIGEST_SHA256};
    bool to_stdout = strcmp(m.path, "-") == 0;
    int code = use_files(&m);
    if (code == CLI_OK && m.n_entries == 0) code = all_there(&m);
    if (code == CLI_OK) code = hash_entries(&m, options->threads);
    if (code == CLI_OK) code = all_there(&m);
    if (code == CLI_OK && to_stdout) write_lines(&m, stdout);
    if (code == CLI_OK && !to_stdout) {
        code = write_manifest(&m);
        if (code == CLI_OK) {
            cli_say(cli_tr("%s: %u files, %s, %s", "%s：%u 个文件，%s，%s"), cli_show(m.path).text,
                    m.n_entries, cli_bytes_text(m.n_bytes).text, digest_name(m.kind));
        }
    }
    manifest_free(&m);
    return code;
}
