/* The DDF operators on a CPU: y and the gradients of x, channel filter and spatial filter.
 *
 * Compiled by native.py with -DA=float or -DA=double, the type of all arithmetic. Tensors are stored in any of the four
 * types of `Type`; rows of another type than A are converted on their way through the cache.
 *
 * Two loops do the arithmetic. Both run over a vector axis in memory order, the other filter contributes a scalar:
 *     weighted_sum      out[c]  = sum over taps t of x[t][c] * (v[t][c] * s[t])        y, grad_x
 *     filter_gradients  gv[t][c] += g[c] * x[t][c] * s[t];  gs[t] += sum over c of g[c] * x[t][c] * v[t][c]
 * channels_last: c runs over the channels of a pixel, v is the channel filter, s the spatial filter.
 * contiguous:    c runs over a few rows of one channel, v is the spatial filter, s the channel filter.
 *
 * Work is cut into items, some rows of one image each, in a way that knows nothing of the number of threads; an item
 * writes what no other item writes, and sums over items are taken in order. So every result is the same bits for any
 * number of threads. Threads live for one call only: nothing survives into forked children, nothing spins.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef enum { FLOAT, DOUBLE, BFLOAT16, HALF } Type;
#define OWN_TYPE (sizeof(A) == sizeof(float) ? FLOAT : DOUBLE)
enum { MULTIPLY, ADD, SCALAR }; /* how v and s become one weight; SCALAR: there is no v */

#ifndef NARROW
#define NARROW 24 /* columns */
#endif

typedef struct { /* as in native.py */
    const void *x, *channel, *spatial, *grad_y;
    void *y, *grad_x, *grad_channel, *grad_spatial; /* NULL: not wanted */
    int64_t batch, channels, height, width, rows, columns; /* rows, columns: of the spatial filter */
    int64_t kernel, stride, dilation, heads, scale;
    int64_t spatial_steps[4]; /* elements between neighbors along its axes */
    int64_t x_type, channel_type, spatial_type, channels_last, multiply, threads;
} Call;

typedef struct {
    Call c;
    long area, phases, head_channels, taps; /* taps: scalars of all phases and heads for one pixel */
    long halo, pitch, plane;                /* contiguous: a row is padded by `halo` on either side, to `pitch` */
    long chunk, chunks, items, next;        /* rows of the spatial filter in an item; items of an image; of all */
    int op, product, copied; /* copied: channels_last rows are read through rings */
    A *zeros, *ones, *partials; /* partials: the sums of each item for grad_channel */
    long *left;                 /* for each image, the items whose sums are not complete */
} Job;

typedef struct { /* of one thread */
    A *filter, *spatial, *source, *grad_y, *sums, *out;
    const A **x, **v, **s, **row_x, **row_s; /* of taps, and of rows of taps */
    long *row_u, *columns;
    long image; /* whose channel filter `filter` holds */
} Scratch;

static inline long smaller(long a, long b) { return a < b ? a : b; }
static inline long larger(long a, long b) { return a > b ? a : b; }

/* ---- storage types ---- */

static inline float from_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
static inline float from_bfloat16(uint16_t h) { return from_bits((uint32_t)h << 16); }

static inline uint16_t to_bfloat16(float f) {
    const uint32_t bits = to_bits(f);
    return f != f ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static inline float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h & 0x7c00;
    const uint32_t bits = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23);
    const uint32_t tiny = to_bits(from_bits(bits + (1u << 23)) - 0x1p-14f);
    return from_bits(sign | (exponent == 0x7c00 ? bits + (112u << 23) : exponent == 0 ? tiny : bits));
}

static inline uint16_t to_half(float f) {
    const uint32_t sign = to_bits(f) >> 16 & 0x8000, bits = to_bits(f) & 0x7fffffff;
    const uint32_t normal = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    const uint32_t tiny = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f); /* the addition rounds */
    const uint32_t large = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
    return sign | (bits >= 0x47800000 ? large : bits < 113u << 23 ? tiny : normal);
}

#define SAME(value) (value)
#define EACH(target, source, convert, target_step, source_step) \
    for (long i = 0; i < n; i++) (target)[i * (target_step)] = convert((source)[i * (source_step)])
#define CONVERT(target, source, convert)                              \
    if (to_step == 1 && from_step == 1) EACH(target, source, convert, 1, 1); \
    else EACH(target, source, convert, to_step, from_step)

static void read_row(A *restrict to, long to_step, const void *from, long offset, long from_step, int type, long n) {
    switch (type) {
    case FLOAT: { const float *p = (const float *)from + offset; CONVERT(to, p, SAME); break; }
    case DOUBLE: { const double *p = (const double *)from + offset; CONVERT(to, p, SAME); break; }
    case BFLOAT16: { const uint16_t *p = (const uint16_t *)from + offset; CONVERT(to, p, from_bfloat16); break; }
    default: { const uint16_t *p = (const uint16_t *)from + offset; CONVERT(to, p, from_half); }
    }
}

static void write_row(void *to, long offset, long to_step, const A *restrict from, long from_step, int type, long n) {
    switch (type) {
    case FLOAT: { float *p = (float *)to + offset; CONVERT(p, from, SAME); break; }
    case DOUBLE: { double *p = (double *)to + offset; CONVERT(p, from, SAME); break; }
    case BFLOAT16: { uint16_t *p = (uint16_t *)to + offset; CONVERT(p, from, to_bfloat16); break; }
    default: { uint16_t *p = (uint16_t *)to + offset; CONVERT(p, from, to_half); }
    }
}

/* ---- the arithmetic ---- */

