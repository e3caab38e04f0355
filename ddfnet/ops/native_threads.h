/* The threads of a call: those that PyTorch has already, or some that live for one call only. */
#include <pthread.h>

typedef struct {
    void (*work)(void *job, long thread); /* does what is left to do; `thread` counts from 0 */
    void *job;
    long count, next; /* next: the number of the next thread that begins */
} Team;

/* OpenMP's entry, as compilers call it: GOMP_parallel. PyTorch's threads wait for work there, and for a while they do so
 * without giving their cores away, so that threads of our own would have to wait for theirs. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
static Parallel parallel;

static void leave_parallel(void) { parallel = NULL; } /* a forked process has none of its threads, and would wait */

/* To be called once, before the first call of the operator. */
void use_parallel(void *entry) {
    if (!pthread_atfork(NULL, NULL, leave_parallel)) parallel = (Parallel)entry;
}

static void join_team(void *argument) {
    Team *team = argument;
    team->work(team->job, __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED));
}

/* Each thread starts two more, so that many start as fast as few. */
typedef struct { Team *team; long place; } Member;

static void *run_member(void *argument) {
    const Member *own = argument;
    Member others[2];
    pthread_t handles[2];
    long started = 0;
    for (long place = 2 * own->place + 1; place <= 2 * own->place + 2 && place < own->team->count; place++) {
        others[started] = (Member){own->team, place};
        if (pthread_create(&handles[started], NULL, run_member, &others[started])) break;
        started++;
    }
    join_team(own->team);
    while (started > 0) pthread_join(handles[--started], NULL);
    return NULL;
}

/* Returns when every thread has; the caller is one of them. There may be fewer than `count`: what cannot be started is
 * not missed, if the items of a job are done by whoever comes for them. */
static void run_threads(void (*work)(void *job, long thread), void *job, long count) {
    Team team = {work, job, count, 0};
    Member first = {&team, 0};
    if (parallel && count > 1) parallel(join_team, &team, count, 0);
    else run_member(&first);
}
