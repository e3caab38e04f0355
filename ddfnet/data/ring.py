"""Memory that workers and the main process share: a ring of slots, one for each batch that is being made or waits."""

import math
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddfnet.utils.errors import DataError

_SPANS = [size << 20 for size in (8192, 2048, 512, 128, 32)]  # addresses of a slot: the first that the system grants
_HEADER = 64  # bytes at the start of a slot: see `Ring.progress`
_ALIGN = 64
_STEP = 1 << 20  # memory is taken from the system in whole multiples
_LENT_FROM = 1 << 16  # smaller tensors are copied out: kept for long, as labels are, they must not hold a slot


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor of the batch that a reader is making, contiguous and not initialized.

    In a worker it lies where the main process looks for the batch, so that nothing has to be copied; anywhere else it
    is `torch.empty`. It is the batch's: a reader must not keep it.
    """
    return torch.empty(tuple(shape), dtype=dtype) if _writer is None else _writer.empty(shape, dtype)


def reading(sample: int) -> None:
    """Notes that a reader begins with a sample: errors name it if the worker dies, hangs or fails there."""
    if _writer is not None:
        _writer.progress[1] = sample
        _writer.progress[0] += 1


def in_worker() -> bool:
    """Whether a worker is making a batch in this process."""
    return _writer is not None


class Ring:
    """Slots of shared memory in a file without a name.

    The file is sparse: a slot has gigabytes of addresses, and memory as far as batches have filled it. That memory is
    not in /dev/shm, which containers keep small. It is freed when the last process that has the ring ends or drops it.

    A forked worker inherits the ring; to one that is spawned it is pickled, which works only while that starts.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.fd = slots, _file()
        for self.span in _SPANS:
            try:
                os.ftruncate(self.fd, slots * self.span)
                self._map()
                return
            except (OSError, OverflowError) as failed:
                reason = str(failed)  # not the error, which would tie this frame into a cycle
        os.close(self.fd)
        raise DataError(
            f"no addresses for the shared memory of {slots} batches of {self.span >> 20} MiB ({reason}): lower "
            "data.workers, raise the limit on address space (ulimit -v) or file size (ulimit -f), or read in the main "
            "process with data.workers=0"
        )

    def _map(self) -> None:
        self.memory = np.frombuffer(mmap.mmap(self.fd, self.slots * self.span), np.uint8)
        self.taken = [0] * self.slots  # bytes of each slot that are known to have memory

    def __getstate__(self) -> tuple[int, int, Any]:
        return self.slots, self.span, reduction.DupFd(self.fd)

    def __setstate__(self, state: tuple[int, int, Any]) -> None:
        self.slots, self.span, descriptor = state
        self.fd = descriptor.detach()
        self._map()

    def close(self) -> None:
        """Lets the memory go. What was lent stays valid as long as it is held."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.memory = -1, np.empty(0, np.uint8)

    def slot(self, number: int) -> np.ndarray:
        """uint8 (span,), a view."""
        return self.memory[number * self.span : (number + 1) * self.span]

    def progress(self, number: int) -> np.ndarray:
        """int64 (2,), a view: how many samples of the slot's batch were begun, and the last of them."""
        return self.slot(number)[:16].view(np.int64)

    def write(self, number: int, value: Any) -> int:
        """Pickles a value, a request for a worker, to the start of a free slot; its length."""
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self.reserve(number, _HEADER + len(data))
        self.progress(number)[:] = 0, -1
        self.slot(number)[_HEADER : _HEADER + len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def read(self, number: int, start: int, length: int, *, memory: np.ndarray | None = None) -> Any:
        """What `Writer.write` left in a slot.

        Args:
            memory: `slot(number)`, to have large tensors as views that keep this very array alive, which is how the
                caller learns when the slot is free again. None: all tensors are copies.
        """
        slot = self.slot(number) if memory is None else memory
        value = pickle.loads(slot.data[start : start + length])
        return _unpack(value, slot, lend=memory is not None)

    def request(self, number: int, length: int) -> Any:
        """What `write` left in a slot."""
        return self.read(number, _HEADER, length)

    def reserve(self, number: int, end: int) -> None:
        """Sees to it that a slot has memory for its first `end` bytes. DataError where it has not.

        Asked for here, a lack of memory is an error; met while writing, it would end the process.
        """
        if end <= self.taken[number]:
            return
        end = min(self.span, -(-end // _STEP) * _STEP) if end <= self.span else end
        try:
            if end > self.span:
                raise OSError(f"a slot has {self.span >> 20} MiB of addresses")
            if hasattr(os, "posix_fallocate"):
                start = self.taken[number]
                os.posix_fallocate(self.fd, number * self.span + start, end - start)
        except OSError as error:
            raise DataError(
                f"no memory for a batch of {end >> 20} MiB ({error.strerror or error}): up to {self.slots} batches lie "
                "in memory that the processes share; lower data.workers or the batch size (train.device_batch_size, "
                "eval.batch_size), or give the machine or container more memory"
            ) from None
        self.taken[number] = end


def _file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ddfnet")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Writer:
    """Fills one slot, in a worker."""

    def __init__(self, ring: Ring, number: int) -> None:
        self.ring, self.number = ring, number
        self.memory, self.progress = ring.slot(number), ring.progress(number)
        self.address, self.end = self.memory.ctypes.data, _HEADER

    def __enter__(self) -> "Writer":
        global _writer
        _writer = self
        return self

    def __exit__(self, *error: object) -> None:
        global _writer
        _writer = None

    def clear(self) -> None:
        self.end = _HEADER

    def take(self, size: int) -> int:
        """Offset of `size` more bytes."""
        start = -(-self.end // _ALIGN) * _ALIGN
        self.ring.reserve(self.number, start + size)
        self.end = start + size
        return start

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        start = self.take(count * dtype.itemsize)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start).view(tuple(shape))

    def write(self, value: Any) -> tuple[int, int]:
        """Pickles a value, its tensors apart: those that lie in the slot stay, others are copied into it.

        Tensors in dictionaries, lists and tuples, that is; elsewhere, and where they are no plain tensors of numbers
        on the CPU, they are pickled with the rest.

        Returns:
            Where the pickle lies: offset and length.
        """
        data = pickle.dumps(self._pack(value), pickle.HIGHEST_PROTOCOL)
        start = self.take(len(data))
        self.memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
        return start, len(data)

    def _pack(self, value: Any) -> Any:
        if type(value) is Tensor and value.device.type == "cpu" and value.layout is torch.strided and _plain(value):
            return self._place(value)
        if type(value) is dict:
            return {key: self._pack(item) for key, item in value.items()}
        return type(value)(map(self._pack, value)) if type(value) in (list, tuple) else value

    def _place(self, tensor: Tensor) -> "_Place":
        storage = tensor.untyped_storage()
        first, last = storage.data_ptr() - self.address, storage.data_ptr() + storage.nbytes() - self.address
        if tensor.numel() == 0 or (first >= 0 and last <= self.end):
            return _Place(tensor.data_ptr() - self.address, tensor.dtype, tuple(tensor.shape), tensor.stride())
        copy = self.empty((tensor.numel(),), tensor.dtype)
        stride = torch.empty_like(tensor, device="meta").stride()  # the same order of dimensions, without gaps
        copy.as_strided(tensor.shape, stride).copy_(tensor)
        return _Place(copy.data_ptr() - self.address, tensor.dtype, tuple(tensor.shape), stride)


@dataclass(frozen=True)
class _Place:
    """A tensor that lies in a slot."""

    offset: int  # bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, memory: np.ndarray, *, lend: bool) -> Tensor:
        """A view of the slot, or a copy: always of small tensors."""
        count = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        flat = torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset)
        view = flat.as_strided(self.shape, self.stride)
        return view if lend and view.nbytes >= _LENT_FROM else view.clone()


def _plain(tensor: Tensor) -> bool:
    return not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def _unpack(value: Any, memory: np.ndarray, lend: bool) -> Any:
    if isinstance(value, _Place):
        return value.tensor(memory, lend=lend)
    if type(value) is dict:
        return {key: _unpack(item, memory, lend) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_unpack(item, memory, lend) for item in value)
    return value


_writer: Writer | None = None  # in a worker, while it makes a batch
