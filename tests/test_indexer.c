/* test_indexer.c: the indexer of DeepSeek-V3.2: its operators against plain loops, attention to
 * chosen rows against attention to a context of those rows alone, and models that have one: equal
 * to V3 while a context is short, to their golden logits with the rounding of DeepSeek's code. */
#include "model_files.h"
#include "op_bench.h"
#include "session_tools.h"

#define V32 "tests/data/golden/v32"

/* ---- The choice -------------------------------------------------------------------------------
 */

enum { MAX_CONTEXT = MAX_PAGES * DSI_PAGE_ROWS };

/* Small whole numbers: every product and sum is exact, and many scores are equal. */
static void make_whole(dsi_tensor *t, int most) {
    for (int64_t i = 0; i < t->ne[0] * t->ne[1]; i++) {
        const float value = (float)(int)(uniform() * (most + 1));
        const uint16_t narrow = dsi_f32_to_bf16(value);
        if (t->dtype == DSI_DTYPE_F32)
            memcpy(t->buf->data + 4 * i, &value, 4);
        else
            memcpy(t->buf->data + 2 * i, &narrow, 2);
    }
}

/* Does row `a` come before row `b` in the order of the choice? */
static bool comes_before(const double *score, int64_t a, int64_t b) {
    if (isnan(score[a]) != isnan(score[b])) return isnan(score[a]);
    if (!isnan(score[a]) && score[a] != score[b]) return score[a] > score[b];
    return a < b;
}

/* The chosen rows of row r by counting, for each, how many come before it. */
static int64_t choose_plainly(const dsi_batch *b, uint32_t r, const dsi_tensor *q,
                              const dsi_tensor *weights, const dsi_tensor *keys, int64_t dim,
                              int64_t top_k, int32_t *chosen) {
    static double score[MAX_CONTEXT];
    const int64_t n = b->position[r] + 1, n_heads = weights->ne[0];
    for (int64_t s = 0; s < n; s++) {
        score[s] = 0;
        for (int64_t h = 0; h < n_heads; h++) {
            double dot = 0;
            for (int64_t i = 0; i < dim; i++)
                dot += get(q, r, h * dim + i) * get(keys, dsi_cpu_cached_row(b, r, s), i);
            score[s] += get(weights, r, h) * (dot < 0 ? 0 : dot);
        }
    }
    int64_t n_chosen = 0;
    for (int64_t s = 0; s < n; s++) {
        int64_t before = 0;
        for (int64_t i = 0; i < n; i++) before += i != s && comes_before(score, i, s);
        if (before < top_k) chosen[n_chosen++] = (int32_t)s;
    }
    return n_chosen;
}

static void check_choice(const char *kernels, uint32_t threads, dsi_dtype act, int64_t heads,
                         int64_t dim, int64_t top_k, bool nan) {
    static const int32_t lengths[3] = {390, 65, 131}, counts[3] = {21, 1, 9};
    rows r;
    make_rows(&r, 3, lengths, counts, false);
    bench b = open_bench(threads, kernels);
    dsi_tensor q = make(&b, DSI_DTYPE_F32, heads * dim, r.batch.n_rows, 0);
    dsi_tensor weights = make(&b, DSI_DTYPE_F32, heads, r.batch.n_rows, 0);
    dsi_tensor keys = make(&b, act, dim, 3 * MAX_PAGES * DSI_PAGE_ROWS, 0);
    dsi_tensor out = make(&b, DSI_DTYPE_F32, top_k, r.batch.n_rows, 0);
    out.dtype = DSI_DTYPE_I32;
    make_whole(&q, 2);
    make_whole(&weights, 3);
    make_whole(&keys, 2);
    if (nan) /* one key of the first sequence: whoever sees it chooses it */
        for (int64_t i = 0; i < dim; i++)
            memset((uint8_t *)dsi_cpu_at(&keys, dsi_cpu_cached_row(&r.batch, 0, 5), i), 0xFF,
                   (size_t)dsi_element_bytes(act));
    memset(out.buf->data, 0x77, (size_t)(top_k * r.batch.n_rows * 4));
    dsi_attr_index attr = {sizeof attr, (uint32_t)heads, (uint32_t)dim, 0, &r.batch};
    run(&b, DSI_OP_INDEX_TOPK, (const dsi_tensor *[]){&q, &weights, &keys}, 3, &out, &attr);
    for (uint32_t row = 0; row < r.batch.n_rows; row++) {
        static int32_t truth[MAX_CONTEXT];
        const int32_t *chosen = dsi_cpu_at(&out, row, 0);
        if (r.position[row] < top_k) { /* nothing to choose: left alone */
            for (int64_t i = 0; i < top_k; i++) assert_int_equal(chosen[i], 0x77777777);
            continue;
        }
        assert_int_equal(choose_plainly(&r.batch, row, &q, &weights, &keys, dim, top_k, truth),
                         top_k);
        for (int64_t i = 0; i < top_k; i++)
            if (chosen[i] != truth[i])
                fail_msg("%s, %u threads, %lld heads of %lld, row %u: place %lld of %lld is %d, "
                         "must be %d",
                         kernels, threads, (long long)heads, (long long)dim, row, (long long)i,
                         (long long)top_k, chosen[i], truth[i]);
    }
    close_bench(&b);
}

