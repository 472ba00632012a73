/* test_attention.c: the attention operators of the CPU at contexts longer than small checkpoints
 * have: against plain sums in double, and bit by bit between numbers of threads, alone and in
 * company. */
#include "op_bench.h"
#include <math.h>

/* ---- Attention in double --------------------------------------------------------------------- */

/* sum softmax(q . k) v of row r: d elements of q from column q0 on, keys from k0 on, values from
 * v0 on. */
static void attention(const dsi_batch *b, uint32_t r, const dsi_tensor *q, int64_t q0, int64_t d,
                      const dsi_tensor *pages, int64_t k0, int64_t v0, int64_t dv, double scale,
                      double *out) {
    static double p[MAX_PAGES * DSI_PAGE_ROWS];
    double largest = -INFINITY, sum = 0;
    for (int64_t j = 0; j <= b->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(b, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        p[j] = 0;
        for (int64_t i = 0; i < d; i++) p[j] += get(q, r, q0 + i) * get(pages, row, k0 + i) * scale;
        largest = fmax(largest, p[j]);
    }
    for (int64_t i = 0; i < dv; i++) out[i] = 0;
    for (int64_t j = 0; j <= b->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(b, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        p[j] = exp(p[j] - largest);
        sum += p[j];
        for (int64_t i = 0; i < dv; i++) out[i] += p[j] * get(pages, row, v0 + i);
    }
    for (int64_t i = 0; i < dv; i++) out[i] /= sum;
}

/* ---- MLA, absorbed --------------------------------------------------------------------------- */

enum { HEADS = 19, RANK = 32, ROPE = 8 };
/* Where pieces of the context end (multiples of 1,024), and one that is its own first row. */
static const int32_t LENGTHS[MAX_SEQS] = {2900, 1024, 3074, 1}, COUNTS[MAX_SEQS] = {1, 9, 3, 1};
static const dsi_attr_mla MLA = {sizeof MLA, HEADS, 16, ROPE, 16, RANK, 0.7f, 0, NULL, NULL};

static dsi_tensor mla_attend(bench *b, const dsi_batch *batch, dsi_dtype act, dsi_tensor *q,
                             dsi_tensor *pages) {
    *q = make(b, act, HEADS * (RANK + ROPE), batch->n_rows, 1);
    *pages = make(b, act, RANK + ROPE, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor o = make(b, act, HEADS * RANK, batch->n_rows, 0);
    dsi_attr_mla attr = MLA;
    attr.batch = batch;
    run(b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){q, pages}, 2, &o, &attr);
    return o;
}

static void check_mla(const char *kernels, dsi_dtype act, double bound) {
    rows r;
    make_rows(&r, MAX_SEQS, LENGTHS, COUNTS, false);
    bench b = open_bench(1, kernels);
    dsi_tensor q, pages, o = mla_attend(&b, &r.batch, act, &q, &pages);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row++)
        for (int64_t h = 0; h < HEADS; h++) {
            double truth[RANK];
            attention(&r.batch, row, &q, h * (RANK + ROPE), RANK + ROPE, &pages, 0, 0, RANK,
                      (double)MLA.scale, truth);
            for (int64_t i = 0; i < RANK; i++)
                worst = fmax(worst, fabs(get(&o, row, h * RANK + i) - truth[i]));
        }
    print_message("mla_attend, %s, %s: worst error %.2g\n", kernels,
                  act == DSI_DTYPE_F32 ? "f32" : "bf16", worst);
    assert_true(worst < bound);
    /* 2 threads: fewer tasks than queries; 7: pieces of the context on different threads */
    for (uint32_t threads = 2; threads <= 7; threads += 5) {
        bench other = open_bench(threads, kernels);
        dsi_tensor q2, pages2, o2 = mla_attend(&other, &r.batch, act, &q2, &pages2);
        same_bits(&o, &o2, 0, "threads");
        for (uint32_t first = 0; first < r.batch.n_rows; first += 2) {
            dsi_batch part = part_of(&r.batch, first, 1);
            dsi_tensor q_part = rows_of(&q2, first, 1), alone = rows_of(&o2, 0, 1);
            dsi_attr_mla attr = MLA;
            attr.batch = &part;
            run(&other, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q_part, &pages2}, 2, &alone,
                &attr);
            same_bits(&o, &alone, first, "a row alone");
        }
        close_bench(&other);
    }
    close_bench(&b);
}

