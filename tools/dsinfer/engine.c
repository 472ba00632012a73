/* engine.c: opening a model and an engine from the command line, and what a status means there. */
#include "../../lib/base/json.h"
#include "../../lib/base/sys.h"
#include "../../lib/model/model.h"
#include "cli.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* The one place where a status of the library becomes an exit code and a remedy. */
static const struct {
    dsi_status status;
    int code;
    const char *zh;
    const char *hint_en, *hint_zh; /* NULL: the message says enough */
} meanings[] = {
    {DSI_OK, CLI_OK, "成功", NULL, NULL},
    {DSI_E_ARG, CLI_USAGE, "参数超出范围",
     "as options: max_context is --context, chunk_tokens --chunk, n_threads --threads, kv_cache "
     "--kv-cache",
     "对应选项：max_context 为 --context，chunk_tokens 为 --chunk，n_threads 为 --threads，"
     "kv_cache 为 --kv-cache"},
    {DSI_E_NOMEM, CLI_ENVIRONMENT, "系统内存不足",
     "give less to the KV cache: --context N, --chunk N; or free memory",
     "减小 --context N 或 --chunk N，或释放内存"},
    {DSI_E_IO, CLI_ENVIRONMENT, "文件无法打开或读取", "check path and permissions: ls -lL FILE",
     "检查路径与权限：ls -lL 文件"},
    {DSI_E_FORMAT, CLI_BAD_FILE, "文件不符合格式",
     "the file may be truncated: compare its size with the source and copy it again",
     "文件可能不完整：与来源核对大小后重新复制"},
    {DSI_E_MODEL, CLI_BAD_FILE, "模型文件互相矛盾",
     "the folder must hold one complete checkpoint: config.json and its safetensors files",
     "目录须是一个完整的模型：config.json 与它的 safetensors 文件"},
    {DSI_E_UNSUPPORTED, CLI_BAD_FILE, "不支持",
     "use a supported model or option, or a newer dsinfer",
     "请换用受支持的模型或选项，或更新 dsinfer"},
    {DSI_E_MEMORY_CAP, CLI_ENVIRONMENT, "内存计划超过上限",
     "raise --max-memory, or lower --context N or --chunk N",
     "提高 --max-memory，或减小 --context N、--chunk N"},
    {DSI_E_CONTEXT, CLI_USAGE, "上下文放不下", "shorten the text or raise --context N",
     "缩短文本，或提高 --context N"},
    {DSI_E_STATE, CLI_ENVIRONMENT, "调用顺序不对", NULL, NULL},
    {DSI_E_NAN, CLI_BAD_FILE, "结果出现非有限数",
     "weights may be damaged; compare: dsinfer verify --kernels ref",
     "权重可能已损坏；请用 dsinfer verify --kernels ref 对比"},
    {DSI_E_DEVICE, CLI_ENVIRONMENT, "设备报告故障", NULL, NULL},
    {DSI_E_LOST, CLI_ENVIRONMENT, "设备已丢失", NULL, NULL},
    {DSI_E_TIMEOUT, CLI_ENVIRONMENT, "超时", NULL, NULL},
    {DSI_E_VERSION, CLI_ENVIRONMENT, "主程序与插件版本不符", NULL, NULL},
    {DSI_E_CANCELLED, CLI_ENVIRONMENT, "已取消", NULL, NULL},
    {DSI_E_BUFFER, CLI_ENVIRONMENT, "缓冲区太小", NULL, NULL},
    {DSI_E_INTERNAL, CLI_ENVIRONMENT, "内部错误，请报告", NULL, NULL},
};
enum { N_MEANINGS = sizeof meanings / sizeof meanings[0] };

int cli_status_exit(dsi_status status) {
    for (size_t i = 0; i < N_MEANINGS; i++) {
        if (meanings[i].status == status) return meanings[i].code;
    }
    return CLI_ENVIRONMENT;
}