static void test_choice(void **state) {
    (void)state;
    static const int64_t top_k[] = {1, 2, 7, 24, 63, 64, 65, 127, 128, 129, 389};
    const char *kernels[KERNEL_SETS];
    const size_t n = kernel_sets(kernels);
    for (size_t i = 0; i < sizeof top_k / sizeof top_k[0]; i++)
        for (size_t k = 0; k < n; k++)
            check_choice(kernels[k], 1 + (uint32_t)i % 3, i % 2 ? DSI_DTYPE_F32 : DSI_DTYPE_BF16, 3,
                         32, top_k[i], i % 3 == 2);
    static const int64_t shapes[][2] = {{1, 2}, {1, 64}, {5, 40}, {64, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_choice(best_kernels(), 2, DSI_DTYPE_BF16, shapes[i][0], shapes[i][1], 24, false);
}

/* ---- Norm and rounding of its keys ------------------------------------------------------------
 */

static void test_layer_norm(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 2, 3, 64, 127, 128, 129};
    for (size_t c = 0; c < sizeof sizes / sizeof sizes[0]; c++) {
        const int64_t n = sizes[c];
        bench b = open_bench(1, "ref");
        dsi_tensor x = make(&b, DSI_DTYPE_F32, n, 3, 5), w = make(&b, DSI_DTYPE_F32, n, 1, 1);
        dsi_tensor bias = make(&b, DSI_DTYPE_F32, n, 1, 1), y = make(&b, DSI_DTYPE_F32, n, 3, 0);
        dsi_attr_norm attr = {sizeof attr, 1e-6f};
        run(&b, DSI_OP_LAYER_NORM, (const dsi_tensor *[]){&x, &w, &bias}, 3, &y, &attr);
        for (int64_t r = 0; r < 3; r++) {
            double mean = 0, variance = 0;
            for (int64_t i = 0; i < n; i++) mean += get(&x, r, i) / (double)n;
            for (int64_t i = 0; i < n; i++)
                variance += (get(&x, r, i) - mean) * (get(&x, r, i) - mean) / (double)n;
            for (int64_t i = 0; i < n; i++) {
                const double value = (get(&x, r, i) - mean) / sqrt(variance + (double)attr.eps);
                near("layer_norm", get(&y, r, i), value * get(&w, 0, i) + get(&bias, 0, i), 1e-6);
            }
        }
        close_bench(&b);
    }
}

/* Element (i, j) of Sylvester's matrix is the parity of the bits that i and j share. */
static double hadamard_sum(const dsi_tensor *x, int64_t row, int64_t first, int64_t n, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++)
        sum += get(x, row, first + j) * (__builtin_parityll((unsigned long long)(i & j)) ? -1 : 1);
    return sum / sqrt((double)n);
}
static void test_rounding(void **state) {
    (void)state;
    static const int64_t dims[] = {1, 2, 64, 128};
    for (size_t c = 0; c < sizeof dims / sizeof dims[0]; c++) {
        const int64_t n = dims[c], heads = 3;
        bench b = open_bench(2, "ref");
        dsi_tensor x = make(&b, DSI_DTYPE_F32, heads * n, 5, 3),
                   y = make(&b, DSI_DTYPE_F32, heads * n, 5, 0);
        memcpy(y.buf->data, x.buf->data, (size_t)(heads * n * 5 * 4));
        dsi_attr_index attr = {sizeof attr, (uint32_t)heads, (uint32_t)n, 0, NULL};
        run(&b, DSI_OP_INDEX_ROUND, (const dsi_tensor *[]){&y}, 1, &y, &attr);
        for (int64_t r = 0; r < 5; r++)
            for (int64_t h = 0; h < heads; h++) {
                double most = 1e-4;
                for (int64_t i = 0; i < n; i++)
                    most = fmax(most, fabs(hadamard_sum(&x, r, h * n, n, i)));
                const double scale = exp2(ceil(log2(most / 448)));
                for (int64_t i = 0; i < n; i++) {
                    const double truth = hadamard_sum(&x, r, h * n, n, i);
                    const double step =
                        fmax(fabs(truth) * 0x1p-4, scale * 0x1p-10); /* half of one */
                    near("index_round", get(&y, r, h * n + i), truth, step * (1 + 1e-5));
                    const double code = get(&y, r, h * n + i) / scale; /* it is one of E4M3 */
                    assert_true((double)dsi_e4m3_to_f32(dsi_f32_to_e4m3((float)code)) == code);
                }
            }
        close_bench(&b);
    }
}

