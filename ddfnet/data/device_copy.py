"""Batches from the host to the device; on CUDA from registered memory of the ring, on a stream of its own."""

import contextlib
import logging
from typing import Any

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
        self.registered: dict[int, int] | None = {}  # slot -> bytes; None: refused

    def __call__(self, value: Any, slot: int) -> tuple[Any, torch.cuda.Event]:
        """The batch on the device, for the current stream; and the event after which the slot is not read any more."""
        self._register(slot)
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            moved = to_device(value, self.device)
            copied = torch.cuda.Event()
            copied.record(self.stream)
        current.wait_event(copied)
        return _for_stream(moved, current), copied

    def close(self) -> None:
        """Before the ring is closed."""
        self.stream.synchronize()
        for slot in self.registered or ():
            self._unregister(slot)
        self.registered = None

    def _register(self, slot: int) -> None:
        size = self.ring.taken[slot]
        if self.registered is None or self.registered.get(slot) == size:
            return
        if slot in self.registered:  # its batches have become larger; none is being copied now
            self._unregister(slot)
        with torch.cuda.device(self.device):
            error = torch.cuda.cudart().cudaHostRegister(self._address(slot), size, _PORTABLE)
        if int(error) == 0:
            self.registered[slot] = size
            return
        _log.warning(
            "CUDA does not register the memory of batches (error %d): copies to the device are slower. A limit on "
            "locked memory (ulimit -l) can be the cause",
            int(error),
        )
        for known in list(self.registered):
            self._unregister(known)
        self.registered = None
        with contextlib.suppress(
            RuntimeError
        ):  # CUDA keeps the error for the next launch to report: let it be this one
            torch.ones(1, device=self.device).add_(1)

    def _unregister(self, slot: int) -> None:
        assert self.registered is not None
        del self.registered[slot]
        torch.cuda.cudart().cudaHostUnregister(self._address(slot))

    def _address(self, slot: int) -> int:
        return self.ring.slot(slot).ctypes.data


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
