"""A worker, the process that reads batches into the slots of a ring: what it does, its start and its end."""

import contextlib
import importlib
import os
import pickle
import select
import signal
import struct
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ddfnet.data.ring import Ring, Writer
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.memory import return_large_blocks
from ddfnet.utils.parent import signal_when_parent_ends

# All that goes through a pipe, in both directions: too short to be cut, and to ever block the sender. What it speaks of
# lies in a slot. To a worker: number of the batch, its slot, length of the request, bytes that the slot has.
# From one: number of the batch, kind of answer, its offset in the slot, length, bytes that the slot has.
TASK, ANSWER = struct.Struct("<4q"), struct.Struct("<5q")
READY, BATCH, USER_ERROR, FAILURE = range(4)

# What launchers and schedulers send to whole process groups.
_OF_GROUPS = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)}
_WATCH_SECONDS = 1.0  # a worker outlives its main process by so much at most
_FINISH_SECONDS = 10.0  # for a process to end by itself once it has closed its connection
_END_SECONDS = 2.0  # for a process to end when told to; then it is killed


def work(
    ring: Ring, connection: Connection, read: Callable[[list[Any]], Any], parent: int, start: Callable[[], None] | None
) -> None:
    """Reads what it is asked for until the connection is closed. The target of a worker process.

    Args:
        parent: process id of the main process.
        start: closes what a forked process has inherited and does not need.
    """
    if sys.platform == "linux":
        _leave_signals_to_parent(parent)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if start is not None:
        start()
    torch.set_num_threads(1)
    return_large_blocks()
    with contextlib.suppress(EOFError, OSError):  # the main process has closed the connection, or has ended
        connection.send_bytes(ANSWER.pack(-1, READY, 0, 0, 0))
        while True:
            number, slot, length, taken = TASK.unpack(connection.recv_bytes())
            ring.taken[slot] = max(ring.taken[slot], taken)
            kind, offset, length = _read(ring, slot, length, read)
            connection.send_bytes(ANSWER.pack(number, kind, offset, length, ring.taken[slot]))


def _read(ring: Ring, slot: int, length: int, read: Callable[[list[Any]], Any]) -> tuple[int, int, int]:
    """Kind, offset and length of the answer."""
    with Writer(ring, slot) as writer:
        kind: int
        value: tuple[type[Exception], str]
        try:
            return BATCH, *writer.write(read(ring.request(slot, length)))
        except UserError as error:
            kind, value = USER_ERROR, (type(error), str(error))
        except Exception:
            kind, value = FAILURE, (RuntimeError, traceback.format_exc())
        writer.clear()
        try:
            return kind, *writer.write(value)
        except (pickle.PicklingError, AttributeError, TypeError):  # a local class
            return kind, *writer.write((UserError, value[1]))


def _leave_signals_to_parent(parent: int) -> None:
    """Obey SIGTERM of the main process only, none of SIGINT, SIGUSR1 and SIGHUP, and end when it has ended.

    Ctrl-C, torchrun and schedulers signal whole process groups. A worker that died of that would break the step that
    the main process is about to finish.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() == parent:  # at once, and by force: it may hang in a disk, and holds what it has inherited
        signal_when_parent_ends(signal.SIGKILL, parent)
    # A handler would not learn who sent the signal; a thread that waits for it does.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    family = os.getppid()  # the main process, or the fork server, which ends with it
    try:
        watched = select.poll()
        watched.register(os.pidfd_open(parent), select.POLLIN)  # tells of the end of any process, though not reaped
    except ProcessLookupError:
        os._exit(0)
    except (OSError, AttributeError):  # an old kernel
        watched = None
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
        if (received is not None and received.si_pid == parent) or os.getppid() != family:
            os._exit(0)
        if watched is not None and watched.poll(0):
            os._exit(0)


class Worker:
    """The main process's side of a worker, or of one after the other: the next one inherits the queue.

    Attributes:
        process, connection: of the one that runs now.
        ready: whether it has said that it is there.
        deaths: how many have ended since the last answer.
        queue: batches that it has to read; it is at work on the first.
    """

    process: BaseProcess
    connection: Connection

    def __init__(self, context: Any, ring: Ring, read: Callable[[list[Any]], Any]) -> None:
        self._context, self._ring, self._read = context, ring, read
        self.ready, self.deaths, self.queue = False, 0, deque[Any]()
        _workers.add(self)

    def start(self) -> None:
        """Starts a process. DataError where the system refuses."""
        self.ready = False
        self.connection, other = self._context.Pipe()
        method = self._context.get_start_method()
        fork = method == "fork"
        start = partial(_close_inherited, self._ring) if fork else None
        arguments = (self._ring, other, self._read, os.getpid(), start)
        self.process = self._context.Process(target=work, args=arguments, daemon=True)
        try:
            with _signals_held() if method != "spawn" else contextlib.nullcontext():
                if method == "forkserver":  # the server inherits that they are held, and does not die of them
                    importlib.import_module("multiprocessing.forkserver").ensure_running()
                self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"data.start_method={method} needs a reader that can be pickled: {error}") from None
        except OSError as error:
            raise DataError(
                f"a data worker could not be started ({error.strerror}), one of {(self._ring.slots - 2) // 2}: lower "
                "data.workers, or raise the limit on memory or on processes (ulimit -v, ulimit -u)"
            ) from None
        finally:
            other.close()

    def ended(self) -> int | None:
        """Exit code of a process that has ended, or has closed its connection and is about to end, or is killed."""
        self.connection.close()
        self.process.join(_FINISH_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_END_SECONDS)
        code = self.process.exitcode
        with contextlib.suppress(ValueError):  # not even ended by SIGKILL
            self.process.close()
        return code


def ending(code: int | None) -> str:
    """How a process has ended, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return name + (", as where memory runs out" if name in ("SIGKILL", "SIGBUS") else "")


def end(owner: int, workers: list[Worker], ring: Ring) -> None:
    """Ends all workers, by force where they do not obey, and lets their ring go."""
    if os.getpid() != owner:  # a forked process drops what it has inherited
        return
    started = [worker for worker in workers if hasattr(worker, "process")]
    for worker in started:
        worker.connection.close()
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        for worker in started:
            with contextlib.suppress(ValueError, AttributeError):  # closed: it has ended; or it never started
                stop(worker.process)
        deadline = time.monotonic() + _END_SECONDS
        for worker in started:
            with contextlib.suppress(ValueError, AssertionError):
                worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in started:
        with contextlib.suppress(ValueError):  # not even ended by SIGKILL, as while a disk does not answer
            worker.process.close()
    ring.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Around a fork: signals wait, so that none meets the child while it has its parent's handlers, or none yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_inherited(ring: Ring) -> None:
    """In a forked worker: lets go of the main process's ends of connections, and of the memory of other rings."""
    for worker in list(_workers):
        if hasattr(worker, "connection"):
            worker.connection.close()
        if worker._ring is not ring:
            worker._ring.close()


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()  # of this process
