"""Signals while a process waits for the others to come: PyTorch waits in C++, where Python calls no handler."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ddfnet.utils.cli import EXIT_INTERRUPTED

_ENDING = (signal.SIGTERM, signal.SIGINT, *(getattr(signal, n) for n in ("SIGUSR1", "SIGHUP") if hasattr(signal, n)))
_PATIENCE_SECONDS = 2.0  # for the main thread, whose own handlers come first
_OVER = b"\0"  # no signal has this number


@contextmanager
def obeyed_while_waiting() -> Iterator[None]:
    """In the block a signal ends the process with exit code 75, whatever the main thread is waiting for.

    A signal that the process ignores (nohup) is ignored here, too. In other threads than the main one the block has no
    effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader, over), name="signals of the start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        over.set()
        os.write(writer, _OVER)
        thread.join()
        os.close(reader)
        os.close(writer)


def _listen(reader: int, over: threading.Event) -> None:
    while (number := os.read(reader, 1)) != _OVER:
        if number[0] in _ENDING and not over.wait(_PATIENCE_SECONDS):
            with suppress(OSError):
                # The first process of a machine speaks: torchrun ends the others so where one has found a mistake.
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    os.write(2, b"stopped by a signal while waiting for the other processes: start again\n")
            os._exit(EXIT_INTERRUPTED)
