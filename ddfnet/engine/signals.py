"""Stopping in good order: a signal finishes the step, saves, and exits with a code that asks to be started again."""

import os
import signal
from types import FrameType

import torch

from ddfnet.engine.distributed import Distributed

# EX_TEMPFAIL of sysexits.h: the run is not finished, start it again.
EXIT_INTERRUPTED = 75
# Steps between two agreements of several processes: each costs a small all-reduce and a host sync.
AGREE_EVERY = 10


class StopSignal:
    """Notes SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT; a second SIGINT interrupts at once.

    Loader workers are forked after this is installed and inherit handlers that do nothing in them, so that a signal
    to the whole process group does not take the data away from the step that is being finished.
    """

    def __init__(self, distributed: Distributed) -> None:
        self.received: str | None = None
        self._distributed = distributed
        self._pid = os.getpid()
        signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._former = {number: signal.signal(number, self._note) for number in signals}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def agreed(self, step: int) -> bool:
        """Whether any process was signalled; the same answer on all of them."""
        if self._distributed.world_size == 1:
            return self.received is not None
        if step % AGREE_EVERY:
            return False
        flag = torch.tensor(int(self.received is not None), device=self._distributed.device)
        return bool(self._distributed.max_(flag))

    def restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
