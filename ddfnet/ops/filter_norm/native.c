/* FilterNorm on a CPU: normalized filters, and the gradients of the logits and of alpha, in one pass over the logits.
 *
 * native.py compiles this file with -DA=float or -DA=double, the type of all arithmetic. The logits are sets of columns,
 * one column for each filter: all pixels of a head, or all channels of an image. A block of columns is copied to where
 * the same tap of neighboring columns is neighbors in memory, so that the loops below are vectors in every layout.
 */
#include <math.h>
#include <stdlib.h>

#include "../native_threads.h"
#include "../native_types.h"

typedef struct { /* as in native.py */
    const void *logits, *alpha, *grad;        /* alpha: NULL, or one number for each tap, with one pixel alone */
    void *filters, *grad_logits, *grad_alpha; /* NULL: not wanted */
    int64_t batch, groups, taps, pixels;
    int64_t logits_type, alpha_type, filters_type, channels_last, threads; /* filters_type: of grad as well */
    double constant;                                                      /* instead of alpha */
} Call;

#define BLOCK 64 /* columns */
#define EACH_COLUMN for (long j = 0; j < n; j++)
#define EACH_TAP for (long t = 0; t < taps; t++)

typedef struct {
    Call c;
    long sets, columns, tap_step, column_step; /* steps: elements of the tensors from one to the next */
    long blocks, items, next;                  /* blocks of a set; items; the next to be done */
    A *memory;                                 /* four blocks for each thread */
} Job;

/* Columns become their differences from their mean. They are first shifted by one of their elements: equal ones give
 * exact zeros, whatever their number. */
static void center(long taps, long n, A *restrict f, A *restrict deviation, A *restrict inverse) {
    A first[BLOCK], mean[BLOCK] = {0}, squares[BLOCK] = {0};
    memcpy(first, f, n * sizeof(A));
    EACH_TAP EACH_COLUMN mean[j] += f[t * BLOCK + j] -= first[j];
    EACH_COLUMN mean[j] /= taps;
    EACH_TAP EACH_COLUMN {
        const A difference = f[t * BLOCK + j] -= mean[j];
        squares[j] += difference * difference;
    }
    EACH_COLUMN {
        const A variance = squares[j] / (taps - 1);
        deviation[j] = sizeof(A) == sizeof(float) ? sqrtf(variance) : sqrt(variance);
        inverse[j] = 1 / (deviation[j] + (A)1e-10);
    }
}

/* Differences become filters. */
static void normalize(long taps, long n, A *restrict f, const A *restrict inverse, const A *restrict alpha,
                      A constant) {
    EACH_TAP EACH_COLUMN f[t * BLOCK + j] *= inverse[j] * (alpha ? alpha[t * BLOCK + j] : constant);
}

/* Gradients of the filters become those of the logits. */
static void differentiate(long taps, long n, const A *restrict f, const A *restrict deviation,
                          const A *restrict inverse, const A *restrict alpha, A constant, A *restrict grad,
                          A *restrict alpha_sums) {
    A mean[BLOCK] = {0}, along[BLOCK] = {0};
    if (alpha_sums)
        EACH_TAP EACH_COLUMN alpha_sums[t * BLOCK + j] += grad[t * BLOCK + j] * (f[t * BLOCK + j] * inverse[j]);
    EACH_TAP EACH_COLUMN {
        const A weighted = grad[t * BLOCK + j] *= alpha ? alpha[t * BLOCK + j] : constant;
        mean[j] += weighted;
        along[j] += weighted * (f[t * BLOCK + j] * inverse[j]);
    }
    EACH_COLUMN { /* where all logits are equal the deviation has no derivative: 0, as in PyTorch */
        mean[j] /= taps;
        along[j] = deviation[j] == 0 ? 0 : along[j] * inverse[j] / ((taps - 1) * deviation[j]);
    }
    EACH_TAP EACH_COLUMN grad[t * BLOCK + j] =
        (grad[t * BLOCK + j] - mean[j]) * inverse[j] - f[t * BLOCK + j] * along[j];
}

