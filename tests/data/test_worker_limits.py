"""What workers do where memory, processes or /dev/shm are short."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faulty_reader import batches_of, check, in_other_process, linux, message, mixed, unable

from ddfnet.data.ring import empty
from ddfnet.utils.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows there are no workers")


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