int cli_fail(dsi_status status, const void *handle, const char *what) {
    const char *detail = dsi_last_error(handle);
    if (*detail == 0) detail = dsi_last_error(NULL);
    if (*detail == 0) detail = dsi_status_text(status);
    cli_json_note_name(dsi_status_name(status));
    for (size_t i = 0; i < N_MEANINGS; i++) {
        if (meanings[i].status != status) continue;
        cli_error(cli_tr("%s: %s%s%s", "%s：%s%s%s"), what, cli_tr("", meanings[i].zh),
                  cli_tr("", "："), detail);
        if (meanings[i].hint_en != NULL) {
            cli_hint("%s", cli_tr(meanings[i].hint_en, meanings[i].hint_zh));
        }
        return meanings[i].code;
    }
    cli_error("%s: %s (%s)", what, detail, dsi_status_name(status));
    return CLI_ENVIRONMENT;
}

int cli_need_model(const cli_options *options) {
    if (options->model != NULL && *options->model != 0) return CLI_OK;
    cli_error(cli_tr("no model was named", "没有指定模型"));
    cli_hint(cli_tr("give its folder: -m DIR, e.g. -m examples/models/tiny-gov",
                    "用 -m 给出目录，例如 -m examples/models/tiny-gov"));
    return CLI_USAGE;
}

/* dir/name into path; false if that is too long. */
static bool join(char path[4096], const char *dir, const char *name) {
    size_t n_dir = strlen(dir);
    bool slash = n_dir > 0 && dir[n_dir - 1] == '/';
    int n = snprintf(path, 4096, "%s%s%s", dir, slash ? "" : "/", name);
    return n >= 0 && n < 4096;
}

static bool not_there(const char *path) {
    struct stat facts;
    return stat(path, &facts) != 0 && (errno == ENOENT || errno == ENOTDIR);
}

/* A shard that the index names is not there. */
static bool shard_missing(const char *dir, const char *index_path) {
    enum { MAX_INDEX_BYTES = 1 << 28, MAX_NODES = 1 << 22 };
    char *text = NULL, path[4096];
    uint64_t n_bytes = 0;
    dsi_json json = {0};
    bool missing = false;
    if (dsi_sys_read_file(index_path, MAX_INDEX_BYTES, &text, &n_bytes, NULL) != DSI_OK)
        return false;
    if (dsi_json_parse(text, n_bytes, MAX_NODES, &json, NULL) == DSI_OK) {
        uint32_t map = dsi_json_get(&json, 0, "weight_map");
        uint32_t key = map == DSI_JSON_NONE ? DSI_JSON_NONE : dsi_json_first(&json, map);
        for (; key != DSI_JSON_NONE && key < json.nodes[map].end && !missing;
             key = json.nodes[key + 1].end) {
            char *name = dsi_json_string(&json, key + 1, NULL);
            missing = name != NULL && join(path, dir, name) && not_there(path);
            dsi_sys_free(name);
        }
    }
    dsi_json_free(&json);
    dsi_sys_free(text);
    return missing;
}

/* A checkpoint that is not there is a bad model; one that may not be read is the environment. */
static bool checkpoint_missing(const char *dir) {
    char config[4096], weights[4096], index[4096];
    if (not_there(dir)) return true;
    if (!join(config, dir, "config.json") || !join(weights, dir, "model.safetensors") ||
        !join(index, dir, "model.safetensors.index.json")) {
        return false;
    }
    return not_there(config) || (not_there(weights) && not_there(index)) ||
           (not_there(weights) && shard_missing(dir, index));
}

/* The folder or one of its two files is not there. */
static bool adapter_missing(const char *dir) {
    char config[4096], weights[4096];
    if (!join(config, dir, "adapter_config.json") ||
        !join(weights, dir, "adapter_model.safetensors"))
        return false;
    return not_there(config) || not_there(weights);
}

/* The folder above the model's, or around a .gguf file, is a common slip: a model inside it is
 * named. */