static void test_refused(void **state) {
    (void)state;
    bench b = open_bench(1, "ref");
    dsi_tensor x = make(&b, DSI_DTYPE_F32, 48, 1, 1);
    dsi_tensor *out = &x;
    dsi_attr_index attr = {sizeof attr, 1, 48, 0, NULL};
    dsi_op op = {sizeof op, DSI_OP_INDEX_ROUND, 1, 1, (const dsi_tensor *[]){&x}, &out, &attr};
    uint64_t workspace = 0;
    assert_int_equal(b.backend->op_plan(b.dev, &op, &workspace), DSI_E_UNSUPPORTED);
    assert_non_null(strstr(b.backend->last_error(b.dev), "heads of a power of two"));
    close_bench(&b);
}

/* ---- Attention to chosen rows -----------------------------------------------------------------
 */

enum { HEADS = 19, RANK = 160, ROPE = 8, CACHED = MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS };
static const dsi_attr_mla MLA = {sizeof MLA, HEADS, 16, ROPE, 16, RANK, 0.1f, 0, NULL, NULL};

static dsi_tensor make_pages(bench *b, dsi_dtype dtype) {
    const int64_t row_bytes = dsi_kv_row_of(1, RANK, ROPE).n_bytes;
    if (!dsi_cpu_is_coded(dtype)) return make(b, dtype, RANK + ROPE, CACHED, 1);
    dsi_tensor src = make(b, DSI_DTYPE_F32, RANK + ROPE, CACHED, 1);
    dsi_tensor slots = make(b, DSI_DTYPE_F32, 2, CACHED, 0);
    dsi_tensor pages = make(b, DSI_DTYPE_F32, row_bytes / 4, CACHED, 0);
    pages.dtype = dtype, pages.ne[0] = pages.stride[1] = row_bytes;
    slots.dtype = DSI_DTYPE_I64, slots.ne[0] = slots.stride[1] = 1;
    for (int64_t i = 0; i < CACHED; i++) memcpy(slots.buf->data + 8 * i, &i, 8);
    dsi_attr_kv_write attr = {sizeof attr, 0, 1, RANK};
    run(b, DSI_OP_KV_WRITE, (const dsi_tensor *[]){&src, &slots}, 2, &pages, &attr);
    return pages;
}

