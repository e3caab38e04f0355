/* Threads that live for one call only: nothing survives into forked children, nothing spins. */
#include <pthread.h>

typedef struct {
    void (*work)(void *job, long thread); /* does what is left to do; `thread` counts from 0 */
    void *job;
    long thread, count;
} Worker;

/* Each thread starts two more, so that many start as fast as few. What cannot be started is not missed, if the items of
 * a job are done by whoever comes for them. */
static void *run_worker(void *argument) {
    const Worker *own = argument;
    Worker others[2];
    pthread_t handles[2];
    long started = 0;
    for (long thread = 2 * own->thread + 1; thread <= 2 * own->thread + 2 && thread < own->count; thread++) {
        others[started] = (Worker){own->work, own->job, thread, own->count};
        if (pthread_create(&handles[started], NULL, run_worker, &others[started])) break;
        started++;
    }
    own->work(own->job, own->thread);
    while (started > 0) pthread_join(handles[--started], NULL);
    return NULL;
}

/* Returns when every thread has; the caller is one of them. */
static void run_threads(void (*work)(void *job, long thread), void *job, long count) {
    Worker first = {work, job, 0, count};
    run_worker(&first);
}
