"""The pool of workers: who reads what, replacing those that die, noticing those that hang, batches in order."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, util
from typing import Any

from ddfnet.data.ring import Ring
from ddfnet.data.worker_process import ANSWER, BATCH, READY, TASK, USER_ERROR, Worker, end, ending
from ddfnet.utils.errors import DataError

_log = logging.getLogger("ddfnet")
_QUEUE = 2  # batches that a worker has at a time: the next one must be there when it has finished one
_REDONE = 3  # times that a batch is read again, because its worker died
_LOOK_SECONDS = 1.0  # between two looks at workers that say nothing


@dataclass(eq=False)
class _Batch:
    number: int
    requests: list[Any]
    slot: int
    wanted: bool = True
    answer: tuple[int, int, int] | None = None  # kind, offset, length
    error: str | None = None  # of those that have read it in vain

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class SecondIterationError(RuntimeError):
    """Batches were asked for of an iteration that a later one has replaced."""


class WorkerPool:
    """Workers that read batches in the order of their requests.

    Workers start with the pool, and end when it is closed or dropped, or when this process ends, however it does.

    Args:
        read: requests -> batch; runs in the workers. It may be called again for the same requests: a worker that dies
            is replaced.
        workers: number of processes, at least 1.
        name: name of sample i, for messages.
        timeout: seconds without any progress of the worker that has to read the next batch before it is an error. Only
            time that this process spends waiting counts.
        start_method: fork, forkserver, spawn; auto: fork on Linux, else spawn. All but fork need a `read` that can be
            pickled.
    """

    def __init__(
        self,
        read: Callable[[list[Any]], Any],
        workers: int,
        *,
        name: Callable[[int], str] | None = None,
        timeout: float,
        start_method: str = "auto",
    ) -> None:
        if start_method == "auto":
            start_method = "fork" if sys.platform == "linux" else "spawn"
        context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":  # what the server has imported, its workers need not
            context.set_forkserver_preload(["__main__", __name__])
        self._name, self._timeout = name, timeout
        self.ring = Ring(2 * workers + 2)
        self._workers = [Worker(context, self.ring, read) for _ in range(workers)]
        self.close = weakref.finalize(self, end, os.getpid(), self._workers, self.ring)
        # Before multiprocessing itself, when the process exits: it would wait for ever for a worker that is stopped.
        util.Finalize(self, self.close, exitpriority=10)
        self._free, self._returned = list(range(self.ring.slots)), deque[int]()
        self._lent: dict[int, weakref.ref] = {}
        self._copies: dict[int, Any] = {}
        self._order: deque[_Batch] = deque()  # given to workers and not yet to the caller
        self._numbers = self._iteration = 0
        self._quiet, self._seen = 0.0, (0, 0, 0)
        try:
            for worker in self._workers:
                worker.start()
        except BaseException:
            self.close()
            raise

    def batches(self, requests: Iterable[list[Any]], *, lend: int) -> Iterator[tuple[Any, int]]:
        """What `read` returns for each of the requests, and the slot it lies in.

        Large tensors are views of the slot, which is the caller's as long as one of them, or of its storages, is alive.
        Where it has `lend` slots already, at most two less than there are, tensors are copies.

        Raises:
            UserError: raised by `read`, with its message; DataError where workers die of the same batch again and again
                or do not answer.
            RuntimeError: `read` failed otherwise, with the worker's traceback.
        """
        self._iteration += 1
        own, requests = self._iteration, iter(requests)
        self._give_up()
        try:
            while True:
                if own != self._iteration:
                    raise SecondIterationError("another iteration over these batches has begun, which ended this one")
                more = self._distribute(requests)
                if not self._order and not more:
                    return
                if self._order and self._order[0].done:
                    yield self._taken(self._order.popleft(), lend)
                else:  # for it; or for a slot, which batches given up still have
                    self._wait()
        finally:
            if own == self._iteration:
                self._give_up()

    def hold(self, slot: int, copied: Any) -> None:
        """Keeps a slot that was handed out until an event, one of CUDA's, has come: its memory is read until then."""
        self._copies[slot] = copied

    def _give_up(self) -> None:
        """Forgets the batches of a former iteration; workers finish those that they have."""
        for batch in self._order:
            batch.wanted = False
            if batch.done:
                self._free.append(batch.slot)
        self._order.clear()

    def _distribute(self, requests: Iterator[list[Any]]) -> bool:
        """Gives out requests while there are slots and workers; False when no requests are left."""
        self._reclaim()
        while self._free:
            worker = min(self._workers, key=lambda worker: len(worker.queue))
            if len(worker.queue) >= _QUEUE:
                break
            chosen = next(requests, None)
            if chosen is None:
                return False
            batch = _Batch(self._numbers, chosen, self._free.pop())
            self._numbers += 1
            self._order.append(batch)
            worker.queue.append(batch)
            self._send(worker, batch)
        return True

    def _send(self, worker: Worker, batch: _Batch) -> None:
        length = self.ring.write(batch.slot, batch.requests)
        with contextlib.suppress(OSError):  # it has died, which `_wait` will see
            worker.connection.send_bytes(TASK.pack(batch.number, batch.slot, length, self.ring.taken[batch.slot]))

    def _taken(self, batch: _Batch, lend: int) -> tuple[Any, int]:
        if batch.error is not None:
            self._free.append(batch.slot)
            raise DataError(batch.error)
        assert batch.answer is not None
        kind, offset, length = batch.answer
        if kind == BATCH and len(self._lent) < lend:
            memory = self.ring.slot(batch.slot)
            returned, slot = self._returned, batch.slot
            self._lent[slot] = weakref.ref(memory, lambda _: returned.append(slot))
            return self.ring.read(slot, offset, length, memory=memory), slot
        sample = self._sample(batch)
        value = self.ring.read(batch.slot, offset, length)
        self._free.append(batch.slot)
        if kind == BATCH:
            return value, batch.slot
        if kind == USER_ERROR:
            raise value[0](value[1])
        raise RuntimeError(f"reading {sample} failed in a data worker:\n\n{value[1]}")

    def _reclaim(self) -> None:
        """Frees the slots that the caller has given back, and no copy to a device reads any more."""
        for _ in range(len(self._returned)):
            slot = self._returned.popleft()
            copied = self._copies.get(slot)
            if copied is not None and not copied.query():
                self._returned.append(slot)
                continue
            self._copies.pop(slot, None)
            del self._lent[slot]
            self._free.append(slot)

    def _wait(self) -> None:
        """Waits a while for a message, or the end, of any worker."""
        start = time.monotonic()
        ends = [(worker.connection, worker.process.sentinel) for worker in self._workers]
        ready = set(connection.wait(list(itertools.chain(*ends)), _LOOK_SECONDS))
        for worker, (messages, sentinel) in zip(self._workers, ends, strict=True):
            # Asked for by itself where nothing came: a process forked meanwhile may hold the other end of a sentinel.
            ended = sentinel in ready or (not ready and not worker.process.is_alive())
            if ended or messages in ready:
                ended |= not self._receive(worker)
            if ended:
                self._replace(worker)
        self._watch(min(time.monotonic() - start, 2 * _LOOK_SECONDS))  # not more, should this process have been stopped

    def _receive(self, worker: Worker) -> bool:
        """Takes all messages of a worker; False if there will be no more."""
        try:
            while worker.connection.poll():
                number, kind, offset, length, taken = ANSWER.unpack(worker.connection.recv_bytes())
                if kind == READY:
                    worker.ready = True
                    continue
                batch = worker.queue.popleft()
                assert batch.number == number
                worker.deaths = 0
                self.ring.taken[batch.slot] = max(self.ring.taken[batch.slot], taken)
                batch.answer = kind, offset, length
                if not batch.wanted:
                    self._free.append(batch.slot)
        except (EOFError, OSError):
            return False
        return True

    def _watch(self, seconds: float) -> None:
        """DataError if the worker that has the next batch has not moved for too long."""
        waits = [worker for worker in self._workers if worker.queue]
        if not waits or (self._order and self._order[0].done):
            self._quiet = 0.0
            return
        worker = min(waits, key=lambda worker: worker.queue[0].number)
        if self._order:
            worker = next(worker for worker in waits if self._order[0] in worker.queue)
        batch = worker.queue[0]
        seen = worker.process.pid or 0, batch.number, int(self.ring.progress(batch.slot)[0])
        self._quiet = self._quiet + seconds if seen == self._seen else 0.0
        self._seen = seen
        if self._quiet < self._timeout:
            return
        if not worker.ready:
            raise DataError(
                f"a data worker (process {worker.process.pid}) has not started in {self._timeout:g} s: raise "
                "data.timeout if the machine is slow, else try data.start_method=forkserver or data.workers=0"
            )
        raise DataError(
            f"a data worker (process {worker.process.pid}) has not moved for {self._timeout:g} s while reading "
            f"{self._sample(batch)}: look whether the file can be read and its file system answers; raise data.timeout "
            "if it is only slow"
        )

    def _sample(self, batch: _Batch) -> str:
        """The sample that a worker began with last, or, if the reader does not say, all of the batch."""
        begun, sample = self.ring.progress(batch.slot).tolist()
        samples = [sample] if begun else [r[1] if isinstance(r, tuple) else r for r in batch.requests]
        names = [self._name(i) if self._name is not None else f"sample {i}" for i in samples[:3]]
        return " or ".join(names) + (f" or one of {len(samples) - 3} more" if len(samples) > 3 else "")

    def _replace(self, worker: Worker) -> None:
        """Starts a process in place of one that has ended, and gives it what that one had."""
        code, started = worker.ended(), worker.ready
        for batch in [batch for batch in worker.queue if not batch.wanted]:
            worker.queue.remove(batch)
            self._free.append(batch.slot)
        worker.deaths += 1
        head = worker.queue[0] if worker.queue else None
        task = "starting" if not started else f"reading {self._sample(head)}" if head else "waiting"
        if not started and code is not None and code > 0:
            raise DataError(f"a data worker could not start (exit code {code}): its own message stands above")
        if worker.deaths > _REDONE:
            text = (
                f"{worker.deaths} data workers in a row ended while {task}, the last with {ending(code)}: where memory "
                f"is short (the processes share up to {self.ring.slots} batches of {max(self.ring.taken) >> 20} MiB), "
                "lower data.workers or the batch size; else look at that sample"
            )
            if head is None or not started:
                raise DataError(text)
            head.error = text  # raised in its turn
            worker.queue.popleft()
            worker.deaths = 0
        else:
            _log.warning("a data worker ended (%s) while %s; another one takes its place", ending(code), task)
        worker.start()
        for batch in worker.queue:
            self._send(worker, batch)
