/* The arithmetic of native.c: the loops over taps and channels. */
#include "../native_types.h"

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
typedef A Quad __attribute__((vector_size(16), may_alias));
#define VECTOR(p) (*(Unaligned *)(p))

enum { MULTIPLY, ADD, SPATIAL }; /* how the two filters become one; SPATIAL: there is no channel filter */

/* Pixels in a row and their taps, of which there are `rows` rows of `taps`. Tap t of row u of pixel j meets
 * x[u][x_first + t * x_tap + j * x_pixel], a vector of channels, with the weights v[u][v_first + t * v_tap] and the
 * scalar s[u][s_first + t * s_tap + j * s_pixel]. */
typedef struct {
    long n, rows, taps;
    const A *const *x, *const *s, *const *v;
    long x_first, x_tap, x_pixel, s_first, s_tap, s_pixel, v_first, v_tap;
} Grid;

/* out[j] (+)= sum over the taps of x * (v * s), or x * (v + s), or x * s, for one or two vectors of channels. K: rows
 * and taps, or 0 if they are known at run time only. `dense`: the scalars of a pixel are neighbors. */
INLINE void sum_tile(const int K, const int op, const int dense, const int vectors, const Grid *grid, long from,
                     A *restrict out, long out_pixel, int add) {
    const int held = K == 3 && op != SPATIAL; /* the weights stay in registers */
    const long rows = K ? K : grid->rows, taps = K ? K : grid->taps;
    const long x_tap = grid->x_tap, x_pixel = grid->x_pixel, s_tap = dense ? 1 : grid->s_tap, s_pixel = grid->s_pixel;
    const long v_tap = grid->v_tap, x_first = grid->x_first + from, v_first = grid->v_first + from;
    const A *x[7], *s[7];
    Vector weights[9][2];
    for (int u = 0; u < K; u++) x[u] = grid->x[u] + x_first, s[u] = grid->s[u] + grid->s_first;
    for (int t = 0; held && t < 9; t++)
        for (int i = 0; i < vectors; i++) weights[t][i] = VECTOR(grid->v[t / 3] + v_first + t % 3 * v_tap + i * LANES);
    out += from;
    for (long j = 0; j < grid->n; j++, out += out_pixel) {
        Vector sum[2] = {{0}, {0}};
        for (int i = 0; add && i < vectors; i++) sum[i] = VECTOR(out + i * LANES);
        for (int i = 0; K && i < vectors; i++) __builtin_prefetch(x[K - 1] + 8 * x_pixel + i * LANES);
#pragma GCC unroll 7
        for (long u = 0; u < rows; u++) {
            const A *x_row = K ? x[u] : grid->x[u] + x_first + j * x_pixel;
            const A *s_row = dense ? s[0] + u * K : K ? s[u] : grid->s[u] + grid->s_first + j * s_pixel;
#pragma GCC unroll 7
            for (long t = 0; t < taps; t++) {
                const A scalar = s_row[t * s_tap];
#pragma GCC unroll 2
                for (int i = 0; i < vectors; i++) {
                    const Vector value = VECTOR(x_row + t * x_tap + i * LANES);
                    Vector weight = {0};
                    if (held) weight = weights[u * K + t][i];
                    else if (op != SPATIAL) weight = VECTOR(grid->v[u] + v_first + t * v_tap + i * LANES);
                    if (op == MULTIPLY) sum[i] += value * (weight * scalar);
                    else if (op == ADD) sum[i] += value * (weight + scalar);
                    else sum[i] += value * scalar;
                }
            }
        }
        for (int i = 0; i < vectors; i++) VECTOR(out + i * LANES) = sum[i];
        for (int u = 0; u < K; u++) x[u] += x_pixel, s[u] += s_pixel;
    }
}

#define SUM_STRIPS(K, OP, DENSE, ADD)                                                                            \
    {                                                                                                            \
        for (; from + 2 * LANES <= to; from += 2 * LANES) sum_tile(K, OP, DENSE, 2, grid, from, out, pixel, ADD); \
        for (; from < to; from += LANES) sum_tile(K, OP, DENSE, 1, grid, from, out, pixel, ADD);                 \
    }
#define SUM_TILES(K)                                                    \
    case 4 * K + MULTIPLY: SUM_STRIPS(K, MULTIPLY, 0, add) break;       \
    case 4 * K + ADD: SUM_STRIPS(K, ADD, 0, add) break;                 \
    case 4 * K + SPATIAL: SUM_STRIPS(K, SPATIAL, 0, add) break;

static void sum_tiles(int op, const Grid *grid, long from, long to, A *out, long pixel, int add) {
    const long k = grid->rows == grid->taps && (grid->rows == 3 || grid->rows == 5 || grid->rows == 7) ? grid->rows : 0;
    const int dense = k == 3 && !add && grid->s_tap == 1 && grid->s[1] == grid->s[0] + 3 &&
                      grid->s[2] == grid->s[0] + 6;
    switch (dense ? 100 + op : 4 * k + op) {
        SUM_TILES(3) SUM_TILES(5) SUM_TILES(7)
    case 100 + MULTIPLY: SUM_STRIPS(3, MULTIPLY, 1, 0) break; /* (fewer registers for addresses) */
    case 100 + ADD: SUM_STRIPS(3, ADD, 1, 0) break;
    case 100 + SPATIAL: SUM_STRIPS(3, SPATIAL, 1, 0) break;
    case MULTIPLY: SUM_STRIPS(0, MULTIPLY, 0, add) break;
    case ADD: SUM_STRIPS(0, ADD, 0, add) break;
    case SPATIAL: SUM_STRIPS(0, SPATIAL, 0, add) break;
    }
}

