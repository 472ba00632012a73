/* inspect.c: dsinfer inspect: what a checkpoint is, how large, and what running it would take. */
#include "../../lib/backend/cpu_path.h"
#include "../../lib/base/base.h"
#include "kernels.h"
#include <string.h>

enum { MAX_DTYPES = DSI_DTYPE_BLOCKS + 64 }; /* one more than the largest code, and some */
typedef struct dtype_sum {
    uint64_t n_tensors, n_bytes;
    dsi_cpu_path path; /* of products with weights of the type, if there are any */
} dtype_sum;

typedef struct inspected {
    const cli_options *options;
    const dsi_model *model;
    dsi_model_info info;
    dsi_memory_plan plan;
    dtype_sum dtypes[MAX_DTYPES]; /* by dsi_dtype */
    size_t name_width, shape_width;
    uint64_t kv_per_token; /* bytes in the layers of the model, without the block that drafts */
} inspected;

/* A reference bandwidth, so that two models can be compared at a glance. */
static const double bound_bytes_per_second = 100e9;

static double bound_tokens_per_second(const dsi_model_info *info) {
    return info->n_bytes_token == 0 ? 0 : bound_bytes_per_second / (double)info->n_bytes_token;
}

/* Rows of 8 bits are counted by a plan. */
static int count_kv(inspected *seen, dsi_model *model, dsi_engine_options engine) {
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    seen->kv_per_token = seen->info.n_bytes_kv;
    if (seen->options->kv_cache == DSI_KV_CACHE_BF16 || engine.kv_tokens == 0) return CLI_OK;
    engine.draft_tokens = 0;
    int code = cli_plan(model, &engine, &plan);
    seen->kv_per_token = plan.n_bytes_kv / engine.kv_tokens;
    return code;
}

static dsi_status tensor_at(const dsi_model *model, uint32_t i, dsi_tensor_info *tensor) {
    memset(tensor, 0, sizeof *tensor);
    tensor->struct_size = sizeof *tensor;
    return dsi_model_get_tensor(model, i, tensor);
}

/* "[256, 1024]" */
static cli_shown shape_text(const dsi_tensor_info *tensor) {
    cli_shown shape;
    int n = snprintf(shape.text, sizeof shape.text, "[");
    for (uint32_t i = 0; i < tensor->n_dims && i < 4; i++) {
        n += snprintf(shape.text + n, sizeof shape.text - (size_t)n, "%s%lld", i == 0 ? "" : ", ",
                      (long long)tensor->shape[i]);
    }
    snprintf(shape.text + n, sizeof shape.text - (size_t)n, "]");
    return shape;
}

static const char *file_name(const dsi_tensor_info *tensor) {
    const char *slash = strrchr(tensor->file, '/');
    return slash == NULL ? tensor->file : slash + 1;
}

/* The type of the weights of a matrix; NONE: vectors, scales and other things that lie beside them.
 * Four bits are packed in words. */
static dsi_dtype weight_type(const dsi_tensor_info *tensor) {
    const char *dot = strrchr(tensor->name, '.');
    if (tensor->n_dims < 2 || dot == NULL) return DSI_DTYPE_NONE;
    if (strcmp(dot, ".weight_packed") == 0) return DSI_DTYPE_I4;
    return strcmp(dot, ".weight") == 0 ? tensor->dtype : DSI_DTYPE_NONE;
}

static int survey(inspected *seen) {
    static const dsi_dtype operands[] = {DSI_DTYPE_BF16, DSI_DTYPE_F32, DSI_DTYPE_I8,
                                         DSI_DTYPE_BF16};
    const dsi_dtype x = operands[seen->options->activations % 4];
    cli_kernels kernels;
    cli_kernels_read(seen->options, &kernels);
    for (uint32_t i = 0; i < MAX_DTYPES; i++) seen->dtypes[i].path.kind = DSI_CPU_PATH_NONE;
    for (uint32_t i = 0; i < seen->info.n_tensors; i++) {
        dsi_tensor_info tensor;
        dsi_status status = tensor_at(seen->model, i, &tensor);
        if (status != DSI_OK) return cli_fail(status, seen->model, cli_tr("tensor", "张量"));
        dtype_sum *sum = &seen->dtypes[tensor.dtype < MAX_DTYPES ? tensor.dtype : DSI_DTYPE_NONE];
        sum->n_tensors++;
        sum->n_bytes += tensor.n_bytes;
        if (sum->path.kind == DSI_CPU_PATH_NONE && kernels.is_tested)
            sum->path = dsi_cpu_path_of(&kernels.tested.kernels, weight_type(&tensor), x);
        size_t width = cli_utf8_width(tensor.name, strlen(tensor.name));
        size_t shape = strlen(shape_text(&tensor).text);
        if (width > seen->name_width) seen->name_width = width;
        if (shape > seen->shape_width) seen->shape_width = shape;
    }
    return CLI_OK;
}