/* Row `row` of the batch as a sequence of its own, whose context is the chosen rows. */
static void attend_to_copies(bench *b, const rows *r, uint32_t row, const dsi_tensor *q,
                             const dsi_tensor *pages, const int32_t *chosen, int64_t top_k,
                             dsi_tensor *alone) {
    static int32_t table[MAX_PAGES], zero, position;
    const uint8_t absorbed = 0;
    const int64_t row_bytes = pages->stride[1] * dsi_dtype_bytes(pages->dtype);
    dsi_tensor copy = *pages;
    copy.buf = NULL;
    assert_int_equal(b->backend->buf_alloc(b->dev, DSI_BUF_DEVICE,
                                           (uint64_t)(MAX_PAGES * DSI_PAGE_ROWS * row_bytes),
                                           &copy.buf),
                     DSI_OK);
    for (int32_t p = 0; p < MAX_PAGES; p++) table[p] = p;
    for (int64_t i = 0; i < top_k; i++)
        memcpy(copy.buf->data + i * row_bytes,
               pages->buf->data + dsi_cpu_cached_row(&r->batch, row, chosen[i]) * row_bytes,
               (size_t)row_bytes);
    position = (int32_t)top_k - 1;
    dsi_batch batch = {sizeof batch, 1, 1, MAX_PAGES, &zero, &position, &absorbed, table};
    dsi_attr_mla attr = MLA;
    attr.batch = &batch;
    dsi_tensor q_row = rows_of(q, row, 1);
    run(b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q_row, &copy}, 2, alone, &attr);
    b->backend->buf_free(copy.buf);
}

static void check_chosen(const char *kernels, uint32_t threads, dsi_dtype dtype, int64_t top_k) {
    static const int32_t lengths[3] = {2900, 140, 3074}, counts[3] = {1, 9, 5};
    rows r;
    make_rows(&r, 3, lengths, counts, false);
    bench b = open_bench(threads, kernels);
    const dsi_dtype act = dsi_cpu_kv_act(dtype);
    dsi_tensor q = make(&b, act, HEADS * (RANK + ROPE), r.batch.n_rows, 1);
    dsi_tensor pages = make_pages(&b, dtype);
    dsi_tensor o = make(&b, act, HEADS * RANK, r.batch.n_rows, 0);
    dsi_tensor alone = make(&b, act, HEADS * RANK, 1, 0);
    dsi_tensor selected = make(&b, DSI_DTYPE_F32, top_k, r.batch.n_rows, 0);
    selected.dtype = DSI_DTYPE_I32;
    memset(selected.buf->data, 0x77, (size_t)(top_k * r.batch.n_rows * 4));
    for (uint32_t row = 0; row < r.batch.n_rows; row++) {
        int32_t *chosen = dsi_cpu_at(&selected, row, 0);
        for (int64_t i = 0; i < top_k && r.position[row] >= top_k; i++)
            chosen[i] = (int32_t)(i * (r.position[row] + 1) / top_k);
    }
    dsi_attr_mla attr = MLA;
    attr.batch = &r.batch;
    run(&b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q, &pages, &selected}, 3, &o, &attr);
    for (uint32_t row = 0; row < r.batch.n_rows; row++) {
        if (r.position[row] >= top_k) {
            attend_to_copies(&b, &r, row, &q, &pages, dsi_cpu_at(&selected, row, 0), top_k, &alone);
        } else {
            dsi_batch part = part_of(&r.batch, row, 1);
            dsi_tensor q_row = rows_of(&q, row, 1);
            attr.batch = &part;
            run(&b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q_row, &pages}, 2, &alone, &attr);
        }
        same_bits(&o, &alone, row, dsi_dtype_name(dtype));
    }
    close_bench(&b);
}

static void test_chosen_rows(void **state) {
    (void)state;
    static const int64_t top_k[] = {1, 63, 64, 65, 136, 1024, 1025, 2100};
    static const dsi_dtype dtypes[] = {DSI_DTYPE_BF16, DSI_DTYPE_F32, DSI_DTYPE_E4M3, DSI_DTYPE_I8};
    for (size_t i = 0; i < sizeof top_k / sizeof top_k[0]; i++)
        for (int d = 0; d < 4; d++) {
            check_chosen(best_kernels(), 1 + (uint32_t)(i + (size_t)d) % 3, dtypes[d], top_k[i]);
            if (i == 4) check_chosen("ref", 1, dtypes[d], top_k[i]);
        }
    check_chosen(best_kernels(), 7, DSI_DTYPE_BF16, 2100); /* pieces on different threads */
}

