"""Stopping in good order: a signal finishes the step, saves, and exits with a code that asks to be started again."""

import signal
import time
from types import FrameType

import torch

from ddfnet.engine.distributed import Distributed

# EX_TEMPFAIL of sysexits.h: the run is not finished, start it again.
EXIT_INTERRUPTED = 75
# Seconds between two agreements of several processes: each costs a small all-reduce and a host sync, and launchers
# wait 30 seconds before they kill.
_AGREE_SECONDS = 2.0


class StopSignal:
    """Notes SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT; a second SIGINT interrupts at once.

    (Data workers have handlers of their own: a signal to the whole process group does not take the data away from
    the step that is being finished.)
    """

    def __init__(self, distributed: Distributed) -> None:
        self.received: str | None = None
        self._distributed = distributed
        self._asked_at, self._asked_step, self._next = time.monotonic(), 0, 0
        numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGUSR1", "SIGINT")]  # Windows has no SIGUSR1
        self._former = {number: signal.signal(number, self._note) for number in numbers if number is not None}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def agreed(self, step: int) -> bool:
        """Whether any process was signalled; the same answer, at the same steps, on all of them."""
        if self._distributed.world_size == 1:
            return self.received is not None
        if step < self._next:
            return False
        # The slowest clock decides for all when to ask again.
        seconds = (time.monotonic() - self._asked_at) / max(1, step - self._asked_step)
        answer = torch.tensor([float(self.received is not None), seconds], device=self._distributed.device)
        stop, seconds = self._distributed.reduce_(answer, "max").tolist()
        self._asked_at, self._asked_step = time.monotonic(), step
        self._next = step + max(1, min(100, int(_AGREE_SECONDS / max(seconds, 1e-3))))
        return bool(stop)

    def restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