static void suggest_model(const char *path) {
    char config[4096], inside[4096];
    if (!join(config, path, "config.json") || !not_there(config)) return;
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.' || !join(inside, path, entry->d_name)) continue;
        bool folder = join(config, inside, "config.json") && !not_there(config);
        if (!folder && !dsi_is_gguf_name(inside)) continue;
        cli_hint(cli_tr("did you mean -m %s?", "是不是想用 -m %s？"), cli_show(inside).text);
        break;
    }
    if (dir != NULL) closedir(dir);
}

static void write_log(void *user, uint32_t level, const char *component, const char *text) {
    (void)user;
    if (level == DSI_LOG_ERROR || level == DSI_LOG_WARN) cli_say("%s: %s", component, text);
}

int cli_open_model(const cli_options *options, dsi_model **model, dsi_model_info *info) {
    int code = cli_need_model(options);
    if (code != CLI_OK) return code;
    if (options->manifest != NULL) code = cli_check_manifest(options, false);
    if (code != CLI_OK) return code;
    dsi_model_options open_options;
    dsi_model_options_init(&open_options);
    open_options.log = write_log;
    open_options.progress = cli_progress;
    dsi_status status = dsi_model_open(options->model, &open_options, model);
    cli_progress_clear();
    const char *what = cli_tr("model", "模型");
    if (status != DSI_OK) {
        code = cli_fail(status, NULL, what);
        if (status == DSI_E_IO) suggest_model(options->model);
        return status == DSI_E_IO && checkpoint_missing(options->model) ? CLI_BAD_FILE : code;
    }
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
    status = dsi_model_get_info(*model, info);
    if (status == DSI_OK) return CLI_OK;
    code = cli_fail(status, *model, what);
    dsi_model_close(*model);
    *model = NULL;
    return code;
}

int cli_need_template(const cli_options *options, const dsi_model *model,
                      const dsi_model_info *info) {
    if (info->has_tokenizer && *info->chat_template != 0) return CLI_OK;
    const dsi_message probe = {sizeof probe, DSI_ROLE_USER, "", 0};
    size_t n_tokens = 0;
    if (dsi_chat_tokens(model, &probe, 1, DSI_THINK_AUTO, NULL, 0, &n_tokens) ==
        DSI_E_UNSUPPORTED) /* the library knows what it saw and what it knows */
        cli_error(cli_tr("no way to write a prompt: %s", "无法构造提示：%s"), dsi_last_error(NULL));
    else
        cli_error(cli_tr("%s: no tokenizer.json, so there is no way to write a prompt",
                         "%s：没有 tokenizer.json，无法构造提示"),
                  cli_show(options->model).text);
    cli_hint(cli_tr("copy tokenizer.json and tokenizer_config.json from the model's source",
                    "请从模型来源补上 tokenizer.json 与 tokenizer_config.json"));
    return CLI_BAD_FILE;
}

void cli_engine_options(const cli_options *options, const dsi_model_info *info,
                        uint32_t need_context, dsi_engine_options *engine) {
    enum { CONTEXT_DEFAULT = 4096 };
    dsi_engine_options_init(engine);
    uint32_t context = info->max_context < CONTEXT_DEFAULT ? info->max_context : CONTEXT_DEFAULT;
    if (need_context != 0) context = need_context;
    if (options->context != 0) context = options->context;
    engine->max_context = context;
    engine->max_sessions = 1;
    /* One session: no pages for a second one. */
    if (context <= UINT32_MAX - DSI_PAGE_ROWS) {
        engine->kv_tokens = (context + DSI_PAGE_ROWS - 1) / DSI_PAGE_ROWS * DSI_PAGE_ROWS;
    }
    engine->n_threads = options->threads;
    engine->max_memory = options->max_memory;
    if (options->chunk != 0) engine->chunk_tokens = options->chunk;
    engine->activations = options->activations;
    engine->attention = options->attention;
    engine->pin = options->pin;
    engine->mode = options->mode;
    engine->gemm = options->gemm;
    engine->weights = options->weights;
    engine->kv_cache = options->kv_cache;
    engine->indexer = options->indexer;
    engine->draft_tokens = options->draft;
    engine->kernels = options->kernels;
}

