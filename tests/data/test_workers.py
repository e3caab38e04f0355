"""What workers do when all goes well."""

import gc
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from faulty_reader import (
    FORK,
    Reader,
    batches_of,
    check,
    children,
    descriptors,
    ended,
    equal,
    in_other_process,
    linux,
    message,
    mixed,
    rings,
    same,
    unable,
    wait_for,
)

from ddfnet.data.loader import train_batches

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows there are no workers")
START_METHODS = ["fork", "forkserver", "spawn"]


@pytest.mark.parametrize("workers", [0, 1, 4, 100])
def test_batches_come_in_order(tmp_path, workers):
    batches = batches_of(tmp_path, workers=workers)
    check(batches)
    assert len(children()) == min(workers, 16)  # no more than batches
    del batches
    assert not children()


@pytest.mark.parametrize("method", START_METHODS)
def test_start_methods(tmp_path, method):
    (tmp_path / "fault-9").write_text("k")
    batches = batches_of(tmp_path, start_method=method)
    check(batches)
    check(batches)
    del batches
    assert not children()


def test_batches_that_are_kept_are_not_overwritten(tmp_path):
    batches = batches_of(tmp_path, workers=1)
    kept = list(batches)
    check(batches)
    check(kept)


def test_batches_belong_to_the_caller(tmp_path):
    """As mixing in place does, or an average over batches."""
    total, views = torch.zeros(3, 80, 80), []
    for batch in batches_of(tmp_path, workers=1):
        total += batch["image"].float().sum(0)
        views.append(batch["image"][1].numpy())  # keeps the memory alike
        batch["image"].mul_(0)
    assert (total == sum(range(64))).all()
    assert not any(view.any() for view in views)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_batches_of_any_content_and_size(tmp_path, method):
    batches = list(batches_of(tmp_path, read=mixed, start_method=method, samples=48))
    assert batches[3]["last"].is_contiguous(memory_format=torch.channels_last)
    for number, batch in enumerate(batches):
        assert equal(batch, mixed([4 * number]))


def several(requests):
    return [{"index": torch.tensor([i]), "image": torch.full((1, 3, 80, 80), i, dtype=torch.uint8)} for i in requests]


def test_a_read_can_give_several_batches(tmp_path):
    check(batches_of(tmp_path, read=several))


def test_finish_is_called_on_each_batch_in_this_process(tmp_path):
    batches = batches_of(tmp_path, finish=lambda batch: {**batch, "process": os.getpid()})
    assert {batch["process"] for batch in batches} == {os.getpid()}


def test_an_iteration_may_be_left_early(tmp_path):
    batches = batches_of(tmp_path)
    for stop in (1, 5):
        for number, _ in enumerate(batches):
            if number == stop:
                break
        started = set(children())
    check(batches)
    assert set(children()) == started


def test_two_iterations_at_once_are_refused(tmp_path):
    batches = batches_of(tmp_path)
    one = iter(batches)
    next(one)
    other = iter(batches)
    first = next(other)
    with pytest.raises(RuntimeError, match="another iteration"):
        next(one)
    check([first, *other])


def test_workers_have_one_thread_and_no_cuda(tmp_path):
    def read(requests):
        return {"threads": torch.get_num_threads(), "cuda": torch.cuda.is_initialized()}

    assert next(iter(batches_of(tmp_path, read=read))) == {"threads": 1, "cuda": False}


@linux
def test_without_memory_files(tmp_path, monkeypatch):
    """As on systems other than Linux: a temporary file."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "posix_fallocate")
    batches = batches_of(tmp_path)
    check(batches)
    assert not rings()
    kept = list(batches)
    check(kept)


# --- ends -------------------------------------------------------------------------------------------------------------


@linux
def test_nothing_is_left_of_fifty_iterators(tmp_path):
    (tmp_path / "fault-40").write_text("d" * 100)
    requests = [[(0, i, 0)] for i in range(50)]

    def rounds(count):
        for number in range(count):
            batches = train_batches(Reader(tmp_path), requests, same, device="cpu", workers=1)
            next(batches)
            if number % 3 == 0:
                batches.close()
            elif number % 3 == 1:
                message(batches)

    rounds(3)
    gc.collect()
    before = descriptors(), rings()
    rounds(50)
    gc.collect()
    assert not children()
    assert (descriptors(), rings()) == before


@linux
def test_memory_lives_as_long_as_a_batch(tmp_path):
    batches = batches_of(tmp_path)
    kept = next(iter(batches))
    del batches
    gc.collect()
    assert rings() == 1
    assert (kept["image"][3] == 3).all()
    del kept
    assert rings() == 0


@linux
def test_workers_hold_nothing_of_other_streams(tmp_path):
    """Else memory of a stream that has ended would stay as long as the workers of a later one."""
    first, second = batches_of(tmp_path), batches_of(tmp_path)
    next(iter(first))
    next(iter(second))
    pids = children()
    assert len(pids) == 4
    assert wait_for(lambda: [rings(pid) for pid in pids] == [1] * 4)


def stream_of_pids(folder, method, pids):
    if method == "fork on an old kernel":
        method, os.pidfd_open = "fork", unable
    (folder / "fault-1").write_text("h")
    iterator = iter(batches_of(folder, start_method=method))
    pids.send(children())
    next(iterator)


@linux
@pytest.mark.parametrize("method", ["fork", "fork on an old kernel", "spawn"])
def test_workers_end_when_their_parent_is_killed(tmp_path, method):
    """Though one is in the middle of a batch that never ends."""
    own, other = multiprocessing.Pipe()
    parent = FORK.Process(target=stream_of_pids, args=(tmp_path, method, other))
    parent.start()
    pids = own.recv()
    assert wait_for(lambda: (tmp_path / "fault-1").exists() and not (tmp_path / "fault-1").read_text(), 300)
    parent.kill()
    parent.join()
    assert len(pids) == 2
    assert wait_for(lambda: all(map(ended, pids)))


def leave_a_stopped_worker(folder):
    global kept
    kept = iter(batches_of(folder))
    next(kept)
    for pid in children():
        os.kill(pid, signal.SIGSTOP)


def test_a_process_exits_though_its_workers_are_stopped(tmp_path):
    assert in_other_process(leave_a_stopped_worker, tmp_path) == ""


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        batches_of(tmp_path, workers=-1)
