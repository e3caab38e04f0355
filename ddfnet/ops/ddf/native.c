/* The DDF operators on a CPU: y and the gradients of x, channel filter and spatial filter.
 *
 * native.py compiles this file with -DA=float or -DA=double, the type of all arithmetic. Tensors are stored in any of
 * the types of `Type`. The arithmetic runs over the channels of a pixel, which are neighbors in memory in channels_last
 * tensors; those of type A are read and written where they are. All others pass row by row through small rings, which
 * stay in the cache: converted, transposed, with zeros around them, and with the channels of each head filled up with
 * zeros to whole vectors. So no other layout, type, size or border has a loop of its own.
 *
 * Work is cut into items, some rows of an image each, in a way that knows nothing of the number of threads; an item
 * writes what no other item writes, and sums over items are taken in order. So every result is the same bits for any
 * number of threads.
 */
#include <stdlib.h>

#include "../native_threads.h"
#include "native_tiles.h"

typedef struct { /* as in native.py */
    const void *x, *channel, *spatial, *grad_y;
    void *y, *grad_x, *grad_channel, *grad_spatial;        /* NULL: not wanted */
    int64_t batch, channels, height, width, rows, columns; /* rows, columns: of the spatial filter */
    int64_t kernel, stride, dilation, heads, scale;
    int64_t spatial_steps[4]; /* elements between neighbors along its axes */
    int64_t x_type, channel_type, spatial_type, channels_last, multiply, threads;
} Call;

typedef struct {
    Call c;
    long area, phases, reach;                 /* taps of a filter; scale * scale; kernel / 2 * dilation */
    long head_channels, head_pitch, pixel;    /* channels of a head; with its zeros; of all heads with their zeros */
    long taps, s_pixel;                       /* scalars of a pixel, all phases and heads; 0 without spatial filter */
    long y_height, y_width, x_slots, g_slots; /* slots: rows in a ring */
    long chunk, chunks, items, next;          /* rows of an item; items of an image; of all; the next to be done */
    int op, product;
    int in_place, ringed;       /* whether y and grad_x are written where they are; whether x and grad_y pass rings */
    A *zeros, *ones, *partials; /* partials: the sums of each item for grad_channel */
    long *left;                 /* for each image, the items whose sums are not complete */
    char *memory;               /* of the threads, `size` bytes each */
    size_t size;
} Job;

typedef struct { /* of one thread */
    A *filter, *spatial, *x, *grad_y, *patch, *sums, *out;
    const A **row_x, **row_s, **row_v, **patch_x; /* for each row of taps: what it meets, and its weights */
    long image;                                   /* whose channel filter `filter` holds */
} Scratch;

/* ---- rows of tensors ---- */

typedef struct { /* rows of an image in type A: where they are, or copied into a ring when first asked for */
    const A *direct;
    A *ring;
    long slots, pitch, pad, next; /* pad: elements before and after a row; next: the first that was not asked for */
    const void *from;
    long type, offset, row_step, column_step, columns;
    long groups, group, group_pitch, step; /* a column: groups * group elements, its groups at a pitch in the ring */
} Rows;

static const A *fetch(Rows *r, long i) {
    if (r->direct) return r->direct + i * r->pitch;
    const long column = r->groups * r->group_pitch;
    for (; r->next <= i; r->next++) {
        A *row = r->ring + r->next % r->slots * r->pitch + r->pad;
        const long offset = r->offset + r->next * r->row_step;
        if (r->step == 1 && r->column_step == column && r->group == r->group_pitch)
            load(row, 0, 1, r->from, offset, 1, r->type, r->columns * column);
        else
            for (long t = 0; t < r->groups * r->group; t++)
                load(row, t / r->group * r->group_pitch + t % r->group, column, r->from, offset + t * r->step,
                     r->column_step, r->type, r->columns);
    }
    return r->ring + i % r->slots * r->pitch + r->pad;
}

/* Rows of image b of x or grad_y, from row `first` on, with zeros for `pad` columns on either side. */
static Rows map_rows(const Job *job, const void *from, long b, long height, long width, long first, A *ring, long slots,
                     long pad) {
    const Call *c = &job->c;
    const long size = height * width, last = c->channels_last, offset = b * c->channels * size;
    if (!job->ringed) return (Rows){.direct = (const A *)from + offset, .pitch = width * c->channels};
    return (Rows){.ring = ring, .slots = slots, .pitch = (width + 2 * pad) * job->pixel, .pad = pad * job->pixel,
                  .next = larger(first, 0), .from = from, .type = c->x_type, .offset = offset,
                  .row_step = last ? width * c->channels : width, .column_step = last ? c->channels : 1,
                  .columns = width, .groups = c->heads, .group = job->head_channels, .group_pitch = job->head_pitch,
                  .step = last ? 1 : size};
}