/* Key, padded by what it takes on the screen. */
static void print_key(const char *en, const char *zh) {
    const char *key = cli_tr(en, zh);
    size_t width = cli_utf8_width(key, strlen(key));
    printf("  %s%*s", key, width < 16 ? (int)(16 - width) : 1, "");
}

static void print_count(const char *en, const char *zh, uint64_t n) {
    print_key(en, zh);
    printf("%s\n", cli_count_text(n).text);
}

static void print_size(uint64_t n_bytes) {
    printf(cli_tr("%s (%s bytes)", "%s（%s 字节）"), cli_bytes_text(n_bytes).text,
           cli_count_text(n_bytes).text);
}

static void print_model(const inspected *seen) {
    const dsi_model_info *info = &seen->info;
    print_key("architecture", "架构");
    printf("%s\n", info->architecture);
    print_count("layers", "层数", info->n_layers);
    print_count("hidden size", "隐藏维度", info->hidden_size);
    print_count("heads", "注意力头", info->n_heads);
    print_count("vocabulary", "词表", info->vocab_size);
    print_count("context", "上下文", info->max_context);
    if (info->n_routed_experts != 0) {
        print_key("experts", "专家");
        printf(cli_tr("%s routed, %s per token\n", "%s 个路由专家，每 token 选 %s 个\n"),
               cli_count_text(info->n_routed_experts).text,
               cli_count_text(info->n_experts_per_token).text);
    }
    print_count("parameters", "总参数", info->n_params_total);
    print_count("  active", "  激活参数", info->n_params_active);
    if (info->n_mtp_layers != 0) {
        print_key("  MTP", "  MTP 参数");
        printf(cli_tr("%s in %u block(s)\n", "%s，%u 个块\n"),
               cli_count_text(info->n_params_mtp).text, info->n_mtp_layers);
    }
    if (*info->quantization) {
        print_key("stored as", "存储格式");
        printf("%s\n", info->quantization);
    }
    print_key("template", "对话模板");
    printf("%s\n", !info->has_tokenizer ? cli_tr("none: no tokenizer.json", "无：缺 tokenizer.json")
                   : *info->chat_template == 0 ? cli_tr("unknown", "未知")
                                               : info->chat_template);
}

/* Bytes, tensors and kernel of a type of numbers. */
static void print_dtype(const dtype_sum *sum, const char *name) {
    printf("    %-14s", name);
    print_size(sum->n_bytes);
    printf(cli_tr(", %s tensors", "，%s 个张量"), cli_count_text(sum->n_tensors).text);
    if (sum->path.kind != DSI_CPU_PATH_NONE)
        printf(cli_tr("; kernel %s, %s", "；算子 %s，%s"), sum->path.stem, sum->path.isa);
    if (sum->path.kind == DSI_CPU_PATH_APART)
        fputs(cli_tr(" (slow: blocks are looked up in tables first)", "（较慢：需先逐块查表解码）"),
              stdout);
    if (sum->path.kind == DSI_CPU_PATH_REFERENCE)
        fputs(cli_tr(" (very slow: the reference)", "（很慢：参考实现）"), stdout);
    fputc('\n', stdout);
}