static void test_mla(void **state) {
    (void)state;
    check_mla(best_kernels(), DSI_DTYPE_BF16, 2e-2);
    check_mla(best_kernels(), DSI_DTYPE_F32, 1e-5);
}

/* ---- MLA, expanded --------------------------------------------------------------------------- */

enum { NOPE = 12, VALUE = 20, X_HEADS = 3 };
static const dsi_attr_mla EXPANDED = {
    sizeof EXPANDED, X_HEADS, NOPE, ROPE, VALUE, RANK, 0.5f, 0, NULL, NULL};

static dsi_tensor expand_attend(bench *b, const dsi_batch *batch, dsi_tensor in[3]) {
    in[0] = make(b, DSI_DTYPE_F32, X_HEADS * (NOPE + ROPE), batch->n_rows, 1);
    in[1] = make(b, DSI_DTYPE_F32, RANK, X_HEADS * (NOPE + VALUE), 0.3);
    in[2] = make(b, DSI_DTYPE_F32, RANK + ROPE, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor y = make(b, DSI_DTYPE_F32, X_HEADS * VALUE, batch->n_rows, 0);
    dsi_attr_mla attr = EXPANDED;
    attr.batch = batch;
    run(b, DSI_OP_MLA_EXPAND_ATTEND, (const dsi_tensor *[]){&in[0], &in[1], &in[2]}, 3, &y, &attr);
    return y;
}

/* The cached rows of row r's sequence as [keys | values] of one head, where the pages have them. */
static dsi_tensor expand_rows(bench *b, const dsi_batch *batch, uint32_t r, const dsi_tensor in[3],
                              int64_t head) {
    dsi_tensor kv = make(b, DSI_DTYPE_F32, NOPE + ROPE + VALUE, in[2].ne[1], 0);
    for (int64_t j = 0; j <= batch->position[r]; j++) {
        int64_t row = dsi_cpu_page_row(batch, r, j / DSI_PAGE_ROWS) + j % DSI_PAGE_ROWS;
        for (int64_t n = 0; n < NOPE + ROPE + VALUE; n++) {
            bool is_rope = n >= NOPE && n < NOPE + ROPE;
            int64_t w_row = head * (NOPE + VALUE) + (n < NOPE ? n : n - ROPE);
            double sum = is_rope ? get(&in[2], row, RANK + n - NOPE) : 0;
            for (int64_t i = 0; i < RANK && !is_rope; i++)
                sum += get(&in[1], w_row, i) * get(&in[2], row, i);
            float value = (float)sum;
            memcpy(kv.buf->data + 4 * (row * kv.stride[1] + n), &value, 4);
        }
    }
    return kv;
}

static void test_expanded(void **state) {
    (void)state;
    static const int32_t lengths[2] = {700, 130}, counts[2] = {11, 4};
    rows r;
    make_rows(&r, 2, lengths, counts, true);
    bench b = open_bench(1, best_kernels());
    dsi_tensor in[3], y = expand_attend(&b, &r.batch, in);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row += 5)
        for (int64_t h = 0; h < X_HEADS; h++) {
            double truth[VALUE];
            bench own = {.backend = b.backend, .dev = b.dev};
            dsi_tensor kv = expand_rows(&own, &r.batch, row, in, h);
            attention(&r.batch, row, &in[0], h * (NOPE + ROPE), NOPE + ROPE, &kv, 0, NOPE + ROPE,
                      VALUE, (double)EXPANDED.scale, truth);
            for (int64_t i = 0; i < VALUE; i++)
                worst = fmax(worst, fabs(get(&y, row, h * VALUE + i) - truth[i]));
            b.backend->buf_free(kv.buf);
        }
    print_message("mla_expand_attend: worst error %.2g\n", worst);
    assert_true(worst < 1e-5);
    for (uint32_t threads = 2; threads <= 7; threads += 5) { /* 7: more threads than heads */
        bench other = open_bench(threads, best_kernels());
        dsi_tensor in2[3], y2 = expand_attend(&other, &r.batch, in2);
        same_bits(&y, &y2, 0, "threads");
        close_bench(&other);
    }
    close_bench(&b);
}