static Rows x_rows(const Job *job, const Scratch *s, long b, long begin) {
    const Call *c = &job->c;
    const long first = begin * c->stride - job->reach;
    return map_rows(job, c->x, b, c->height, c->width, first, s->x, job->x_slots, job->reach);
}

static Rows grad_y_rows(const Job *job, const Scratch *s, long b, long first) {
    return map_rows(job, job->c.grad_y, b, job->y_height, job->y_width, first * job->c.scale, s->grad_y,
                    job->g_slots * job->c.scale, job->reach * job->c.scale);
}

/* Rows of image b of the spatial filter: for each pixel its scalars. */
static Rows spatial_rows(const Job *job, const Scratch *s, long b, long first, int padded) {
    const Call *c = &job->c;
    const int64_t *steps = c->spatial_steps;
    if (!c->spatial) return (Rows){.direct = job->ones};
    if (!padded && c->spatial_type == OWN_TYPE && steps[1] == 1 && steps[3] == job->taps)
        return (Rows){.direct = (const A *)c->spatial + b * steps[0], .pitch = steps[2]};
    return (Rows){.ring = s->spatial, .slots = job->g_slots, .pitch = (c->columns + 2 * job->reach) * job->taps,
                  .pad = job->reach * job->taps, .next = larger(first, 0), .from = c->spatial, .type = c->spatial_type,
                  .offset = b * steps[0], .row_step = steps[2], .column_step = steps[3], .columns = c->columns,
                  .groups = 1, .group = job->taps, .group_pitch = job->taps, .step = steps[1]};
}

/* Where a row of y or grad_x is computed, and how it gets where it belongs. */
static A *out_row(const Job *job, const Scratch *s, void *to, long b, long height, long width, long row) {
    return job->in_place ? (A *)to + (b * height + row) * width * job->pixel : s->out;
}

static void store_row(const Job *job, const Scratch *s, void *to, long b, long height, long width, long row) {
    const Call *c = &job->c;
    const long last = c->channels_last, size = height * width, image = b * c->channels * size;
    const long offset = image + row * width * (last ? c->channels : 1);
    if (job->in_place) return;
    if (last && job->pixel == c->channels) store(to, offset, 1, s->out, 0, 1, c->x_type, width * c->channels);
    else
        for (long t = 0; t < c->channels; t++)
            store(to, offset + t * (last ? 1 : size), last ? c->channels : 1, s->out,
                  t / job->head_channels * job->head_pitch + t % job->head_channels, job->pixel, c->x_type, width);
}

/* The channel filter of image b as (phase, tap, channel); back: its gradient from there. */
static void copy_filter(const Job *job, A *filter, long b, int back) {
    const Call *c = &job->c;
    for (long i = 0; i < job->phases * job->area * c->heads; i++) {
        const long p = i / c->heads / job->area, t = i / c->heads % job->area, head = i % c->heads;
        const long own = i / c->heads * job->pixel + head * job->head_pitch;
        const long other = ((b * job->phases + p) * c->channels + head * job->head_channels) * job->area + t;
        if (back) store(c->grad_channel, other, job->area, filter, own, 1, c->channel_type, job->head_channels);
        else load(filter, own, 1, c->channel, other, job->area, c->channel_type, job->head_channels);
    }
}

/* ---- y and the gradients, for some rows of one image ---- */

typedef struct { long first, n, column, x_step; const A *const *x; } Region; /* x: rows of x from `column` on */

/* Cuts a row of n pixels into at most three regions in which all taps exist. Where rows are not padded with zeros, the
 * pixels at either end get a patch that is. `width`: columns of the rows in s->row_x. */