/* Copies n columns, from `first` on, of a set in a tensor to a block, or `back`. */
static void copy(const Job *job, long set, long first, long n, A *block, const void *tensor, void *back, long type) {
    const Call *c = &job->c;
    long start = set * job->columns * c->taps;
    if (c->channels_last) start = set / c->groups * c->groups * c->pixels * c->taps + set % c->groups * c->taps;
    start += first * job->column_step;
    for (long t = 0; t < c->taps; t++, start += job->tap_step)
        if (back) store(back, start, job->column_step, block, t * BLOCK, 1, type, n);
        else load(block, t * BLOCK, 1, tensor, start, job->column_step, type, n);
}

/* A block of one set; with alpha the same block of all sets, whose gradients of alpha are added in order. */
static void run_item(const Job *job, A *memory, long item) {
    const Call *c = &job->c;
    const long taps = c->taps, size = taps * BLOCK;
    A *f = memory, *alpha = c->alpha ? memory + size : NULL, *grad = memory + 2 * size;
    A *alpha_sums = c->grad_alpha ? memory + 3 * size : NULL;
    A deviation[BLOCK], inverse[BLOCK];
    const long begin = c->alpha ? 0 : item / job->blocks, end = c->alpha ? job->sets : begin + 1;
    const long first = item % job->blocks * BLOCK, n = smaller(BLOCK, job->columns - first);
    if (alpha) copy(job, 0, first, n, alpha, c->alpha, NULL, c->alpha_type);
    if (alpha_sums) memset(alpha_sums, 0, size * sizeof(A));
    for (long set = begin; set < end; set++) {
        copy(job, set, first, n, f, c->logits, NULL, c->logits_type);
        center(taps, n, f, deviation, inverse);
        if (c->filters) {
            normalize(taps, n, f, inverse, alpha, c->constant);
            copy(job, set, first, n, f, NULL, c->filters, c->filters_type);
        } else {
            copy(job, set, first, n, grad, c->grad, NULL, c->filters_type);
            differentiate(taps, n, f, deviation, inverse, alpha, c->constant, grad, alpha_sums);
            copy(job, set, first, n, grad, NULL, c->grad_logits, c->logits_type);
        }
    }
    if (alpha_sums) copy(job, 0, first, n, alpha_sums, NULL, c->grad_alpha, c->alpha_type);
}

static void work(void *argument, long thread) {
    Job *job = argument;
    long item;
    while ((item = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->items)
        run_item(job, job->memory + thread * 4 * job->c.taps * BLOCK, item);
}

/* 0, or -1 if there is no memory. No tensor may be empty. */
int filter_norm_run(const Call *call) {
    Job job = {.c = *call};
    const Call *c = &job.c;
    const int one_pixel = c->pixels == 1; /* of each image all filters are one set */
    job.sets = one_pixel ? c->batch : c->batch * c->groups;
    job.columns = one_pixel ? c->groups : c->pixels;
    job.tap_step = one_pixel || c->channels_last ? 1 : c->pixels;
    job.column_step = one_pixel ? c->taps : c->channels_last ? c->groups * c->taps : 1;
    job.blocks = (job.columns + BLOCK - 1) / BLOCK;
    job.items = c->alpha ? job.blocks : job.sets * job.blocks;
    /* a thread works on 65,536 logits in several times the time that it takes to start */
    const long worthwhile = c->batch * c->groups * c->taps * c->pixels >> 16;
    const long threads = larger(1, smaller(c->threads, smaller(job.items, worthwhile)));
    if (posix_memalign((void **)&job.memory, 64, threads * 4 * c->taps * BLOCK * sizeof(A))) return -1;
    run_threads(work, &job, threads);
    free(job.memory);
    return 0;
}
