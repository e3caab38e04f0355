"""The native code in threads, forks and DataLoader workers."""

import ctypes
import subprocess
import sys

import pytest
import torch
from ddf_cases import make_inputs
from torch.utils.data import DataLoader, Dataset

from ddfnet.ops import native_call
from ddfnet.ops.ddf import ddf, native
from tests.conftest import ROOT


class Filtered(Dataset):
    """Runs the operator where the samples are made: in DataLoader workers."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return ddf(*self.inputs)


def test_workers_forked_after_threads_ran(built, threads):
    threads(3)
    inputs = make_inputs(8, 64, 40, 40, requires_grad=False)
    y = ddf(*inputs)
    loader = DataLoader(Filtered(inputs), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
    assert all(torch.equal(filtered, y) for filtered in loader)


def test_the_threads_are_those_of_pytorch(built, threads):
    """A stand-in for OpenMP's entry, which runs the threads one after another, and one too few."""
    entry = native_call._parallel()
    assert sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info() or entry
    threads(3)
    library, seen = native._library(torch.float32), []
    inputs = make_inputs(8, 64, 40, 40, requires_grad=False)
    expected = ddf(*inputs)

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def stand_in(work, team, count, flags):
        seen.append((count, flags))
        for _ in range(count - 1):
            work(team)

    try:
        library.use_parallel(stand_in)
        assert torch.equal(ddf(*inputs), expected)
        assert seen == [(3, 0)]
        threads(1)
        assert torch.equal(ddf(*inputs), expected)
        assert len(seen) == 1
        threads(3)
        library.use_parallel(None)
        assert torch.equal(ddf(*inputs), expected)  # with threads of its own
    finally:
        library.use_parallel(entry)


FORK = """
import os, threading, torch
from ddfnet.ops.ddf import ddf

torch.set_num_threads(3)
inputs = torch.randn(8, 64, 40, 40), torch.randn(8, 64, 3, 3), torch.randn(8, 9, 40, 40)
expected = ddf(*inputs)
children_done = threading.Event()

def work():
    while not children_done.is_set():
        ddf(*inputs)

busy = threading.Thread(target=work)
busy.start()  # forked in the middle of a call of another thread
for _ in range(5):
    child = os.fork()
    if child == 0:
        y = ddf(*inputs)
        torch.set_num_threads(1)  # the threads of PyTorch itself may hang here
        os._exit(0 if torch.equal(y, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
children_done.set()
busy.join()
"""


def test_forks_in_the_middle_of_a_call(built):
    subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, timeout=200, check=True)


FIRST_CALL_IN_CHILD = """
import os, sys, torch
from ddfnet.ops.ddf import ddf

torch.set_num_threads(2)
inputs = torch.randn(8, 64, 40, 40), torch.randn(8, 64, 3, 3), torch.randn(8, 9, 40, 40)
if sys.argv[1] == "other dtype":
    ddf(*inputs)  # loads the library of float32 alone
    inputs = [tensor.double() for tensor in inputs]
torch.randn(400_000).exp_()  # threads of PyTorch, which the child does not have
child = os.fork()
if child == 0:
    ddf(*inputs)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("before", ["nothing", "other dtype"])
def test_a_library_that_is_loaded_after_the_fork(built, before):
    subprocess.run([sys.executable, "-c", FIRST_CALL_IN_CHILD, before], cwd=ROOT, timeout=200, check=True)