static int cut(const Job *job, const Scratch *s, long n, long stride, long width, long x_step, long rows,
               Region *regions) {
    const long reach = job->reach, bytes = job->pixel * sizeof(A);
    if (job->ringed) return regions[0] = (Region){0, n, 0, x_step, s->row_x}, 1;
    const long first = smaller(n, (reach + stride - 1) / stride);
    const long end = larger(first, smaller(n, width > reach ? (width - 1 - reach) / stride + 1 : 0));
    int count = 0;
    if (end > first) regions[count++] = (Region){first, end - first, 0, x_step, s->row_x};
    for (long side = 0; side < 2; side++) {
        const long begin = side ? end : 0, pixels = side ? n - end : first, column = begin * stride - reach;
        const long columns = (pixels - 1) * stride + 2 * reach + 1;
        const A **patch_x = s->patch_x + side * rows;
        if (pixels <= 0) continue;
        regions[count++] = (Region){begin, pixels, column, job->pixel, patch_x};
        for (long u = 0; u < rows; u++) {
            A *patch = s->patch + (side * rows + u) * 3 * reach * job->pixel;
            patch_x[u] = patch;
            for (long j = column; j < column + columns; j++, patch += job->pixel)
                if (j < 0 || j >= width) memset(patch, 0, bytes);
                else memcpy(patch, s->row_x[u] + j * x_step, bytes);
        }
    }
    return count;
}

/* A row of y, or of grad_x, for one phase: the weighted sums over the rows of taps in s->row_x, row_s and row_v.
 * Columns of grad_x with one remainder e by the stride meet every `every`-th tap of a row. */
static void sum_row(const Job *job, const Scratch *s, int backward, long phase, long rows, A *out, int add) {
    const Call *c = &job->c;
    const long stride = c->stride, d = c->dilation, x_step = job->pixel * (backward ? c->scale : 1);
    long every = 1;
    while (backward && every * d % stride) every++;
    for (long e = 0; e < (backward ? smaller(stride, c->width) : 1); e++) {
        long t0 = 0;
        while (backward && t0 < every && (e + job->reach - t0 * d) % stride) t0++;
        const long taps = t0 < every ? (c->kernel - t0 + every - 1) / every : 0;
        const long pixels = backward ? (c->width - e + stride - 1) / stride : c->columns;
        const long width = backward ? c->columns : c->width, step = backward ? 1 : stride, shift = t0 * d - job->reach;
        Region regions[3];
        const int count = cut(job, s, pixels, step, width, x_step, rows, regions);
        for (const Region *r = regions; r < regions + count; r++) {
            const long column = backward ? r->first + (e - shift) / stride : r->first * stride + shift;
            const long tap = backward ? -(every * d / stride) : d; /* columns from one tap to the next */
            const long out_pixel = job->pixel * (backward ? stride : c->scale);
            Grid grid = {r->n, rows, larger(taps, 0), r->x, s->row_s, s->row_v, (column - r->column) * r->x_step,
                         tap * r->x_step, step * r->x_step, 0,
                         backward ? every + tap * job->s_pixel : 1, job->s_pixel, t0 * job->pixel, every * job->pixel};
            for (long head = 0; head < c->heads; head++) {
                grid.s_first = (backward ? column : r->first) * job->s_pixel + t0;
                if (c->spatial) grid.s_first += (phase * c->heads + head) * job->area;
                sum_tiles(job->op, &grid, head * job->head_pitch, (head + 1) * job->head_pitch,
                          out + e * job->pixel + r->first * out_pixel, out_pixel, add);
            }
        }
    }
}

static void forward_item(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    Rows x = x_rows(job, s, b, begin), spatial = spatial_rows(job, s, b, begin, 0);
    for (long i = begin; i < end; i++)
        for (long a = 0; a < c->scale; a++) {
            A *out = out_row(job, s, c->y, b, job->y_height, job->y_width, i * c->scale + a);
            for (long p = a * c->scale; p < (a + 1) * c->scale; p++) {
                for (long u = 0; u < c->kernel; u++) {
                    const long row = i * c->stride + u * c->dilation - job->reach;
                    s->row_x[u] = row < 0 || row >= c->height ? job->zeros : fetch(&x, row);
                    s->row_s[u] = fetch(&spatial, i) + u * c->kernel;
                    s->row_v[u] = s->filter + (p * job->area + u * c->kernel) * job->pixel;
                }
                sum_row(job, s, 0, p, c->kernel, out + p % c->scale * job->pixel, 0);
            }
            store_row(job, s, c->y, b, job->y_height, job->y_width, i * c->scale + a);
        }
}

