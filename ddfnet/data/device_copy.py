"""Batches from the host to the device; on CUDA from registered memory of the ring, on a stream of its own."""

import contextlib
import logging
import os
import weakref
from typing import Any

import numpy as np
import torch

from ddfnet.data.ring import Ring

_log = logging.getLogger("ddfnet")
# They name samples, key draws and choose kernels: all three are read on the CPU.
_ON_CPU = ("index", "repeat", "policy")
_PORTABLE = 1  # cudaHostRegisterPortable: for all contexts


def to_device(value: Any, device: torch.device | str) -> Any:
    """A copy of a batch with all tensors on the device, those in lists and dictionaries too, but for "index" and
    "repeat", which stay as they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=torch.device(device).type == "cuda")
    if isinstance(value, dict):
        return {key: item if key in _ON_CPU else to_device(item, device) for key, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value


class DeviceCopy:
    """Copies batches that lie in slots of a ring to a CUDA device, while that computes.

    Memory is registered with CUDA slot by slot, as far as batches fill it, when it is first copied: the device then
    reads it by itself. Where that is refused, copies are slower and nothing else changes.
    """

    def __init__(self, ring: Ring, device: torch.device) -> None:
        self.ring, self.device = ring, device
        self.stream = torch.cuda.Stream(device)
        self.refused = False
        self._registered: dict[int, int] = {}  # address of a slot -> bytes
        # It keeps the memory until CUDA has let it go, whichever of the two is closed or dropped first.
        self.close = weakref.finalize(self, _release, os.getpid(), self.stream, self._registered, ring.memory)

    def __call__(self, value: Any, slot: int) -> tuple[Any, torch.cuda.Event]:
        """The batch on the device, for the current stream; and the event after which the slot is not read any more."""
        if not self.refused:
            self._register(self.ring.slot(slot).ctypes.data, self.ring.taken[slot])
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = to_device(value, self.device)
            copied = torch.cuda.Event()
            copied.record(self.stream)
        current.wait_event(copied)
        return _for_stream(moved, current), copied

    def _register(self, address: int, size: int) -> None:
        if self._registered.get(address) == size:
            return
        if address in self._registered:  # its batches have become larger; none of them is being copied now
            _unregister(self._registered, address)
        with torch.cuda.device(self.device):
            error = int(torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE))
        if error == 0:
            self._registered[address] = size
            return
        self.refused = True
        _log.warning(
            "CUDA does not register the memory of batches (error %d): copies to the device are slower. A limit on "
            "locked memory (ulimit -l) can be the cause",
            error,
        )
        with contextlib.suppress(
            RuntimeError
        ):  # CUDA keeps the error for the next launch to report: let it be this one
            torch.ones(1, device=self.device).add_(1)


def _release(owner: int, stream: torch.cuda.Stream, registered: dict[int, int], memory: np.ndarray) -> None:
    if os.getpid() != owner:  # a forked process must not call CUDA
        return
    with contextlib.suppress(RuntimeError):  # the device has failed, or the process is ending
        stream.synchronize()
        for address in list(registered):
            _unregister(registered, address)


def _unregister(registered: dict[int, int], address: int) -> None:
    del registered[address]
    torch.cuda.cudart().cudaHostUnregister(address)


def _for_stream(value: Any, current: torch.cuda.Stream) -> Any:
    """A batch whose memory waits for a stream before it is used again, and whose tensors on the CPU are its own."""
    if isinstance(value, torch.Tensor):
        if value.is_cuda:
            value.record_stream(current)
            return value
        return value.clone()
    if isinstance(value, dict):
        return {key: _for_stream(item, current) for key, item in value.items()}
    return [_for_stream(item, current) for item in value] if isinstance(value, list) else value