/* ---- Grouped queries ------------------------------------------------------------------------- */

enum { KV_HEADS = 2, GROUP = 3, DIM = 20 };
static const dsi_attr_gqa GQA = {sizeof GQA, KV_HEADS *GROUP, KV_HEADS, DIM, 0.4f, 0, NULL};

static dsi_tensor gqa_attend(bench *b, const dsi_batch *batch, dsi_tensor in[2]) {
    in[0] = make(b, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, batch->n_rows, 1);
    in[1] = make(b, DSI_DTYPE_F32, 2 * KV_HEADS * DIM, MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS, 1);
    dsi_tensor y = make(b, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, batch->n_rows, 0);
    dsi_attr_gqa attr = GQA;
    attr.batch = batch;
    run(b, DSI_OP_GQA_ATTEND, (const dsi_tensor *[]){&in[0], &in[1]}, 2, &y, &attr);
    return y;
}

static void test_gqa(void **state) {
    (void)state;
    rows r;
    make_rows(&r, MAX_SEQS, LENGTHS, COUNTS, false);
    bench b = open_bench(1, best_kernels());
    dsi_tensor in[2], y = gqa_attend(&b, &r.batch, in);
    double worst = 0;
    for (uint32_t row = 0; row < r.batch.n_rows; row++)
        for (int64_t h = 0; h < KV_HEADS * GROUP; h++) {
            double truth[DIM];
            attention(&r.batch, row, &in[0], h * DIM, DIM, &in[1], h / GROUP * DIM,
                      (KV_HEADS + h / GROUP) * DIM, DIM, (double)GQA.scale, truth);
            for (int64_t i = 0; i < DIM; i++)
                worst = fmax(worst, fabs(get(&y, row, h * DIM + i) - truth[i]));
        }
    print_message("gqa_attend: worst error %.2g\n", worst);
    assert_true(worst < 1e-5);
    /* 2 and 7: fewer threads than tasks; 12, and one row alone: pieces on different threads */
    for (uint32_t threads = 2; threads <= 12; threads += 5) {
        bench other = open_bench(threads, best_kernels());
        dsi_tensor in2[2], y2 = gqa_attend(&other, &r.batch, in2);
        same_bits(&y, &y2, 0, "threads");
        for (uint32_t first = 0; first < r.batch.n_rows; first += 3) {
            dsi_batch part = part_of(&r.batch, first, 1);
            dsi_tensor q_part = rows_of(&in2[0], first, 1), alone = rows_of(&y2, 0, 1);
            dsi_attr_gqa attr = GQA;
            attr.batch = &part;
            run(&other, DSI_OP_GQA_ATTEND, (const dsi_tensor *[]){&q_part, &in2[1]}, 2, &alone,
                &attr);
            same_bits(&y, &alone, first, "a row alone");
        }
        close_bench(&other);
    }
    close_bench(&b);
}

/* ---- Cached rows of 8 bits ------------------------------------------------------------------- */

enum { CACHED = MAX_SEQS * MAX_PAGES * DSI_PAGE_ROWS };