static void grad_x_item(const Job *job, Scratch *s, long b, long begin, long end) {
    const Call *c = &job->c;
    const long first = (begin * c->stride - job->reach) / c->stride;
    Rows grad_y = grad_y_rows(job, s, b, first), spatial = spatial_rows(job, s, b, first, 1);
    for (long i = begin * c->stride; i < smaller(end * c->stride, c->height); i++) {
        A *out = out_row(job, s, c->grad_x, b, c->height, c->width, i);
        for (long p = 0; p < job->phases; p++) {
            long rows = 0;
            for (long u = 0; u < c->kernel; u++) {
                const long at = i + job->reach - u * c->dilation, row = at / c->stride;
                const int exists = at >= 0 && row < c->rows;
                if (at % c->stride) continue;
                s->row_x[rows] = job->zeros;
                if (exists) s->row_x[rows] = fetch(&grad_y, row * c->scale + p / c->scale) + p % c->scale * job->pixel;
                s->row_s[rows] = (exists ? fetch(&spatial, row) : c->spatial ? job->zeros : job->ones) + u * c->kernel;
                s->row_v[rows++] = s->filter + (p * job->area + u * c->kernel) * job->pixel;
            }
            sum_row(job, s, 1, p, rows, out, p > 0);
        }
        store_row(job, s, c->grad_x, b, c->height, c->width, i);
    }
}

static void filters_item(const Job *job, Scratch *s, long b, long begin, long end, A *partial) {
    const Call *c = &job->c;
    const long k = c->kernel, product = job->product, g_pixel = c->scale * job->pixel;
    Rows x = x_rows(job, s, b, begin), grad_y = grad_y_rows(job, s, b, begin);
    Rows spatial = spatial_rows(job, s, b, begin, 0);
    for (long i = begin; i < end; i++) {
        for (long u = 0; u < k; u++) {
            const long row = i * c->stride + u * c->dilation - job->reach;
            s->row_x[u] = row < 0 || row >= c->height ? job->zeros : fetch(&x, row);
            s->row_s[u] = product ? fetch(&spatial, i) + u * k : job->ones;
        }
        Region regions[3];
        const int count = cut(job, s, c->columns, c->stride, c->width, job->pixel, k, regions);
        if (c->grad_spatial) memset(s->sums, 0, c->columns * job->taps * sizeof(A));
        for (long part = 0; part < job->phases * c->heads * count; part++) {
            const Region *r = &regions[part % count];
            const long p = part / count / c->heads, head = part / count % c->heads, tap = part / count * job->area;
            const A *g = fetch(&grad_y, i * c->scale + p / c->scale) + p % c->scale * job->pixel + r->first * g_pixel;
            const Grid grid = {r->n, k, k, r->x, s->row_s, s->row_v,
                               (r->first * c->stride - job->reach - r->column) * r->x_step, c->dilation * r->x_step,
                               c->stride * r->x_step, product ? r->first * job->s_pixel + tap : 0, 1,
                               product ? job->s_pixel : 0, 0, product ? job->pixel : 0};
            for (long u = 0; u < k; u++) {
                const long weights = (p * job->area + u * k) * job->pixel;
                s->row_v[u] = product ? s->filter + weights : job->ones;
                gradient_rows(&grid, u, g, g_pixel, c->grad_channel ? partial + weights : NULL, job->pixel,
                              c->grad_spatial ? s->sums + r->first * job->taps + tap + u * k : NULL, job->taps,
                              head * job->head_pitch, (head + 1) * job->head_pitch);
            }
        }
        for (long t = 0; c->grad_spatial && t < job->taps; t++)
            store(c->grad_spatial, ((b * job->taps + t) * c->rows + i) * c->columns, 1, s->sums, t, job->taps,
                  c->spatial_type, c->columns);
    }
}

/* ---- items and threads ---- */

static void run_item(Job *job, Scratch *s, long item) {
    const Call *c = &job->c;
    const long b = item / job->chunks, begin = item % job->chunks * job->chunk;
    const long end = smaller(begin + job->chunk, c->rows), size = job->phases * job->area * job->pixel;
    if (c->channel && s->image != b) copy_filter(job, s->filter, b, 0), s->image = b;
    if (c->y) forward_item(job, s, b, begin, end);
    if (c->grad_channel || c->grad_spatial) {
        filters_item(job, s, b, begin, end, job->partials + item * size);
        if (c->grad_channel && __atomic_sub_fetch(&job->left[b], 1, __ATOMIC_ACQ_REL) == 0) {
            A *total = job->partials + b * job->chunks * size; /* the last item of the image adds up, in order */
            for (long i = 1; i < job->chunks; i++)
                for (long n = 0; n < size; n++) total[n] += total[i * size + n];
            copy_filter(job, total, b, 1);
        }
    }
    if (c->grad_x) grad_x_item(job, s, b, begin, end);
}