/* ---- Models -----------------------------------------------------------------------------------
 */

/* Logits of the golden tokens. */
static float *logits_of(dsi_model *model, const golden *g, const dsi_engine_options *o) {
    dsi_session_options so;
    dsi_session_options_init(&so);
    so.all_logits = 1;
    dsi_engine *e = start_engine(model, o);
    dsi_session *s = start_session(e, &so);
    float *out = calloc(g->n_tokens * g->vocab, sizeof *out);
    assert_true(all_logits(e, s, g->tokens, g->n_tokens, g->vocab, out));
    dsi_session_close(s);
    dsi_engine_close(e);
    return out;
}

static void test_golden_fp8(void **state) {
    (void)state;
    const char *kernels[KERNEL_SETS];
    const size_t n = kernel_sets(kernels);
    golden g;
    size_t n_rows = 0;
    assert_true(golden_open(V32 "/golden.safetensors", &g));
    const float *truth = golden_tensor(&g, "logits_fp8", &n_rows);
    assert_int_equal(n_rows, g.n_tokens);
    dsi_model *model = load_model(V32);
    for (size_t i = 0; i < n; i++) {
        dsi_engine_options o = engine_of(512, 256, 1);
        o.activations = DSI_ACTIVATIONS_F32;
        o.indexer = DSI_INDEXER_FP8;
        o.kernels = kernels[i];
        float *ours = logits_of(model, &g, &o);
        distance d = compare_logits(truth, ours, g.n_tokens, g.vocab);
        distance plain = compare_logits(g.logits, ours, g.n_tokens, g.vocab);
        print_message("indexer fp8, %s: mean KL %.2e; to the one without rounding %.2e\n",
                      kernels[i], d.mean_kl, plain.mean_kl);
        assert_true(d.mean_kl <= 1e-5);
        assert_true(plain.mean_kl > 1e-3); /* the option does something */
        free(ours);
    }
    dsi_model_close(model);
    golden_close(&g);
}

/* The checkpoint as one of deepseek_v3: its indexers get names that loaders pass over. */
static void write_without_indexers(const char *folder) {
    static const char tail[] = ".rotary_emb.inv_freq";
    bytes file = read_file(V32, "model.safetensors"), config = read_file(V32, "config.json");
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | (uint8_t)file.data[i];
    char *header = calloc(1, 2 * n), *to = header;
    const char *from = file.data + 8, *end = from + n;
    while (from < end) {
        const char *name = memmem(from, (size_t)(end - from), ".indexer.", 9);
        const char *quote = name ? memchr(name, '"', (size_t)(end - name)) : end;
        memcpy(to, from, (size_t)(quote - from));
        to += quote - from, from = quote;
        if (name) to = stpcpy(to, tail), *to++ = *from++;
    }
    const size_t n_header = (size_t)(to - header), n_data = file.n - 8 - n;
    char *whole = malloc(8 + n_header + n_data);
    for (int i = 0; i < 8; i++) whole[i] = (char)(n_header >> (8 * i));
    memcpy(whole + 8, header, n_header);
    memcpy(whole + 8 + n_header, file.data + 8 + n, n_data);
    write_file(folder, "model.safetensors", whole, 8 + n_header + n_data);
    char *text = strndup(config.data, config.n),
         *v3 = replaced(text, "deepseek_v32", "deepseek_v3");
    char *class = replaced(v3, "DeepseekV32", "DeepseekV3"), *all = NULL;
    for (int i = 0; i < 3; i++) {
        all = replaced(class, "indexed_attention", "full_attention");
        free(class);
        class = all;
    }
    write_text(folder, "config.json", all);
    free(all), free(v3), free(text), free(whole), free(header), free(file.data), free(config.data);
}