/* What a row of these bytes means, with n_heads runs of `columns`; and how far it is from x. */
static void read_coded(dsi_dtype dtype, const uint8_t *row, const float *x, int64_t n_heads,
                       int64_t columns, int64_t rest, uint16_t *values) {
    const int64_t scales = (n_heads * columns + 3) / 4 * 4, n = n_heads * columns;
    for (int64_t i = 0; i < n; i++) { /* no run is longer than 128 columns: a scale each */
        const double scale = (double)dsi_load_f32(row + scales, i / columns);
        const double code =
            dtype == DSI_DTYPE_I8 ? (int8_t)row[i] : (double)dsi_e4m3_to_f32(row[i]);
        const double step = dtype == DSI_DTYPE_I8 ? 0.5 : fmax(fabs(code) / 16, 0x1p-10);
        if (fabs(code * scale - (double)x[i]) > 1.001 * step * scale)
            fail_msg("%g is coded as %g * %g", (double)x[i], code, scale);
        values[i] = dsi_f32_to_bf16((float)code * (float)scale);
    }
    memcpy(values + n, row + scales + 4 * n_heads, (size_t)rest * 2);
    for (int64_t i = n; i < n + rest; i++) assert_int_equal(values[i], dsi_f32_to_bf16(x[i]));
}

/* Pages with the same random rows: coded, written by the operator, and what they mean in BF16. */
static void coded_pages(bench *b, dsi_dtype dtype, int64_t n_heads, int64_t columns, int64_t rest,
                        int64_t bytes, dsi_tensor pages[2]) {
    const int64_t width = n_heads * columns + rest;
    const dsi_attr_kv_write attr = {sizeof attr, 0, (uint32_t)n_heads, (uint32_t)columns};
    dsi_tensor src = make(b, DSI_DTYPE_F32, width, CACHED, 3);
    dsi_tensor slots = make(b, DSI_DTYPE_F32, 2, CACHED, 0);
    slots.dtype = DSI_DTYPE_I64, slots.ne[0] = CACHED, slots.ne[1] = 1, slots.n_dims = 1;
    for (int64_t i = 0; i < CACHED; i++) memcpy(slots.buf->data + 8 * i, &i, 8);
    pages[0] = make(b, DSI_DTYPE_BF16, bytes / 2, CACHED, 0);
    pages[0].dtype = dtype, pages[0].ne[0] = pages[0].stride[1] = bytes;
    pages[1] = make(b, DSI_DTYPE_BF16, width, CACHED, 0);
    run(b, DSI_OP_KV_WRITE, (const dsi_tensor *[]){&src, &slots}, 2, &pages[0], &attr);
    for (int64_t i = 0; i < CACHED; i++)
        read_coded(dtype, pages[0].buf->data + i * bytes,
                   (const float *)(const void *)(src.buf->data + 4 * i * width), n_heads, columns,
                   rest, (uint16_t *)(void *)(pages[1].buf->data + 2 * i * width));
}

/* Coded pages give the bits of BF16 pages with the values that the codes mean. */
static void check_coded(dsi_dtype dtype, const char *kernels, uint32_t threads) {
    static const int32_t lengths[2] = {700, 130}, counts[2] = {11, 4};
    rows r, whole;
    dsi_tensor pages[2], y[2];
    make_rows(&r, MAX_SEQS, LENGTHS, COUNTS, false);
    make_rows(&whole, 2, lengths, counts, true);
    bench b = open_bench(threads, kernels), g = open_bench(threads, kernels);
    dsi_attr_mla absorbed = MLA, expanded = EXPANDED;
    dsi_attr_gqa grouped = GQA;
    absorbed.batch = grouped.batch = &r.batch, expanded.batch = &whole.batch;
    coded_pages(&b, dtype, 1, RANK, ROPE, 64, pages);
    dsi_tensor q = make(&b, DSI_DTYPE_BF16, HEADS * (RANK + ROPE), r.batch.n_rows, 1);
    for (int i = 0; i < 2; i++) {
        y[i] = make(&b, DSI_DTYPE_F32, HEADS * RANK, r.batch.n_rows, 0);
        run(&b, DSI_OP_MLA_ATTEND, (const dsi_tensor *[]){&q, &pages[i]}, 2, &y[i], &absorbed);
    }
    same_bits(&y[0], &y[1], 0, "absorbed");
    close_bench(&b);
    b = open_bench(threads, kernels);
    coded_pages(&b, dtype, 1, RANK, ROPE, 64, pages);
    q = make(&b, DSI_DTYPE_F32, X_HEADS * (NOPE + ROPE), whole.batch.n_rows, 1);
    dsi_tensor w = make(&b, DSI_DTYPE_F32, RANK, X_HEADS * (NOPE + VALUE), 0.3);
    for (int i = 0; i < 2; i++) {
        y[i] = make(&b, DSI_DTYPE_F32, X_HEADS * VALUE, whole.batch.n_rows, 0);
        run(&b, DSI_OP_MLA_EXPAND_ATTEND, (const dsi_tensor *[]){&q, &w, &pages[i]}, 3, &y[i],
            &expanded);
    }
    same_bits(&y[0], &y[1], 0, "expanded");
    coded_pages(&g, dtype, 2 * KV_HEADS, DIM, 0, 96, pages);
    q = make(&g, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, r.batch.n_rows, 1);
    for (int i = 0; i < 2; i++) {
        y[i] = make(&g, DSI_DTYPE_F32, KV_HEADS * GROUP * DIM, r.batch.n_rows, 0);
        run(&g, DSI_OP_GQA_ATTEND, (const dsi_tensor *[]){&q, &pages[i]}, 2, &y[i], &grouped);
    }
    same_bits(&y[0], &y[1], 0, "grouped");
    close_bench(&g);
    close_bench(&b);
}