/* Divides the memory of one thread, or with NULL only adds it up. Returns the bytes taken. */
static size_t divide(const Job *job, Scratch *s, char *memory) {
    const Call *c = &job->c;
    const long k = c->kernel, pads = 2 * job->reach;
    size_t taken = 0;
#define TAKE(field, count) \
    s->field = (void *)(memory ? memory + taken : NULL), taken += ((count) * sizeof(*s->field) + 63) / 64 * 64
    TAKE(filter, job->phases * job->area * job->pixel);
    TAKE(spatial, job->g_slots * (c->columns + pads) * job->taps);
    TAKE(x, job->ringed ? job->x_slots * (c->width + pads) * job->pixel : 0);
    TAKE(grad_y, job->ringed && !c->y ? job->g_slots * c->scale * (c->columns + pads) * c->scale * job->pixel : 0);
    TAKE(patch, job->ringed ? 0 : 2 * k * 3 * job->reach * job->pixel);
    TAKE(sums, c->columns * job->taps);
    TAKE(out, job->in_place ? 0 : larger(c->width, job->y_width) * job->pixel);
    TAKE(row_x, k); TAKE(row_s, k); TAKE(row_v, k); TAKE(patch_x, 2 * k);
    s->image = -1;
    return taken;
}

static void work(void *argument, long thread) {
    Job *job = argument;
    Scratch scratch;
    long item;
    char *memory = job->memory + thread * job->size;
    memset(memory, 0, job->size); /* what lies around rows and between heads stays zero */
    divide(job, &scratch, memory);
    while ((item = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->items) run_item(job, &scratch, item);
}

/* 0, or -1 if there is no memory. No tensor may be empty. */
int ddf_run(const Call *call) {
    Job job = {.c = *call};
    const Call *c = &job.c;
    job.area = c->kernel * c->kernel;
    job.phases = c->scale * c->scale;
    job.reach = c->kernel / 2 * c->dilation;
    job.head_channels = c->channels / c->heads;
    job.head_pitch = (job.head_channels + LANES - 1) / LANES * LANES;
    job.pixel = c->heads * job.head_pitch;
    job.taps = job.phases * c->heads * job.area;
    job.s_pixel = c->spatial ? job.taps : 0;
    job.y_height = c->rows * c->scale, job.y_width = c->columns * c->scale;
    job.x_slots = 2 * job.reach + 1, job.g_slots = 2 * job.reach / c->stride + 2;
    job.product = c->multiply && c->channel && c->spatial;
    job.op = !c->channel ? SPATIAL : job.product || !c->spatial ? MULTIPLY : ADD;
    job.in_place = c->channels_last && c->x_type == OWN_TYPE && job.pixel == c->channels;
    /* in a narrow map much is border, for which rings are faster than patches */
    job.ringed = !job.in_place || c->width < 24 * job.reach || (c->grad_x && c->stride > 1);
    /* an item: 512 pixels or a million multiplications, but at least 4 rows, most of which are not its border */
    const long row_work = job.phases * job.area * c->channels * c->columns;
    job.chunk = smaller(c->rows, larger(4, smaller(512 / c->columns, (1 << 20) / row_work)));
    job.chunks = (c->rows + job.chunk - 1) / job.chunk;
    job.chunk = (c->rows + job.chunks - 1) / job.chunks;
    job.chunks = (c->rows + job.chunk - 1) / job.chunk;
    job.items = c->batch * job.chunks;
    /* a thread that does a million multiplications does them in twice the time that it takes to start */
    const long worthwhile = c->batch * c->rows * row_work * (c->y ? 1 : 3) >> 20;
    const long threads = larger(1, smaller(c->threads, smaller(job.items, worthwhile)));

    Scratch unused;
    job.size = divide(&job, &unused, NULL);
    const long margin = job.reach * c->scale * larger(job.pixel, job.taps);
    const long zeros = larger(c->width, job.y_width) * larger(job.pixel, job.taps) + 2 * margin;
    const long ones = larger(job.area, job.pixel);
    const long partials = c->grad_channel ? job.items * job.phases * job.area * job.pixel : 0;
    A *zero_memory = calloc(zeros, sizeof(A));
    job.ones = malloc(ones * sizeof(A));
    job.partials = calloc(partials + 1, sizeof(A));
    job.left = malloc(c->batch * sizeof(long));
    const int failed = !zero_memory || !job.ones || !job.partials || !job.left ||
                       posix_memalign((void **)&job.memory, 64, threads * job.size);
    if (!failed) {
        job.zeros = zero_memory + margin;
        for (long i = 0; i < ones; i++) job.ones[i] = 1;
        for (long b = 0; b < c->batch; b++) job.left[b] = job.chunks;
        run_threads(work, &job, threads);
    }
    free(zero_memory), free(job.ones), free(job.partials), free(job.left), free(job.memory);
    return failed ? -1 : 0;
}
