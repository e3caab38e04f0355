"""Copies from the ring to a device: the order of events with a CUDA made up here, the pixels on a real one."""

import contextlib
import gc

import pytest
import torch
from test_workers import batches_of, check

from ddfnet.data import device_copy
from ddfnet.data.loader import _Workers
from ddfnet.data.ring import empty
from ddfnet.data.workers import WorkerPool


class Event:
    """Comes when the test says so."""

    all: list["Event"]

    def __init__(self):
        self.done = False
        Event.all.append(self)

    def record(self, stream):
        pass

    def query(self):
        return self.done


class Stream:
    def __init__(self, device=None):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        for event in Event.all:
            event.done = True


class Runtime:
    """Registers memory as CUDA does: each range once, and only while it is mapped."""

    def __init__(self, error=0):
        self.error, self.ranges, self.calls = error, {}, 0

    def cudaHostRegister(self, address, size, flags):
        assert address not in self.ranges
        self.calls += 1
        if not self.error:
            self.ranges[address] = size
        return self.error

    def cudaHostUnregister(self, address):
        del self.ranges[address]
        return 0


@pytest.fixture
def runtime(monkeypatch):
    runtime, Event.all = Runtime(), []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


def rows(requests):
    """Batches that become larger."""
    return {"image": empty((requests[0], 1 << 20), torch.uint8).fill_(requests[0])}


def reading(workers=1):
    pool = WorkerPool(rows, workers, timeout=60.0)
    source = _Workers(pool, torch.device("cpu"))
    source.copy = device_copy.DeviceCopy(pool.ring, torch.device("cpu"))
    return source


def test_slots_are_free_when_their_copy_is_done(runtime):
    source = reading()
    stream = source.batches([i] for i in [1] * 40)
    for number in range(10):
        assert (next(stream)["image"] == 1).all()
        pending = [event for event in Event.all if not event.done]
        assert len(source.pool._lent) <= source.pool.ring.slots - 2
        if number < 5:
            continue  # with no copy done, batches are copies by now
        for event in pending:
            event.done = True
    assert len(list(stream)) == 30
    source.close()


def test_memory_is_registered_once_and_let_go(runtime):
    source = reading()
    for number, batch in enumerate(source.batches([i] for i in [1] * 20 + [3] * 20)):
        assert (batch["image"] == (1 if number < 20 else 3)).all()
        for event in Event.all:
            event.done = True
    slots = len(runtime.ranges)
    assert 0 < slots <= source.pool.ring.slots
    assert slots <= runtime.calls <= 2 * source.pool.ring.slots  # once for each size
    del source, batch
    gc.collect()
    assert not runtime.ranges


def test_memory_that_cannot_be_registered(runtime, caplog):
    runtime.error = 1
    source = reading()
    assert all((batch["image"] == 2).all() for batch in source.batches([2] for _ in range(8)))
    assert runtime.calls == 1
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "CUDA does not register the memory of batches (error 1)"
    ]
    source.close()


@pytest.mark.gpu
def test_batches_on_a_device(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batches = batches_of(tmp_path, device="cuda")
    seen = list(batches)
    assert all(batch["image"].is_cuda and not batch["index"].is_cuda for batch in seen)
    check({**batch, "image": batch["image"].cpu()} for batch in seen)
    assert batches.source.copy._registered
    check({**batch, "image": batch["image"].cpu()} for batch in batches)
    for workers in range(3):  # memory is registered anew, at addresses that may have been used before
        check(
            {**batch, "image": batch["image"].cpu()} for batch in batches_of(tmp_path, device="cuda", workers=workers)
        )