/* Contexts of at most index_topk tokens: the bits of V3, on every kernel set. */
static void test_short_context_is_dense(void **state) {
    (void)state;
    char folder[64];
    const char *kernels[KERNEL_SETS];
    const size_t n = kernel_sets(kernels);
    golden g;
    temp_folder(folder);
    write_without_indexers(folder);
    assert_true(golden_open(V32 "/golden.safetensors", &g));
    dsi_model *v32 = load_model(V32), *v3 = load_model(folder);
    const size_t top_k = v32->config.index_topk;
    assert_int_equal(top_k, 24);
    assert_false(v3->config.arch->indexer);
    for (size_t i = 0; i < n; i++) {
        dsi_engine_options o = engine_of(512, 256, 1);
        o.kernels = kernels[i];
        float *sparse = logits_of(v32, &g, &o), *dense = logits_of(v3, &g, &o);
        assert_memory_equal(sparse, dense, top_k * g.vocab * sizeof *sparse);
        /* from there on they are different models */
        assert_memory_not_equal(sparse + top_k * g.vocab, dense + top_k * g.vocab,
                                g.vocab * sizeof *sparse);
        free(sparse);
        free(dense);
    }
    dsi_model_close(v32);
    dsi_model_close(v3);
    golden_close(&g);
    remove_folder(folder);
}

/* The keys of the indexer go with the pages: doubled, cut, freed, saved. */
static void test_sessions(void **state) {
    (void)state;
    char folder[64], path[96];
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/a.session", folder);
    dsi_model *model = load_model(V32);
    dsi_engine_options o = engine_of(400, 64, 4), rounding = o;
    rounding.indexer = DSI_INDEXER_FP8;
    dsi_engine *e = start_engine(model, &o), *other = start_engine(model, &rounding);
    dsi_session *s = start_session(e, NULL), *fork = NULL, *back = start_session(e, NULL);
    append_made_up(s, 150, 1);
    step_all(s);
    OK(dsi_session_fork(s, &fork), s);
    OK(dsi_session_save(s, path), s);
    OK(dsi_session_restore(back, path), back);
    dsi_session *refused = start_session(other, NULL);
    assert_int_equal(dsi_session_restore(refused, path), DSI_E_STATE);
    assert_non_null(strstr(dsi_last_error(refused), "indexer plain, this engine has fp8"));
    const uint64_t truth = future_hash(s);
    assert_true(future_hash(fork) == truth);
    assert_true(future_hash(back) == truth);
    /* cut to less, and grown again by the same tokens */
    dsi_session *cut = start_session(e, NULL);
    append_made_up(cut, 150, 1);
    step_all(cut);
    OK(dsi_session_rewind(cut, 70), cut);
    OK(dsi_session_append(cut, cut->tokens + 70, 80), cut);
    step_all(cut);
    assert_true(future_hash(cut) == truth);
    dsi_session *all[] = {s, fork, back, cut};
    for (int i = 0; i < 4; i++) dsi_session_close(all[i]);
    assert_pool_empty(e);
    dsi_session_close(refused);
    dsi_engine_close(e);
    dsi_engine_close(other);
    dsi_model_close(model);
    remove_folder(folder);
}

/* The plan counts the keys; options out of range are refused. */
static void test_plan(void **state) {
    (void)state;
    dsi_model *model = load_model(V32);
    dsi_engine_options o = engine_of(512, 64, 1);
    dsi_memory_plan plan = {.struct_size = sizeof plan};
    dsi_engine *e = NULL;
    o.kv_tokens = 1024;
    OK(dsi_plan(model, &o, &plan), NULL);
    assert_int_equal(plan.n_bytes_kv, 1024 * 3 * (160 + 64) * 2);
    o.kv_cache = DSI_KV_CACHE_FP8; /* the latents; keys stay as they are */
    OK(dsi_plan(model, &o, &plan), NULL);
    assert_int_equal(plan.n_bytes_kv, 1024 * 3 * ((128 + 4 + 64 + 15) / 16 * 16 + 64 * 2));
    o.indexer = 2;
    assert_int_equal(dsi_engine_open(model, &o, &e), DSI_E_ARG);
    assert_non_null(strstr(dsi_last_error(NULL), "indexer is 2; it may be 0 to 1"));
    dsi_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_rounding),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_chosen_rows), cmocka_unit_test(test_golden_fp8),
        cmocka_unit_test(test_sessions),    cmocka_unit_test(test_short_context_is_dense),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests_name("indexer", tests, NULL, NULL);
}