#define TAPS_1(M) M(0)
#define TAPS_3(M) M(0) M(1) M(2)
#define TAPS_9(M) TAPS_3(M) M(3) M(4) M(5) M(6) M(7) M(8)
#define WEIGH_MULTIPLY(t) +x##t[c] * (v##t[c] * s##t)
#define WEIGH_ADD(t) +x##t[c] * (v##t[c] + s##t)
#define WEIGH_SCALAR(t) +x##t[c] * s##t
#define TAP(t) const A *x##t = x[t], *v##t = v[t]; const A s##t = *s[t];
#define WEIGHTED_SUM(N, WEIGH)                                                                         \
    for (; n >= N; n -= N, x += N, v += N, s += N, add = 1) {                                          \
        TAPS_##N(TAP)                                                                                  \
        if (add) { _Pragma("omp simd") for (long c = from; c < to; c++) out[c] = out[c] TAPS_##N(WEIGH); } \
        else { _Pragma("omp simd") for (long c = from; c < to; c++) out[c] = 0 TAPS_##N(WEIGH); }      \
    }
#define WEIGHTED_SUMS(WEIGH) { WEIGHTED_SUM(9, WEIGH) WEIGHTED_SUM(3, WEIGH) WEIGHTED_SUM(1, WEIGH) break; }

/* out[c] (+)= sum over n taps, for from <= c < to; s points to the scalars. */
static void weighted_sum(int op, long n, const A *const *x, const A *const *v, const A *const *s, long from, long to,
                         A *restrict out, int add) {
    if (n == 0 && !add) memset(out + from, 0, (to - from) * sizeof(A));
    switch (op) {
    case MULTIPLY: WEIGHTED_SUMS(WEIGH_MULTIPLY)
    case ADD: WEIGHTED_SUMS(WEIGH_ADD)
    default: WEIGHTED_SUMS(WEIGH_SCALAR)
    }
}

#define REDUCE_1 _Pragma("omp simd reduction(+ : r0)")
#define REDUCE_3 _Pragma("omp simd reduction(+ : r0, r1, r2)")
#define REDUCE_9 _Pragma("omp simd reduction(+ : r0, r1, r2, r3, r4, r5, r6, r7, r8)")
#define GRADIENT_TAP(t) \
    const A *x##t = x[t], *v##t = v + t * v_pitch; A *g##t = gv + t * gv_pitch, r##t = 0; const A s##t = s[t];
#define GRADIENT_VECTOR(t) g##t[c] += g[c] * x##t[c] * s##t;
#define GRADIENT_SCALAR(t) r##t += g[c] * x##t[c] * v##t[c];
#define GRADIENT_BOTH(t) { const A product = g[c] * x##t[c]; g##t[c] += product * s##t; r##t += product * v##t[c]; }
#define GRADIENT_STORE(t) gs[t] += r##t;
#define GRADIENTS(N)                                                                                              \
    for (; n >= N; n -= N, x += N, v += N * v_pitch, s += N, gv += N * gv_pitch, gs += N) {                       \
        TAPS_##N(GRADIENT_TAP)                                                                                    \
        if (!want_scalar) { _Pragma("omp simd") for (long c = from; c < to; c++) { TAPS_##N(GRADIENT_VECTOR) } }  \
        else if (!want_vector) { REDUCE_##N for (long c = from; c < to; c++) { TAPS_##N(GRADIENT_SCALAR) } }      \
        else { REDUCE_##N for (long c = from; c < to; c++) { TAPS_##N(GRADIENT_BOTH) } }                          \
        if (want_scalar) { TAPS_##N(GRADIENT_STORE) }                                                             \
    }

/* v and gv hold the taps `pitch` apart, s and gs hold them side by side. */
static void filter_gradients(int want_vector, int want_scalar, long n, const A *restrict g, const A *const *x,
                             const A *v, long v_pitch, const A *s, A *gv, long gv_pitch, A *gs, long from, long to) {
    GRADIENTS(9) GRADIENTS(3) GRADIENTS(1)
}

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES ((long)(VECTOR_BYTES / sizeof(A)))
typedef A Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef A Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(A)), may_alias));
#define VECTOR(p) (*(Unaligned *)(p))

/* Pixels of a row whose K x K taps form a regular grid: x[u] and s[u] point to tap (u, 0) of the first one. Taps are
 * x_tap and s_tap apart, pixels x_pixel, s_pixel and out_pixel. */
typedef struct { const A *x[7], *s[7]; long x_tap, x_pixel, s_tap, s_pixel, out_pixel, n; } Grid;

#define INLINE static inline __attribute__((always_inline))

/* weighted_sum for the pixels of a grid and one or two vectors of channels. */
INLINE void sum_tile(const int K, const int op, const int side_by_side, const int vectors, const Grid *grid, const A *v,
                     long v_pitch, long from, A *restrict out, int add) {
    const int held = K == 3 && op != SCALAR; /* the weights stay in registers */
    const long x_tap = grid->x_tap, s_tap = grid->s_tap;
    const long x_pixel = grid->x_pixel, s_pixel = grid->s_pixel, out_pixel = grid->out_pixel;
    const A *x[7], *s[7];
    Vector weights[9][2];
    for (int u = 0; u < K; u++) x[u] = grid->x[u] + from, s[u] = grid->s[u];
    for (int t = 0; held && t < 9; t++)
        for (int i = 0; i < vectors; i++) weights[t][i] = VECTOR(v + t * v_pitch + from + i * LANES);
    out += from;
    for (const A *end = out + grid->n * out_pixel; out != end; out += out_pixel) {
        Vector sum[2] = {{0}, {0}};
        if (!side_by_side && add)
            for (int i = 0; i < vectors; i++) sum[i] = VECTOR(out + i * LANES);
#pragma GCC unroll 7
        for (int u = 0; u < K; u++) {
#pragma GCC unroll 7
            for (int t = 0; t < K; t++) {
                const A scalar = side_by_side ? s[0][u * K + t] : s[u][t * s_tap];
#pragma GCC unroll 2
                for (int i = 0; i < vectors; i++) {
                    const Vector value = VECTOR(x[u] + t * x_tap + i * LANES);
                    Vector weight;
                    if (op == SCALAR) { sum[i] += value * scalar; continue; }
                    if (held) weight = weights[u * K + t][i];
                    else weight = VECTOR(v + (u * K + t) * v_pitch + from + i * LANES);
                    sum[i] += value * (op == ADD ? weight + scalar : weight * scalar);
                }
            }
        }
        for (int i = 0; i < vectors; i++) VECTOR(out + i * LANES) = sum[i];
        for (int u = 0; u < K; u++) x[u] += x_pixel, s[u] += s_pixel;
    }
}

#define SUM_STRIPS(K, OP, SIDE_BY_SIDE)                                                                               \
    for (; from + 2 * LANES <= to; from += 2 * LANES) sum_tile(K, OP, SIDE_BY_SIDE, 2, grid, v, v_pitch, from, out, add); \
    for (; from + LANES <= to; from += LANES) sum_tile(K, OP, SIDE_BY_SIDE, 1, grid, v, v_pitch, from, out, add);
#define SUM_TILES(K, OP)                                                                        \
    case 4 * K + OP:                                                                            \
        if (K == 3 && grid->s_tap == 1 && grid->s[1] == grid->s[0] + K && !add) {               \
            SUM_STRIPS(K, OP, K == 3) /* all scalars of a pixel: fewer registers for addresses */ \
        } else {                                                                                \
            SUM_STRIPS(K, OP, 0)                                                                \
        }                                                                                       \
        break;

/* Returns the first channel that is left to do. */
static long sum_tiles(long kernel, int op, const Grid *grid, const A *v, long v_pitch, long from, long to, A *out,
                      int add) {
    switch (4 * kernel + op) {
        SUM_TILES(3, MULTIPLY) SUM_TILES(3, ADD) SUM_TILES(3, SCALAR)
        SUM_TILES(5, MULTIPLY) SUM_TILES(5, ADD) SUM_TILES(5, SCALAR)
        SUM_TILES(7, MULTIPLY) SUM_TILES(7, ADD) SUM_TILES(7, SCALAR)
    }
    return from;
}

/* filter_gradients for a row of K taps (of the grid only x[0], s[0] and the steps) and one or two pixels from pixel j on.
 * `lanes` gets K vectors a pixel, whose lanes are still to be added. */
#define BLOCK 64
INLINE void gradient_tile(const int K, const int want_vector, const int want_scalar, const int pixels, const Grid *grid,
                          long j, const A *restrict g, long g_pixel, const A *restrict v, long v_pitch, A *restrict gv,
                          long gv_pitch, long from, long to, A *restrict lanes) {
    Vector sums[2][7] = {{{0}}};
    A scalars[2][7];
    const A *x = grid->x[0] + j * grid->x_pixel;
    const long x_tap = grid->x_tap, x_pixel = grid->x_pixel;
    for (int p = 0; want_vector && p < pixels; p++)
        for (int t = 0; t < K; t++) scalars[p][t] = grid->s[0][(j + p) * grid->s_pixel + t];
    g += j * g_pixel;
    for (long c = from; c + LANES <= to; c += LANES)
#pragma GCC unroll 7
        for (int t = 0; t < K; t++) {
            Vector weight, total;
            if (want_vector) total = VECTOR(gv + t * gv_pitch + c);
            if (want_scalar) weight = VECTOR(v + t * v_pitch + c);
#pragma GCC unroll 2
            for (int p = 0; p < pixels; p++) {
                const Vector product = VECTOR(g + p * g_pixel + c) * VECTOR(x + p * x_pixel + t * x_tap + c);
                if (want_vector) total += product * scalars[p][t];
                if (want_scalar) sums[p][t] += product * weight;
            }
            if (want_vector) VECTOR(gv + t * gv_pitch + c) = total;
        }
    for (int p = 0; want_scalar && p < pixels; p++)
        for (int t = 0; t < K; t++) VECTOR(lanes + ((j + p) * K + t) * LANES) = sums[p][t];
}

#define GRADIENT_TILES(K, WANT)                                                                                        \
    case 4 * K + WANT:                                                                                                 \
        for (; j + 2 <= grid->n; j += 2)                                                                               \
            gradient_tile(K, WANT & 1, WANT >> 1, 2, grid, j, g, g_pixel, v, v_pitch, gv, gv_pitch, from, to, lanes);  \
        if (j < grid->n)                                                                                               \
            gradient_tile(K, WANT & 1, WANT >> 1, 1, grid, j, g, g_pixel, v, v_pitch, gv, gv_pitch, from, to, lanes);  \
        break;

typedef A Quad __attribute__((vector_size(16), may_alias));

/* Adds to gv, and to gs for each pixel, `gs_pixel` apart. Returns the first channel that is left to do. */
static long gradient_tiles(long kernel, int want_vector, int want_scalar, const Grid *grid, const A *g, long g_pixel,
                           const A *v, long v_pitch, A *gv, long gv_pitch, A *gs, long gs_pixel, long from, long to) {
    A lanes[BLOCK * 7 * LANES] __attribute__((aligned(VECTOR_BYTES))), sums[BLOCK * 7];
    long j = 0;
    if (to - from < LANES) return from;
    switch (4 * kernel + want_vector + 2 * want_scalar) {
        GRADIENT_TILES(3, 1) GRADIENT_TILES(3, 2) GRADIENT_TILES(3, 3)
        GRADIENT_TILES(5, 1) GRADIENT_TILES(5, 2) GRADIENT_TILES(5, 3)
        GRADIENT_TILES(7, 1) GRADIENT_TILES(7, 2) GRADIENT_TILES(7, 3)
    }
    if (want_scalar) {
        const long n = grid->n * kernel, quad = 16 / sizeof(A);
        for (long i = 0; i < n; i++) { /* 16 bytes are left of each vector, */
            const Quad *q = (const Quad *)(lanes + i * LANES);
            Quad total = q[0];
            for (int l = 1; l < VECTOR_BYTES / 16; l++) total += q[l];
            *(Quad *)(lanes + i * quad) = total;
        }
        if (quad == 4)
#pragma omp simd
            for (long i = 0; i < n; i++) sums[i] = (lanes[4 * i] + lanes[4 * i + 1]) + (lanes[4 * i + 2] + lanes[4 * i + 3]);
        else
#pragma omp simd
            for (long i = 0; i < n; i++) sums[i] = lanes[2 * i] + lanes[2 * i + 1];
        for (long i = 0; i < grid->n; i++)
            for (long t = 0; t < kernel; t++) gs[i * gs_pixel + t] += sums[i * kernel + t];
    }
    return to - (to - from) % LANES;
}

/* ---- channels_last ---- */

/* Rows of a tensor as A. They are in place, or copied when first asked for, in ascending order, into a ring: if their
 * type is another, or if a map is so narrow that zeros on either side cost less than a case of its own for its borders. */
typedef struct {
    const A *direct;
    A *ring;
    long slots, pitch, pad, next, height; /* pad: elements before and after a row */
    const void *from;
    int type;
    long offset, row_step, inner, inner_step, column_step, columns; /* a row: columns x inner elements */
} Rows;

static const A *fetch(Rows *r, long i) {
    if (r->direct) return r->direct + i * r->pitch;
    for (; r->next <= i; r->next++) {
        A *row = r->ring + r->next % r->slots * r->pitch;
        memset(row, 0, r->pad * sizeof(A));
        memset(row + r->pitch - r->pad, 0, r->pad * sizeof(A));
        for (long t = 0; t < r->inner; t++)
            read_row(row + r->pad + t, r->inner, r->from, r->offset + r->next * r->row_step + t * r->inner_step,
                     r->column_step, r->type, r->columns);
    }
    return r->ring + i % r->slots * r->pitch + r->pad;
}

/* Rows of image b of x or grad_y, from row `first` on. */
static Rows map_rows(const Job *job, const void *from, long b, long height, long width, long pad, long first, long slots,
                     A *ring) {
    const long row = width * job->c.channels, offset = b * height * row;
    Rows r = {.ring = ring, .slots = slots, .pitch = row, .next = first > 0 ? first : 0, .height = height, .from = from,
              .type = job->c.x_type, .offset = offset, .row_step = row, .inner = 1, .column_step = 1, .columns = row};
    if (!job->copied) r.direct = (const A *)from + offset;
    else r.pad = pad * job->c.channels, r.pitch += 2 * r.pad;
    return r;
}

/* Rows of image b of the spatial filter: for each pixel its taps. */
static Rows spatial_rows(const Job *job, long b, long pad, long first, long slots, A *ring) {
    const Call *c = &job->c;
    const int64_t *steps = c->spatial_steps;
    Rows r = {.ring = ring, .slots = slots, .pad = pad * job->taps, .pitch = (c->columns + 2 * pad) * job->taps,
              .next = first > 0 ? first : 0, .height = c->rows, .from = c->spatial, .type = c->spatial_type,
              .offset = b * steps[0], .row_step = steps[2], .inner = job->taps, .inner_step = steps[1],
              .column_step = steps[3], .columns = c->columns};
    if (!c->spatial) r.direct = job->ones, r.pitch = 0;
    else if (!pad && c->spatial_type == OWN_TYPE && steps[1] == 1 && steps[3] == job->taps)
        r.direct = (const A *)c->spatial + r.offset, r.pitch = steps[2];
    return r;
}

static long spatial_step(const Job *job) { return job->c.spatial ? job->taps : 0; }

/* The channel filter of image b as (phase, tap, channel), or as (phase, channel, tap) for contiguous x. */
static void load_filter(const Job *job, Scratch *s, long b) {
    const Call *c = &job->c;
    const long size = c->channels * job->area;
    if (!c->channel) return;
    if (!c->channels_last) {
        read_row(s->filter, 1, c->channel, b * job->phases * size, 1, c->channel_type, job->phases * size);
        return;
    }
    for (long p = 0; p < job->phases; p++)
        for (long t = 0; t < job->area; t++)
            read_row(s->filter + p * size + t * c->channels, 1, c->channel, (b * job->phases + p) * size + t, job->area,
                     c->channel_type, c->channels);
}

/* columns[j * k + v]: the column of x that column j of y meets at tap v; backward: the column of grad_y (in pixels of
 * the spatial filter) that column j of grad_x meets. -1 if there is none. */
static void fill_columns(const Job *job, long *columns, int backward) {
    const Call *c = &job->c;
    for (long j = 0; j < (backward ? c->width : c->columns); j++)
        for (long v = 0; v < c->kernel; v++) {
            const long shift = (v - c->kernel / 2) * c->dilation;
            const long column = backward ? j - shift : j * c->stride + shift;
            const int exists = backward ? column % c->stride == 0 && column < c->columns * c->stride : column < c->width;
            *columns++ = column < 0 || !exists ? -1 : backward ? column / c->stride : column;
        }
}

/* The columns in which all taps exist, or are zeros, and form a regular grid. */
static void regular_columns(const Job *job, int backward, long tap_rows, long *first, long *end) {
    const Call *c = &job->c;
    const long k = c->kernel, reach = k / 2 * c->dilation, stride = backward ? 1 : c->stride;
    const long n = backward ? c->width : c->columns;
    *first = job->copied ? 0 : (reach + stride - 1) / stride;
    *end = job->copied ? n : c->width > reach ? smaller(n, (c->width - 1 - reach) / stride + 1) : 0;
    if (k < 3 || k > 7 || tap_rows < k || (backward && c->stride > 1) || *end <= *first) *first = *end = 0;
}

/* One row of y or grad_x for one phase: the weighted sums over `tap_rows` rows of taps, which s->row_* describe. */
static void weighted_row(const Job *job, Scratch *s, int backward, long phase, long tap_rows, A *out, int add) {
    const Call *c = &job->c;
    const long k = c->kernel, reach = k / 2 * c->dilation, s_step = spatial_step(job);
    const long n = backward ? c->width : c->columns, stride = backward ? 1 : c->stride;
    const long x_step = backward ? c->scale * c->channels : c->channels;
    const long out_step = backward ? c->channels : c->scale * c->channels;
    const A *filter = s->filter + phase * job->area * c->channels;
    long first, end;
    regular_columns(job, backward, tap_rows, &first, &end);
    Grid grid = {{0}, {0}, (backward ? -c->dilation : c->dilation) * x_step, stride * x_step,
                 backward ? 1 - c->dilation * s_step : 1, s_step, out_step, end - first};
    for (long g = 0; g < c->heads; g++) {
        const long from = g * job->head_channels, to = from + job->head_channels;
        const long first_tap = c->spatial ? (phase * c->heads + g) * job->area : 0;
        long done = from;
        if (first < end) {
            const long column = backward ? first + reach : first * stride - reach;
            for (long u = 0; u < k; u++) {
                grid.x[u] = s->row_x[u] + column * x_step;
                grid.s[u] = s->row_s[u] + (backward ? column : first) * s_step + first_tap + u * k;
            }
            done = sum_tiles(k, job->op, &grid, filter, c->channels, from, to, out + first * out_step, add);
        }
        for (long j = 0; j < n; j++) {
            if (j == first && done == to) j = end;
            if (j == n) break;
            long taps = 0;
            for (long row = 0; row < tap_rows; row++)
                for (long v = 0; v < k; v++) {
                    const long column = s->columns[j * k + v], tap = s->row_u[row] * k + v;
                    if (backward && column < 0) continue;
                    s->x[taps] = column < 0 ? job->zeros : s->row_x[row] + column * x_step;
                    s->v[taps] = filter + tap * c->channels;
                    s->s[taps++] = s->row_s[row] + (backward ? column : j) * s_step + first_tap + tap;
                }
            weighted_sum(job->op, taps, s->x, s->v, s->s, j >= first && j < end ? done : from, to, out + j * out_step, add);
        }
    }
}

static void forward_last(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    const long k = c->kernel, reach = k / 2 * c->dilation, size = c->columns * c->scale * c->channels;
    Rows x = map_rows(job, c->x, b, c->height, c->width, reach, begin * c->stride - reach, 2 * reach + 1, s->source);
    Rows spatial = spatial_rows(job, b, 0, begin, 1, s->spatial);
    fill_columns(job, s->columns, 0);
    for (long i = begin; i < end; i++) {
        for (long u = 0; u < k; u++) {
            const long row = i * c->stride + u * c->dilation - reach;
            s->row_u[u] = u;
            s->row_x[u] = row < 0 || row >= c->height ? job->zeros : fetch(&x, row);
            s->row_s[u] = fetch(&spatial, i);
        }
        for (long a = 0; a < c->scale; a++) {
            const long offset = ((b * c->rows + i) * c->scale + a) * size;
            A *out = c->x_type == OWN_TYPE ? (A *)c->y + offset : s->out;
            for (long e = 0; e < c->scale; e++)
                weighted_row(job, s, 0, a * c->scale + e, k, out + e * c->channels, 0);
            if (out == s->out) write_row(c->y, offset, 1, out, 1, c->x_type, size);
        }
    }
}

static void grad_x_last(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    const long k = c->kernel, reach = k / 2 * c->dilation, stride = c->stride, scale = c->scale;
    const long size = c->width * c->channels, first = (begin * stride - reach) / stride, span = 2 * reach / stride + 2;
    Rows grad_y = map_rows(job, c->grad_y, b, c->rows * scale, c->columns * scale, reach * scale, first * scale,
                           span * scale, s->grad_y);
    Rows spatial = spatial_rows(job, b, job->copied ? reach : 0, first, span, s->spatial);
    fill_columns(job, s->columns, 1);
    for (long i = begin * stride; i < end * stride && i < c->height; i++) {
        const long offset = (b * c->height + i) * size;
        A *out = c->x_type == OWN_TYPE ? (A *)c->grad_x + offset : s->out;
        for (long p = 0; p < job->phases; p++) {
            long tap_rows = 0;
            for (long u = 0; u < k; u++) {
                const long at = i + reach - u * c->dilation, row = at / stride;
                const int exists = at >= 0 && row < c->rows;
                if (at % stride || (!exists && !job->copied)) continue;
                s->row_u[tap_rows] = u;
                s->row_x[tap_rows] = exists ? fetch(&grad_y, row * scale + p / scale) + p % scale * c->channels : job->zeros;
                s->row_s[tap_rows++] = exists ? fetch(&spatial, row) : c->spatial ? job->zeros : job->ones;
            }
            weighted_row(job, s, 1, p, tap_rows, out, p > 0);
        }
        if (out == s->out) write_row(c->grad_x, offset, 1, out, 1, c->x_type, size);
    }
}

static void filters_last(const Job *job, Scratch *s, long b, long begin, long end, A *partial) {
    const Call *c = &job->c;
    const long k = c->kernel, reach = k / 2 * c->dilation, channels = c->channels, s_step = spatial_step(job);
    const long g_step = c->scale * channels, v_pitch = job->product ? channels : 0;
    const int want_v = c->grad_channel != NULL, want_s = c->grad_spatial != NULL;
    Rows x = map_rows(job, c->x, b, c->height, c->width, reach, begin * c->stride - reach, 2 * reach + 1, s->source);
    Rows grad_y = map_rows(job, c->grad_y, b, c->rows * c->scale, c->columns * c->scale, 0, begin * c->scale, 1, s->grad_y);
    Rows spatial = spatial_rows(job, b, 0, begin, 1, s->spatial);
    fill_columns(job, s->columns, 0);
    long first, end_column;
    regular_columns(job, 0, k, &first, &end_column);
    for (long i = begin; i < end; i++) {
        const A *s_row = fetch(&spatial, i);
        for (long u = 0; u < k; u++) {
            const long row = i * c->stride + u * c->dilation - reach;
            s->row_x[u] = row < 0 || row >= c->height ? job->zeros : fetch(&x, row);
        }
        if (want_s) memset(s->sums, 0, c->columns * job->taps * sizeof(A));
        for (long p = 0; p < job->phases; p++) {
            const A *g = fetch(&grad_y, i * c->scale + p / c->scale) + p % c->scale * channels;
            const A *v = job->product ? s->filter + p * job->area * channels : job->ones;
            A *gv = partial + p * job->area * channels;
            for (long head = 0; head < c->heads; head++) {
                const long tap = (p * c->heads + head) * job->area, from = head * job->head_channels;
                const long to = from + job->head_channels;
                long done = from;
                for (long j = first; j < end_column; j += BLOCK)
                    for (long u = 0; u < k; u++) {
                        const Grid grid = {{s->row_x[u] + (j * c->stride - reach) * channels},
                                           {job->product ? s_row + j * s_step + tap + u * k : job->ones},
                                           c->dilation * channels, c->stride * channels, 1, job->product ? s_step : 0, 0,
                                           smaller(BLOCK, end_column - j)};
                        done = gradient_tiles(k, want_v, want_s, &grid, g + j * g_step, g_step, v + u * k * v_pitch,
                                              v_pitch, gv + u * k * channels, channels,
                                              s->sums + j * job->taps + tap + u * k, job->taps, from, to);
                    }
                for (long j = 0; j < c->columns; j++) {
                    if (j == first && done == to) j = end_column;
                    if (j == c->columns) break;
                    for (long t = 0; t < job->area; t++) {
                        const long column = s->columns[j * k + t % k];
                        s->x[t] = column < 0 ? job->zeros : s->row_x[t / k] + column * channels;
                    }
                    filter_gradients(want_v, want_s, job->area, g + j * g_step, s->x, v, v_pitch,
                                     job->product ? s_row + j * s_step + tap : job->ones, gv, channels,
                                     s->sums + j * job->taps + tap, j >= first && j < end_column ? done : from, to);
                }
            }
        }
        for (long t = 0; want_s && t < job->taps; t++)
            write_row(c->grad_spatial, ((b * job->taps + t) * c->rows + i) * c->columns, 1, s->sums + t, job->taps,
                      c->spatial_type, c->columns);
    }
}

/* ---- contiguous: planes of one channel, padded with zeros, so that a tap is an offset ---- */

typedef struct { const void *from; int type; long offset, row_pitch, column_pitch, height, width; } Map;

/* to[m][n] = map[row + m * step][column + n * step], zero outside of the map. */
static void fill(A *to, long rows, long pitch, const Map *map, long row, long column, long step) {
    long begin = column < 0 ? (step - 1 - column) / step : 0, end = (map->width - 1 - column + step) / step;
    if (column >= map->width || end < 0) end = 0;
    if (end > pitch) end = pitch;
    if (begin > end) begin = end;
    for (long m = 0; m < rows; m++, row += step, to += pitch) {
        const int exists = row >= 0 && row < map->height;
        memset(to, 0, (exists ? begin : pitch) * sizeof(A));
        if (!exists) continue;
        read_row(to + begin, 1, map->from, map->offset + row * map->row_pitch + (column + begin * step) * map->column_pitch,
                 step * map->column_pitch, map->type, end - begin);
        memset(to + end, 0, (pitch - end) * sizeof(A));
    }
}

static Map channel_map(const Job *job, const void *from, long b, long channel, long height, long width) {
    return (Map){from, job->c.x_type, (b * job->c.channels + channel) * height * width, width, 1, height, width};
}

static void fill_spatial(const Job *job, A *to, long b, long head, long row, long rows, long column) {
    const Call *c = &job->c;
    for (long p = 0; c->spatial && p < job->phases; p++)
        for (long t = 0; t < job->area; t++, to += job->plane) {
            const long offset = b * c->spatial_steps[0] + ((p * c->heads + head) * job->area + t) * c->spatial_steps[1];
            const Map map = {c->spatial, c->spatial_type, offset, c->spatial_steps[2], c->spatial_steps[3], c->rows, c->columns};
            fill(to, rows, job->pitch, &map, row, column, 1);
        }
}

/* x of one channel, a plane for each remainder of row and column by the stride; s->x points to what the taps meet. */
static void fill_x(const Job *job, Scratch *s, long b, long channel, long begin, long rows) {
    const Call *c = &job->c;
    const long k = c->kernel, stride = c->stride, halo = job->halo, base = k / 2 * c->dilation;
    const Map map = channel_map(job, c->x, b, channel, c->height, c->width);
    for (long a = 0; a < stride; a++)
        for (long e = 0; e < stride; e++)
            fill(s->source + (a * stride + e) * job->plane, rows + 2 * halo, job->pitch, &map, (begin - halo) * stride + a,
                 -halo * stride + e, stride);
    for (long t = 0; t < job->area; t++) { /* + halo * stride: never negative */
        const long row = t / k * c->dilation - base + halo * stride, column = t % k * c->dilation - base + halo * stride;
        s->x[t] = s->source + (row % stride * stride + column % stride) * job->plane + row / stride * job->pitch + column / stride;
    }
}

/* grad_y of one channel, a plane for each phase. */
static void fill_grad_y(const Job *job, A *to, long b, long channel, long row, long rows, long column) {
    const Call *c = &job->c;
    const Map map = channel_map(job, c->grad_y, b, channel, c->rows * c->scale, c->columns * c->scale);
    for (long p = 0; p < job->phases; p++, to += job->plane)
        fill(to, rows, job->pitch, &map, row * c->scale + p / c->scale, column * c->scale + p % c->scale, c->scale);
}

static const A *channel_taps(const Job *job, const Scratch *s, long phase, long channel) {
    return job->c.channel ? s->filter + (phase * job->c.channels + channel) * job->area : job->ones;
}

static void forward_first(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    const long rows = end - begin, width = c->columns * c->scale;
    for (long channel = 0; channel < c->channels; channel++) {
        if (channel % job->head_channels == 0)
            fill_spatial(job, s->spatial, b, channel / job->head_channels, begin, rows, 0);
        fill_x(job, s, b, channel, begin, rows);
        for (long p = 0; p < job->phases; p++) {
            for (long t = 0; t < job->area; t++) {
                s->v[t] = s->spatial + (p * job->area + t) * job->plane;
                s->s[t] = channel_taps(job, s, p, channel) + t;
            }
            weighted_sum(job->op, job->area, s->x, s->v, s->s, 0, (rows - 1) * job->pitch + c->columns, s->out, 0);
            for (long m = 0; m < rows; m++) {
                const long row = ((b * c->channels + channel) * c->rows + begin + m) * c->scale + p / c->scale;
                write_row(c->y, row * width + p % c->scale, c->scale, s->out + m * job->pitch, 1, c->x_type, c->columns);
            }
        }
    }
}

static void grad_x_first(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    const long k = c->kernel, stride = c->stride, halo = job->halo, rows = end - begin, base = k / 2 * c->dilation;
    for (long channel = 0; channel < c->channels; channel++) {
        if (channel % job->head_channels == 0)
            fill_spatial(job, s->spatial, b, channel / job->head_channels, begin - halo, rows + 2 * halo, -halo);
        fill_grad_y(job, s->grad_y, b, channel, begin - halo, rows + 2 * halo, -halo);
        for (long a = 0; a < stride; a++)
            for (long e = 0; e < stride && e < c->width; e++) { /* pixels of x with these remainders by the stride */
                long taps = 0;
                for (long p = 0; p < job->phases; p++)
                    for (long t = 0; t < job->area; t++) {
                        const long row = a - t / k * c->dilation + base + halo * stride;
                        const long column = e - t % k * c->dilation + base + halo * stride;
                        const long offset = row / stride * job->pitch + column / stride;
                        if (row % stride || column % stride) continue;
                        s->x[taps] = s->grad_y + p * job->plane + offset;
                        s->v[taps] = s->spatial + (p * job->area + t) * job->plane + offset;
                        s->s[taps++] = channel_taps(job, s, p, channel) + t;
                    }
                weighted_sum(job->op, taps, s->x, s->v, s->s, 0, (rows - 1) * job->pitch + c->columns, s->out, 0);
                for (long m = 0; m < rows && (begin + m) * stride + a < c->height; m++) {
                    const long row = (b * c->channels + channel) * c->height + (begin + m) * stride + a;
                    write_row(c->grad_x, row * c->width + e, stride, s->out + m * job->pitch, 1, c->x_type,
                              (c->width - 1 - e) / stride + 1);
                }
            }
    }
}

static void filters_first(const Job *job, Scratch *s, long b, long begin, long end, A *partial) {
    const Call *c = &job->c;
    const long rows = end - begin, length = (rows - 1) * job->pitch + c->columns;
    for (long channel = 0; channel < c->channels; channel++) {
        const long head = channel / job->head_channels;
        if (channel % job->head_channels == 0) {
            fill_spatial(job, s->spatial, b, head, begin, rows, 0);
            if (c->grad_spatial) memset(s->sums, 0, job->phases * job->area * job->plane * sizeof(A));
        }
        fill_x(job, s, b, channel, begin, rows);
        fill_grad_y(job, s->grad_y, b, channel, begin, rows, 0);
        for (long p = 0; p < job->phases; p++)
            filter_gradients(c->grad_spatial != NULL, c->grad_channel != NULL, job->area, s->grad_y + p * job->plane, s->x,
                             job->product ? s->spatial + p * job->area * job->plane : job->ones,
                             job->product ? job->plane : 0, job->product ? channel_taps(job, s, p, channel) : job->ones,
                             s->sums + p * job->area * job->plane, job->plane,
                             partial + (p * c->channels + channel) * job->area, 0, length);
        if (c->grad_spatial && (channel + 1) % job->head_channels == 0)
            for (long t = 0; t < job->phases * job->area; t++)
                for (long m = 0; m < rows; m++) {
                    const long tap = (t / job->area * c->heads + head) * job->area + t % job->area;
                    const long row = (b * job->taps + tap) * c->rows + begin + m;
                    write_row(c->grad_spatial, row * c->columns, 1, s->sums + t * job->plane + m * job->pitch, 1,
                              c->spatial_type, c->columns);
                }
    }
}

/* ---- items and threads ---- */

/* grad_channel of image b: the sums of its items, in their order. */
static void add_partials(const Job *job, long b) {
    const Call *c = &job->c;
    const long tap = c->channels_last ? c->channels : 1, channel = c->channels_last ? 1 : job->area;
    const long size = job->phases * job->area * c->channels;
    A *total = job->partials + b * job->chunks * size;
    for (long chunk = 1; chunk < job->chunks; chunk++)
        for (long i = 0; i < size; i++) total[i] += total[chunk * size + i];
    for (long p = 0; p < job->phases; p++)
        for (long t = 0; t < job->area; t++)
            write_row(c->grad_channel, (b * job->phases + p) * c->channels * job->area + t, job->area,
                      total + p * job->area * c->channels + t * tap, channel, c->channel_type, c->channels);
}

static void run_item(Job *job, Scratch *s, long item) {
    const Call *c = &job->c;
    const long b = item / job->chunks, begin = item % job->chunks * job->chunk;
    const long end = smaller(begin + job->chunk, c->rows);
    if (s->image != b) load_filter(job, s, b), s->image = b;
    if (c->y) (c->channels_last ? forward_last : forward_first)(job, s, b, begin, end);
    if (c->grad_channel || c->grad_spatial) {
        A *partial = job->partials + item * job->phases * job->area * c->channels;
        (c->channels_last ? filters_last : filters_first)(job, s, b, begin, end, partial);
        if (c->grad_channel && __atomic_sub_fetch(&job->left[b], 1, __ATOMIC_ACQ_REL) == 0) add_partials(job, b);
    }
    if (c->grad_x) (c->channels_last ? grad_x_last : grad_x_first)(job, s, b, begin, end);
}

/* Divides `memory` of one thread, or with NULL only adds up. Returns the bytes taken. */
static size_t divide(const Job *job, Scratch *s, char *memory) {
    const Call *c = &job->c;
    const long reach = c->kernel / 2 * c->dilation, planes = job->phases * job->area, all = planes * c->channels;
    const long x_row = c->width * c->channels, y_row = c->columns * c->scale * c->channels;
    const long span = 2 * reach / c->stride + 2, last = c->channels_last, pads = 2 * reach * c->channels;
    size_t taken = 0;
#define TAKE(field, count) \
    s->field = (void *)(memory ? memory + taken : NULL), taken += ((count) * sizeof(*s->field) + 63) / 64 * 64
    TAKE(filter, all);
    TAKE(spatial, last ? span * (c->columns + 2 * reach) * job->taps : planes * job->plane);
    TAKE(source, !last ? c->stride * c->stride * job->plane : job->copied ? (2 * reach + 1) * (x_row + pads) : 0);
    TAKE(grad_y, c->y ? 0 : !last ? job->phases * job->plane : job->copied ? span * c->scale * (y_row + c->scale * pads) : 0);
    TAKE(sums, last ? c->columns * job->taps : planes * job->plane);
    TAKE(out, !last ? job->plane : c->x_type != OWN_TYPE ? larger(x_row, y_row) : 0);
    TAKE(x, planes); TAKE(v, planes); TAKE(s, planes);
    TAKE(row_x, c->kernel); TAKE(row_s, c->kernel); TAKE(row_u, c->kernel);
    TAKE(columns, c->width * c->kernel);
    s->image = -1;
    return taken;
}

typedef struct { Job *job; char *memory; } Worker;

static void *work(void *argument) {
    const Worker *worker = argument;
    Scratch scratch;
    divide(worker->job, &scratch, worker->memory);
    for (long item; (item = __atomic_fetch_add(&worker->job->next, 1, __ATOMIC_RELAXED)) < worker->job->items;)
        run_item(worker->job, &scratch, item);
    return NULL;
}

/* 0, or -1 if there is no memory. No tensor may be empty. */
int ddf_run(const Call *call) {
    Job job = {.c = *call};
    const Call *c = &job.c;
    const long reach = c->kernel / 2 * c->dilation;
    job.area = c->kernel * c->kernel;
    job.phases = c->scale * c->scale;
    job.head_channels = c->channels / c->heads;
    job.taps = job.phases * c->heads * job.area;
    job.halo = (reach + c->stride - 1) / c->stride;
    job.pitch = c->columns + 2 * job.halo;
    job.product = c->multiply && c->channel && c->spatial;
    job.op = !(c->channels_last ? c->channel : c->spatial) ? SCALAR
             : job.product || !c->channel || !c->spatial ? MULTIPLY : ADD;
    /* an item: 512 pixels or a million multiplications, but not so few rows that their borders are most of the work */
    const long row_work = job.phases * job.area * c->channels * c->columns;
    job.chunk = smaller(c->rows, larger(4, smaller(512 / c->columns, (1 << 20) / row_work)));
    job.chunks = (c->rows + job.chunk - 1) / job.chunk;
    job.chunk = (c->rows + job.chunks - 1) / job.chunks;
    job.chunks = (c->rows + job.chunk - 1) / job.chunk;
    job.plane = (job.chunk + 2 * job.halo) * job.pitch;
    job.copied = c->channels_last && (c->x_type != OWN_TYPE || c->width < NARROW);
    job.items = c->batch * job.chunks;
    /* a thread costs what half a million multiplications take */
    const long worthwhile = c->batch * c->rows * row_work * (c->y ? 1 : 3) >> 19;
    const long threads = larger(1, smaller(c->threads, smaller(job.items, worthwhile)));

    Scratch unused;
    const size_t size = divide(&job, &unused, NULL);
    const long zero_pixel = larger(c->channels, job.taps), margin = reach * c->scale * zero_pixel;
    const long zeros = larger(c->width, c->columns * c->scale) * zero_pixel + 2 * margin;
    const long ones = larger(job.taps, larger(c->channels, job.plane));
    const long partials = c->grad_channel ? c->batch * job.chunks * job.phases * job.area * c->channels : 0;
    char *memory = NULL;
    A *zero_memory = calloc(zeros, sizeof(A));
    job.zeros = zero_memory + margin;
    job.ones = malloc(ones * sizeof(A));
    job.partials = calloc(partials + 1, sizeof(A));
    job.left = malloc(c->batch * sizeof(long));
    const int failed = !zero_memory || !job.ones || !job.partials || !job.left || posix_memalign((void **)&memory, 64, threads * size);
    if (!failed) {
        pthread_t handles[threads];
        Worker workers[threads];
        long started = 1;
        for (long i = 0; i < ones; i++) job.ones[i] = 1;
        for (long b = 0; b < c->batch; b++) job.left[b] = job.chunks;
        for (long i = 0; i < threads; i++) workers[i] = (Worker){&job, memory + i * size};
        while (started < threads && !pthread_create(&handles[started], NULL, work, &workers[started])) started++;
        work(&workers[0]); /* whatever threads could not be started, all items get done */
        while (--started > 0) pthread_join(handles[started], NULL);
    }
    free(zero_memory), free(job.ones), free(job.partials), free(job.left), free(memory);
    return failed ? -1 : 0;
}