static void print_bytes(const inspected *seen) {
    const dsi_model_info *info = &seen->info;
    const dsi_memory_plan *plan = &seen->plan;
    print_key("weights", "权重");
    print_size(info->n_bytes_weights);
    printf(cli_tr(", %s tensors, %s file(s)\n", "，%s 个张量，%s 个文件\n"),
           cli_count_text(info->n_tensors).text, cli_count_text(info->n_shards).text);
    for (uint32_t i = 0; i < MAX_DTYPES; i++)
        if (seen->dtypes[i].n_tensors) print_dtype(&seen->dtypes[i], dsi_dtype_name(i));
    print_key("read per token", "每 token 读取");
    print_size(info->n_bytes_token);
    fputc('\n', stdout);
    print_key("KV per token", "每 token KV");
    print_size(seen->kv_per_token);
    fputc('\n', stdout);
    print_key("bound", "速度上限");
    printf(cli_tr("at 100 GB/s: %s tok/s\n", "内存带宽 100 GB/s 时 %s tok/s\n"),
           cli_rate_text(bound_tokens_per_second(info)).text);
    print_key("memory plan", "内存计划");
    printf(cli_tr("weights %s + KV %s + scratch %s = %s; available %s\n",
                  "权重 %s + KV %s + 工作区 %s = %s；可用 %s\n"),
           cli_bytes_text(plan->n_bytes_weights).text, cli_bytes_text(plan->n_bytes_kv).text,
           cli_bytes_text(plan->n_bytes_scratch).text, cli_bytes_text(plan->n_bytes_total).text,
           plan->n_bytes_available == 0 ? "?" : cli_bytes_text(plan->n_bytes_available).text);
}

static void print_tensors(const inspected *seen) {
    for (uint32_t i = 0; i < seen->info.n_tensors && !cli_stdout_broken(); i++) {
        dsi_tensor_info tensor;
        if (tensor_at(seen->model, i, &tensor) != DSI_OK) continue;
        size_t width = cli_utf8_width(tensor.name, strlen(tensor.name));
        cli_print_safe(stdout, tensor.name, strlen(tensor.name));
        printf("%*s  %-8s %-*s %14s  ", (int)(seen->name_width - width), "",
               dsi_dtype_name(tensor.dtype), (int)seen->shape_width, shape_text(&tensor).text,
               cli_count_text(tensor.n_bytes).text);
        cli_print_safe(stdout, file_name(&tensor), strlen(file_name(&tensor)));
        fputc('\n', stdout);
    }
}

static void json_text(const char *key, const char *text) {
    printf(", \"%s\": ", key);
    cli_json_text(stdout, text, strlen(text));
}

static void json_count(const char *key, uint64_t n) {
    printf(", \"%s\": %llu", key, (unsigned long long)n);
}

static void json_tensors(const inspected *seen) {
    fputs(", \"tensors\": [", stdout);
    for (uint32_t i = 0; i < seen->info.n_tensors && !cli_stdout_broken(); i++) {
        dsi_tensor_info tensor;
        if (tensor_at(seen->model, i, &tensor) != DSI_OK) continue;
        fputs(i == 0 ? "{\"name\": " : ", {\"name\": ", stdout);
        cli_json_text(stdout, tensor.name, strlen(tensor.name));
        json_text("dtype", dsi_dtype_name(tensor.dtype));
        printf(", \"shape\": %s", shape_text(&tensor).text);
        json_count("bytes", tensor.n_bytes);
        json_count("offset", tensor.file_offset);
        json_text("file", file_name(&tensor));
        fputc('}', stdout);
    }
    fputc(']', stdout);
}

static void json_dtypes(const inspected *seen) {
    static const char *const paths[] = {"direct", "apart", "reference"};
    const char *comma = "";
    fputs(", \"dtypes\": {", stdout);
    for (uint32_t i = 0; i < MAX_DTYPES; i++) {
        const dtype_sum *sum = &seen->dtypes[i];
        if (sum->n_tensors == 0) continue;
        printf("%s\"%s\": {\"tensors\": %llu, \"bytes\": %llu", comma, dsi_dtype_name(i),
               (unsigned long long)sum->n_tensors, (unsigned long long)sum->n_bytes);
        comma = "}, ";
        if (sum->path.kind == DSI_CPU_PATH_NONE) continue;
        json_text("kernel", sum->path.stem);
        json_text("isa", sum->path.isa);
        json_text("path", paths[sum->path.kind]);
    }
    fputs(*comma ? "}}" : "}", stdout);
}

