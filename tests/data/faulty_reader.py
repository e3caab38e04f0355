"""A reader whose samples fail as a file tells them to, and what tests of workers look at."""

import errno
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from ddfnet.data.loader import eval_batches
from ddfnet.data.ring import empty, reading
from ddfnet.utils.errors import ConfigError, DataError

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
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


def unable(*arguments):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


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
