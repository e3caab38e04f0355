"""Stopping in good order: a signal finishes the step, saves, and exits with a code that asks to be started again."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal, NoReturn, TypeVar

import torch

from ddfnet.engine.distributed import Distributed
from ddfnet.utils.cli import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from ddfnet.utils.cli import EXIT_TWICE

# Seconds between two agreements of several processes: each costs a small all-reduce and a host sync, and launchers
# wait 30 seconds before they kill.
_AGREE_SECONDS = 2.0
_PATIENCE_SECONDS = 4  # for a batch, after a signal: a reader that hangs must not keep the run from ending
# SIGUSR1 is SLURM's warning, SIGHUP the end of a terminal. Windows has neither.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
T = TypeVar("T")


class Interrupted(BaseException):
    """A signal that ends the run where nothing has to be finished first.

    Attributes:
        agreed: all processes have raised it together.
        in_step: raised in the middle of a step that cannot be finished; what was saved before stays.
    """

    def __init__(self, name: str, *, agreed: bool = False) -> None:
        super().__init__(name)
        self.agreed, self.in_step = agreed, False


class StopSignal:
    """Notes SIGTERM, SIGUSR1, SIGHUP and SIGINT; a second SIGINT ends the process at once.

    Before training has begun (`begin`) a signal raises `Interrupted`. Then it is noted, for the step to be finished;
    while a batch is waited for (`waiting`), it raises `Interrupted` if the batch does not come soon.

    (Data workers have handlers of their own: a signal to the whole process group does not take the data away from
    the step that is being finished.)
    """

    def __init__(self, distributed: Distributed) -> None:
        self.received: str | None = None
        self.save_agreed = False
        self._distributed = distributed
        self._phase: Literal["start", "run", "wait"] = "start"
        self._asked_at, self._next = time.monotonic(), 0
        self._asked_step: int | None = None
        self._former: dict[int, object] = {}
        if threading.current_thread() is not threading.main_thread():  # nobody else may set handlers
            return
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup
                continue
            self._former[number] = signal.signal(number, self._note)
        if hasattr(signal, "SIGALRM"):
            self._former[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._lost_patience)

    def begin(self) -> None:
        """From now on there is something to finish. Raises Interrupted if a signal has come."""
        self._phase = "run"
        if self.received is not None:
            raise Interrupted(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT" and self._phase != "start":
            _end_at_once()
        self.received = signal.Signals(number).name
        if self._phase == "start":
            raise Interrupted(self.received)
        if self._phase == "wait":
            self._lose_patience_soon()

    def _lose_patience_soon(self) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(_PATIENCE_SECONDS)

    def _lost_patience(self, number: int, frame: FrameType | None) -> None:
        if self._phase == "wait":
            raise Interrupted(self.received or "SIGALRM")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch: Interrupted if a signal comes, and the batch does not, for some seconds."""
        self._phase = "wait"
        try:
            if self.received is not None:
                self._lose_patience_soon()
            yield
        finally:
            self._phase = "run"
            if self.received is not None and hasattr(signal, "SIGALRM"):
                signal.alarm(0)

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """The items, waited for as in `waiting`, up to the first signal of this process."""
        iterator = iter(items)
        while self.received is None:
            with self.waiting():
                item = next(iterator, self)
            if item is self:
                return
            yield item  # type: ignore[misc]

    def any_received(self) -> bool:
        """Whether any process was signalled; all processes call this together."""
        answer = torch.tensor(float(self.received is not None), device=self._distributed.device)
        return bool(self._distributed.reduce_(answer, "max"))

    def agreed(self, step: int, *, save: bool = False) -> bool:
        """Whether any process was signalled; the same answer, at the same steps, on all of them.

        Args:
            save: whether this process finds that it is time to save; `save_agreed` is that of any process.
        """
        if self._distributed.world_size == 1:
            self.save_agreed = save
            return self.received is not None
        self.save_agreed = False
        steps = 0 if self._asked_step is None else step - self._asked_step
        if steps >= 0 and step < self._next:  # below 0: the run went back
            return False
        # The slowest clock decides for all when to ask again; the first time it has not measured any step.
        seconds = (time.monotonic() - self._asked_at) / steps if steps > 0 else _AGREE_SECONDS
        answer = torch.tensor([float(self.received is not None), seconds, float(save)], device=self._distributed.device)
        stop, seconds, due = self._distributed.reduce_(answer, "max").tolist()
        self._asked_at, self._asked_step = time.monotonic(), step
        self._next = step + max(1, min(100, int(_AGREE_SECONDS / max(seconds, 1e-3))))
        self.save_agreed = bool(due)
        return bool(stop)

    def restore(self) -> None:
        """Gives the former handlers back."""
        for number, handler in self._former.items():
            if number == getattr(signal, "SIGALRM", None):
                signal.alarm(0)
            signal.signal(number, handler)  # type: ignore[arg-type]


def _end_at_once() -> NoReturn:
    """Without the traceback that an exception would leave somewhere; workers end with their parent."""
    show_cursor = "\x1b[?25h" if sys.stdout is not None and sys.stdout.isatty() else ""  # a progress bar hides it
    with suppress(OSError):
        os.write(2, f"{show_cursor}\nended at once by a second SIGINT; what was saved before stays\n".encode())
    os._exit(EXIT_TWICE)