/* Kernels that this CPU cannot run are a matter of the machine, not of the model. */
static int engine_failed(dsi_status status, const void *handle, const char *what,
                         const dsi_engine_options *options) {
    int code = cli_fail(status, handle, what);
    return status == DSI_E_UNSUPPORTED && options->kernels != NULL ? CLI_ENVIRONMENT : code;
}

int cli_plan(dsi_model *model, const dsi_engine_options *options, dsi_memory_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->struct_size = sizeof *plan;
    dsi_status status = dsi_plan(model, options, plan);
    if (status == DSI_OK) return CLI_OK;
    return engine_failed(status, model, cli_tr("memory plan", "内存计划"), options);
}

int cli_open_engine(dsi_model *model, const dsi_engine_options *options, dsi_engine **engine) {
    dsi_memory_plan plan;
    int code = cli_plan(model, options, &plan);
    if (code != CLI_OK) return code;
    cli_say(cli_tr("memory: weights %s + KV %s + scratch %s = %s; available %s",
                   "内存：权重 %s + KV %s + 工作区 %s = %s；可用 %s"),
            cli_bytes_text(plan.n_bytes_weights).text, cli_bytes_text(plan.n_bytes_kv).text,
            cli_bytes_text(plan.n_bytes_scratch).text, cli_bytes_text(plan.n_bytes_total).text,
            plan.n_bytes_available == 0 ? "?" : cli_bytes_text(plan.n_bytes_available).text);
    if (plan.n_bytes_available != 0 && plan.n_bytes_total > plan.n_bytes_available) {
        cli_hint(
            cli_tr("more than is available: weights will be read from disk again and again; "
                   "lower --context, or use a machine with more memory",
                   "超过可用内存：权重会反复从磁盘读取；请减小 --context，或换内存更大的机器"));
    }
    dsi_status status = dsi_engine_open(model, options, engine);
    cli_progress_clear();
    if (status == DSI_OK) return CLI_OK;
    return engine_failed(status, NULL, cli_tr("engine", "引擎"), options);
}

int cli_open_adapter(const cli_options *options, dsi_engine *engine, dsi_adapter **adapter) {
    dsi_adapter_info info = {.struct_size = sizeof info};
    if (options->adapter == NULL) return CLI_OK;
    dsi_status status = dsi_adapter_open(engine, options->adapter, NULL, adapter);
    const char *what = cli_tr("adapter", "适配器");
    if (status == DSI_E_IO && adapter_missing(options->adapter)) {
        cli_fail(status, NULL, what);
        return CLI_BAD_FILE;
    }
    if (status == DSI_E_MODEL) {
        cli_json_note_name(dsi_status_name(status));
        cli_error(cli_tr("adapter: %s", "适配器：与模型不符：%s"), dsi_last_error(NULL));
        cli_hint(cli_tr("name the model that the adapter was trained on: -m DIR",
                        "请用 -m 指定训练该适配器所用的模型"));
        return CLI_BAD_FILE;
    }
    if (status != DSI_OK) return cli_fail(status, NULL, what);
    status = dsi_adapter_get_info(*adapter, &info);
    if (status != DSI_OK) return cli_fail(status, *adapter, what);
    cli_say(cli_tr("adapter: %s, rank %u, %s weights (%s), %s",
                   "适配器：%s，秩 %u，%s 个权重（%s），%s"),
            cli_show(info.name).text, info.max_rank, cli_count_text(info.n_weights).text,
            info.targets, cli_bytes_text(info.n_bytes).text);
    return CLI_OK;
}

/* VmHWM, as ru_maxrss still counts the program that this process was before exec. */
uint64_t cli_peak_memory(void) {
    uint64_t kib = 0;
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) kib = strtoull(line + 6, NULL, 10);
    }
    if (file != NULL) fclose(file);
    struct rusage usage;
    if (kib == 0 && getrusage(RUSAGE_SELF, &usage) == 0) kib = (uint64_t)usage.ru_maxrss;
    return kib * 1024;
}