static void test_coded_pages(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        const dsi_dtype dtype = i ? DSI_DTYPE_I8 : DSI_DTYPE_E4M3;
        check_coded(dtype, best_kernels(), 1);
        check_coded(dtype, best_kernels(), 7);
        if (dsi_isa_detect() & DSI_ISA_AVX2) check_coded(dtype, "avx2", 2);
    }
}

/* The layout that is promised for DeepSeek-V3, and groups with nothing or something broken in them.
 */
static void test_coded_row(void **state) {
    (void)state;
    const dsi_kv_row row = dsi_kv_row_of(1, 512, 64);
    assert_true(row.scales == 512 && row.tail == 528 && row.n_bytes == 656);
    bench b = open_bench(1, "ref");
    float x[576] = {0};
    _Alignas(16) uint8_t coded[656];
    x[0] = 448, x[1] = -224, x[2] = 1.0625f; /* scale 1 as E4M3 */
    x[128] = 254, x[129] = -127, x[130] = 3; /* scale 2 as int8 */
    x[200] = 0x1p-101f - 0x1p-130f;          /* passes for 0 only where it is alone */
    x[256] = 0x1p-101f;
    x[384] = INFINITY, x[385] = 1;
    x[512] = 1.5f, x[575] = -2;
    for (int i = 0; i < 2; i++) {
        const dsi_dtype dtype = i ? DSI_DTYPE_I8 : DSI_DTYPE_E4M3;
        dsi_cpu_code_row(b.dev, &row, dtype, x, coded);
        const float scale[2] = {i ? 448.0f / 127 : 1, i ? 2 : 254.0f / 448};
        for (int k = 0; k < 2; k++) assert_true(dsi_load_f32(coded + 512, k) == scale[k]);
        assert_true(dsi_load_f32(coded + 512, 2) == 0);
        assert_true(isnan(dsi_load_f32(coded + 512, 3)));
        assert_int_equal(coded[0], i ? 127 : 0x7E);
        assert_int_equal(coded[1], i ? (uint8_t)-64 : 0xF6); /* -63.5 to even */
        assert_int_equal(coded[2], i ? 0 : 0x38);            /* 1.0625 to 1 */
        assert_int_equal(coded[128], i ? 127 : 0x7E);
        assert_int_equal(coded[129], i ? (uint8_t)-64 : 0xF6);
        assert_int_equal(coded[130], i ? 2 : dsi_f32_to_e4m3(3 / scale[1])); /* 1.5 to even */
        assert_int_equal(coded[256] | coded[257], 0);
        assert_int_equal(dsi_load_u16(coded + 528, 0), 0x3FC0);
        assert_int_equal(dsi_load_u16(coded + 528, 63), 0xC000);
    }
    close_bench(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mla), cmocka_unit_test(test_expanded), cmocka_unit_test(test_gqa),
        cmocka_unit_test(test_coded_pages), cmocka_unit_test(test_coded_row)};
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