/* For the K taps of row u from tap t0 on, one or two pixels from pixel j on, and grad_y in g:
 * gv[t] += g * x * s;  lanes[j][t] = g * x * v, summed over the vectors of channels but not over their lanes. */
INLINE void gradient_tile(const int K, const int want_v, const int want_s, const int pixels, const Grid *grid, long u,
                          long t0, long j, const A *restrict g, long g_pixel, A *restrict gv, long gv_tap, long from,
                          long to, A *restrict lanes) {
    const long x_tap = grid->x_tap, x_pixel = grid->x_pixel, v_tap = grid->v_tap;
    const A *x = grid->x[u] + grid->x_first + t0 * x_tap + j * x_pixel, *v = grid->v[u] + t0 * v_tap;
    const A *s = grid->s[u] + grid->s_first + t0 + j * grid->s_pixel;
    Vector sums[2][7] = {{{0}}};
    A scalars[2][7];
    for (int p = 0; want_v && p < pixels; p++)
        for (int t = 0; t < K; t++) scalars[p][t] = s[p * grid->s_pixel + t];
    for (long c = from; c < to; c += LANES)
#pragma GCC unroll 7
        for (int t = 0; t < K; t++) {
            Vector weight = {0}, total = {0};
            if (want_v) total = VECTOR(gv + t * gv_tap + c);
            if (want_s) weight = VECTOR(v + t * v_tap + c);
#pragma GCC unroll 2
            for (int p = 0; p < pixels; p++) {
                const Vector product = VECTOR(g + p * g_pixel + c) * VECTOR(x + p * x_pixel + t * x_tap + c);
                if (want_v) total += product * scalars[p][t];
                if (want_s) sums[p][t] += product * weight;
            }
            if (want_v) VECTOR(gv + t * gv_tap + c) = total;
        }
    for (int p = 0; want_s && p < pixels; p++)
        for (int t = 0; t < K; t++) VECTOR(lanes + (p * K + t) * LANES) = sums[p][t];
}

/* to[i] = the sum over the lanes of vector i. */
static void sum_lanes(A *restrict to, A *lanes, long n) {
    const long quad = 16 / sizeof(A);
    for (long i = 0; i < n; i++) { /* in place: 16 bytes are left of each vector */
        Quad total = *(Quad *)(lanes + i * LANES);
        for (long l = quad; l < LANES; l += quad) total += *(Quad *)(lanes + i * LANES + l);
        *(Quad *)(lanes + i * quad) = total;
    }
    if (quad == 4)
        for (long i = 0; i < n; i++)
            to[i] = (lanes[4 * i] + lanes[4 * i + 1]) + (lanes[4 * i + 2] + lanes[4 * i + 3]);
    else
        for (long i = 0; i < n; i++) to[i] = lanes[2 * i] + lanes[2 * i + 1];
}

#define BLOCK 64 /* pixels */
#define GRADIENT(PIXELS)                                                                                              \
    gradient_tile(K, want_v, want_s, PIXELS, grid, u, t0, j, g + j * g_pixel, g_pixel, gv + t0 * gv_tap, gv_tap, from, \
                  to, lanes + (j - begin) * K * LANES)

INLINE void gradient_row(const int K, const int want_v, const int want_s, const Grid *grid, long u, const A *g,
                         long g_pixel, A *gv, long gv_tap, A *gs, long gs_pixel, long from, long to) {
    A lanes[BLOCK * 7 * LANES] __attribute__((aligned(VECTOR_BYTES))), sums[BLOCK * 7];
    for (long t0 = 0; t0 < grid->taps; t0 += K)
        for (long begin = 0, j = 0; begin < grid->n; begin = j) {
            const long end = smaller(begin + BLOCK, grid->n);
            for (; j + 2 <= end; j += 2) GRADIENT(2);
            for (; j < end; j++) GRADIENT(1);
            if (want_s) sum_lanes(sums, lanes, (end - begin) * K);
            for (long i = begin; want_s && i < end; i++)
                for (int t = 0; t < K; t++) gs[i * gs_pixel + t0 + t] += sums[(i - begin) * K + t];
        }
}

#define GRADIENT_ROWS(K)                                                                              \
    if (gv && gs) gradient_row(K, 1, 1, grid, u, g, g_pixel, gv, gv_tap, gs, gs_pixel, from, to);     \
    else if (gv) gradient_row(K, 1, 0, grid, u, g, g_pixel, gv, gv_tap, NULL, 0, from, to);           \
    else gradient_row(K, 0, 1, grid, u, g, g_pixel, NULL, 0, gs, gs_pixel, from, to);

/* Gradients of the weights and scalars of tap row u, added to gv and gs, which may be NULL. */
static void gradient_rows(const Grid *grid, long u, const A *g, long g_pixel, A *gv, long gv_tap, A *gs, long gs_pixel,
                          long from, long to) {
    switch (grid->taps) {
    case 3: GRADIENT_ROWS(3) break;
    case 5: GRADIENT_ROWS(5) break;
    case 7: GRADIENT_ROWS(7) break;
    default: GRADIENT_ROWS(1)
    }
}