static void print_json(const inspected *seen, int code) {
    const dsi_model_info *info = &seen->info;
    cli_json_begin(stdout);
    json_text("model", seen->options->model);
    json_text("architecture", info->architecture);
    json_text("chat_template", info->chat_template);
    json_text("quantization", info->quantization);
    printf(", \"has_tokenizer\": %s", info->has_tokenizer ? "true" : "false");
    json_count("layers", info->n_layers);
    json_count("hidden_size", info->hidden_size);
    json_count("heads", info->n_heads);
    json_count("vocab_size", info->vocab_size);
    json_count("max_context", info->max_context);
    json_count("routed_experts", info->n_routed_experts);
    json_count("experts_per_token", info->n_experts_per_token);
    json_count("mtp_layers", info->n_mtp_layers);
    json_count("parameters_total", info->n_params_total);
    json_count("parameters_active", info->n_params_active);
    json_count("parameters_mtp", info->n_params_mtp);
    json_count("weight_bytes", info->n_bytes_weights);
    json_count("bytes_per_token", info->n_bytes_token);
    json_count("kv_bytes_per_token", seen->kv_per_token);
    json_count("n_tensors", info->n_tensors);
    json_count("n_files", info->n_shards);
    fputs(", \"bound_tokens_per_second_at_100_GB_per_second\": ", stdout);
    cli_json_number(stdout, bound_tokens_per_second(info));
    json_dtypes(seen);
    printf(", \"plan\": {\"weight_bytes\": %llu", (unsigned long long)seen->plan.n_bytes_weights);
    json_count("kv_bytes", seen->plan.n_bytes_kv);
    json_count("scratch_bytes", seen->plan.n_bytes_scratch);
    json_count("total_bytes", seen->plan.n_bytes_total);
    json_count("available_bytes", seen->plan.n_bytes_available);
    fputc('}', stdout);
    if (seen->options->tensors) json_tensors(seen);
    if (code != CLI_OK) cli_json_error_field(stdout, code);
    fputs("}\n", stdout);
}

/* --max-memory asks a question here, so the answer is an exit code too. */
static int check_cap(const inspected *seen) {
    uint64_t cap = seen->options->max_memory, total = seen->plan.n_bytes_total;
    if (cap == 0 || total <= cap) return CLI_OK;
    cli_error(cli_tr("the plan needs %s (%llu bytes), --max-memory allows %s (%llu bytes)",
                     "内存计划需要 %s（%llu 字节），--max-memory 只允许 %s（%llu 字节）"),
              cli_bytes_text(total).text, (unsigned long long)total, cli_bytes_text(cap).text,
              (unsigned long long)cap);
    cli_hint(cli_tr("raise --max-memory, or lower --context N or --chunk N",
                    "提高 --max-memory，或减小 --context N、--chunk N"));
    return cli_status_exit(DSI_E_MEMORY_CAP);
}

int cli_inspect(const cli_options *options) {
    inspected seen;
    memset(&seen, 0, sizeof seen);
    dsi_model *model = NULL;
    int code = cli_open_model(options, &model, &seen.info);
    if (code != CLI_OK) return code;
    seen.options = options;
    seen.model = model;
    dsi_engine_options engine_options;
    cli_engine_options(options, &seen.info, 0, &engine_options);
    engine_options.max_memory = 0; /* the plan is shown first, the cap compared afterwards */
    code = cli_plan(model, &engine_options, &seen.plan);
    if (code == CLI_OK) code = count_kv(&seen, model, engine_options);
    if (code == CLI_OK) code = survey(&seen);
    if (code == CLI_OK && options->json) {
        code = check_cap(&seen); /* its message is a field of the object */
        print_json(&seen, code);
    } else if (code == CLI_OK) {
        cli_print_safe(stdout, options->model, strlen(options->model));
        fputc('\n', stdout);
        print_model(&seen);
        print_bytes(&seen);
        if (options->tensors) print_tensors(&seen);
        code = check_cap(&seen);
    }
    dsi_model_close(model);
    return code;
}
