"""Ending with the parent process, however that ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def signal_when_parent_ends(number: int, parent: int) -> bool:
    """Asks the kernel to send a signal to this process at the moment its parent ends; whether it will. Linux alone.

    Args:
        number: of the signal.
        parent: process id of the parent; where it has ended already, the signal is sent now.
    """
    if sys.platform != "linux":
        return False
    try:
        if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            return False
    except (OSError, AttributeError):
        return False
    if os.getppid() != parent:
        signal.raise_signal(signal.Signals(number))
    return True
