"""What workers do when all goes well, and what happens when they die, hang or fail."""

import ctypes
import errno
import gc
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.ring import empty, reading
from ddfnet.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows there are no workers")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
START_METHODS = ["fork", "forkserver", "spawn"]
FORK = multiprocessing.get_context("fork")


class Reader:
    """Sample i is 3 x 80 x 80 times i. A file `fault-i` in the folder says what goes wrong in it, one letter a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, requests):
        requests = [i if isinstance(i, int) else i[1] for i in requests]
        rows = empty((len(requests), 80, 80, 3), torch.uint8)
        for row, i in zip(rows, requests, strict=True):
            reading(i)
            self.fault(self.folder / f"fault-{i}")
            row.fill_(i)
        return {"image": rows.permute(0, 3, 1, 2), "index": torch.tensor(requests)}

    def fault(self, file: Path) -> None:
        faults = file.read_text() if file.exists() else ""
        if not faults:
            return
        file.write_text(faults[1:])
        if faults[0] == "k":
            os.kill(os.getpid(), signal.SIGKILL)
        elif faults[0] == "h":
            time.sleep(1000)
        elif faults[0] == "d":
            raise DataError("the sentence")
        elif faults[0] == "z":
            raise ZeroDivisionError("a defect")
        elif faults[0] == "l":

            class LocalError(ConfigError):
                pass

            raise LocalError("of a local class")


def same(batch):
    return batch


def batches_of(folder, *, samples=64, workers=2, finish=same, read=None, **options):
    options = {"name": "number {}".format, "timeout": 300.0, "device": "cpu", **options}
    return eval_batches(
        read or Reader(folder), samples, finish, batch_size=4, rank=0, world_size=1, workers=workers, **options
    )


def check(batches, samples=64):
    seen = []
    for batch in batches:
        assert torch.equal(batch["image"], batch["index"].to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 80, 80))
        seen += batch["index"].tolist()
    assert seen == list(range(samples))


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def children():
    return [process.pid for process in multiprocessing.active_children()]


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def rings(pid="self"):
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:ddfnet")


def message(batches, kind=DataError):
    """Text of the error that batches end with, and how many came before; the error itself is let go."""
    count = 0
    try:
        for _ in batches:
            count += 1
    except kind as error:
        return str(error), count
    pytest.fail(f"no {kind.__name__}")


# --- all well ---------------------------------------------------------------------------------------------------------


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


def mixed(requests):
    """Tensors of all kinds and places, larger from batch to batch."""
    i = requests[0]
    own = torch.arange(24_000 * (i + 1), dtype=torch.float32)
    return {
        "list": [own.view(2, 3, -1), {"boxes": torch.zeros(0, 4), "id": i}],
        "last": own.view(2, 40, 30, -1).permute(0, 3, 1, 2),
        "rows": empty((4, 50_000), torch.int32).fill_(i)[1:3, 7:],
        "expanded": torch.ones(1, 1).expand(200, 300),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "grad": torch.ones(3, requires_grad=True),
        "complex": torch.ones(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "array": own.numpy()[:5],
        "tuple": (own[:3], "text", None),
        "none": empty((0, 3), torch.uint8),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.layout, a.requires_grad) == (b.dtype, b.shape, b.layout, b.requires_grad)
        return torch.equal(a.to_dense(), b.to_dense())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return (a == b).all() if hasattr(a, "all") else a == b


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


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_worker_is_replaced_and_its_batch_read_again(tmp_path, times, workers, caplog):
    (tmp_path / "fault-13").write_text("k" * times)
    with caplog.at_level(logging.WARNING, logger="ddfnet"):
        check(batches_of(tmp_path, workers=workers))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "a data worker ended (SIGKILL, as where memory runs out) while reading number 13; another one takes its place"
    ] * times  # fmt: skip


def test_a_sample_that_kills_each_worker_is_named(tmp_path):
    (tmp_path / "fault-13").write_text("kkkk")
    batches = batches_of(tmp_path)
    text, before = message(batches)
    assert before == 3  # those of samples 0 to 11
    assert text.startswith("4 data workers in a row ended while reading number 13, the last with SIGKILL")
    assert not children()
    check(batches)  # the fourth was the last


def test_workers_killed_at_start_are_replaced(tmp_path):
    sampler = [[(0, i, 0) for i in range(start, start + 4)] for start in range(0, 64, 4)]
    batches = train_batches(Reader(tmp_path), sampler, same, device="cpu", workers=2)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    check(batches)


def test_idle_workers_are_replaced(tmp_path):
    batches = batches_of(tmp_path)
    for _ in range(6):
        check(batches)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
    check(batches)


def unable(*arguments):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_no_memory_for_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", unable)
    with pytest.raises(
        DataError, match=r"could not be started \(Cannot allocate memory\), one of 2: lower data.workers"
    ):
        iter(batches_of(tmp_path))


def test_no_memory_for_a_batch(tmp_path, monkeypatch):
    batches = iter(batches_of(tmp_path, read=mixed))
    monkeypatch.setattr(os, "posix_fallocate", unable)
    text, _ = message(batches)
    assert text.startswith("no memory for a batch of 1 MiB (Cannot allocate memory): up to 6 batches lie in memory")


def in_other_process(function, *arguments):
    """Text of the DataError that a function ends with in a process of its own; "" if there was none."""

    def call():
        try:
            function(*arguments)
            other.send("")
        except DataError as error:
            other.send(str(error))

    own, other = multiprocessing.Pipe()
    process = FORK.Process(target=call)
    process.start()
    other.close()
    text = own.recv()
    process.join(60)
    assert process.exitcode == 0
    return text


def huge(requests):
    return torch.zeros(600 << 20, dtype=torch.uint8)


def limited(folder, limit, size):
    resource.setrlimit(limit, (size, size))
    check(batches_of(folder))
    next(iter(batches_of(folder, read=huge)))


@linux
def test_limits_of_the_process(tmp_path):
    """On the size of files, or on addresses: slots become smaller, and a batch that is too large says so."""
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    message = "no memory for a batch of 600 MiB (a slot has 128 MiB of addresses)"
    assert in_other_process(limited, tmp_path, resource.RLIMIT_FSIZE, 1 << 30).startswith(message)
    assert in_other_process(limited, tmp_path, resource.RLIMIT_AS, addresses + (5 << 29)).startswith(message)
    none = in_other_process(limited, tmp_path, resource.RLIMIT_FSIZE, 1 << 20)
    assert none.startswith("no addresses for the shared memory of 6 batches of 32 MiB ([Errno 27] File too large)")
    assert "data.workers" in none


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_reader_that_cannot_be_sent(tmp_path, method):
    class Local:
        pass

    with pytest.raises(TypeError, match=f"data.start_method={method} .* can be pickled"):
        iter(batches_of(tmp_path, read=Local(), start_method=method))
    assert not children()


class Poison:
    def __reduce__(self):
        return unable, ()


def test_a_worker_that_cannot_start(tmp_path):
    text, _ = message(batches_of(tmp_path, workers=1, read=Poison(), start_method="forkserver"))
    assert text == "a data worker could not start (exit code 1): its own message stands above"


# --- hanging ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_hangs_is_named(tmp_path):
    (tmp_path / "fault-13").write_text("h")
    text, before = message(batches_of(tmp_path, timeout=3.0))
    assert before == 3
    assert " has not moved for 3 s while reading number 13: " in text
    assert "data.timeout" in text
    assert not children()


def test_a_stopped_worker_is_named_and_ended(tmp_path):
    batches = batches_of(tmp_path, timeout=3.0, workers=1)
    check(batches)
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    text, _ = message(batches)
    assert text.startswith(f"a data worker (process {pid}) has not moved for 3 s while reading number 0 or number 1 or")
    assert wait_for(lambda: not children())


def test_slow_is_not_hanging(tmp_path):
    def read(requests):
        for i in requests:
            reading(i)
            time.sleep(1.5)
        return {}

    assert len(list(batches_of(tmp_path, read=read, timeout=4.0, samples=4))) == 1


def test_time_in_which_nobody_waits_does_not_count(tmp_path):
    batches = iter(batches_of(tmp_path, timeout=3.0))
    seen = [next(batches)]
    time.sleep(4)
    check([*seen, *batches])


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_of_a_reader(tmp_path):
    for letter in "dzl":
        (tmp_path / "fault-13").write_text(letter)
        batches = batches_of(tmp_path)
        kind = {"d": DataError, "z": RuntimeError, "l": ValueError}[letter]
        text, before = message(batches, kind)
        assert before == 3
        assert not children()
        if letter == "z":
            assert text.startswith("reading number 13 failed in a data worker:\n\nTraceback")
            assert text.endswith('raise ZeroDivisionError("a defect")\nZeroDivisionError: a defect\n')
        else:
            assert text == {"d": "the sentence", "l": "of a local class"}[letter]
        check(batches)


def test_a_sample_is_named_without_the_help_of_the_reader(tmp_path):
    def read(requests):
        raise KeyError("a defect")

    text, _ = message(batches_of(tmp_path, read=read), RuntimeError)
    assert text.startswith("reading number 0 or number 1 or number 2 or one of 1 more failed in a data worker")


def test_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        batches_of(tmp_path, workers=-1)


# --- small /dev/shm ---------------------------------------------------------------------------------------------------


def small_dev_shm(folder):
    if ctypes.CDLL(None).unshare(0x00020000):  # a mount namespace of its own
        raise DataError("not permitted")
    for mount in ("--make-rprivate /", "-t tmpfs -o size=16m tmpfs /dev/shm"):
        if subprocess.run(["mount", *mount.split()], capture_output=True).returncode:
            raise DataError("not permitted")
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 16 << 20
    batches = batches_of(folder, read=large, samples=24)
    assert [int(batch["image"].max()) for batch in batches] == [0, 4, 8, 12, 16, 20]


@linux
def test_a_small_dev_shm_is_enough(tmp_path):
    """Batches of 64 MiB where 16 MiB of /dev/shm are there."""
    outcome = in_other_process(small_dev_shm, tmp_path)
    if outcome == "not permitted":
        pytest.skip("no private mounts here")
    assert outcome == ""


def large(requests):
    return {"image": empty((64 << 20,), torch.uint8).fill_(requests[0])}
