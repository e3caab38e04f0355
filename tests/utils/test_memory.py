"""Freed memory stays with the process that asked for it, and the system is left alone where a user has decided."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# PyTorch takes seconds to import. NumPy, which has its memory from the same glibc, stands for it where the question is
# what glibc does.
TORCH = ("from ddfnet.utils import memory", "import torch", "torch.ones(25 * 2**20)")
NUMPY = (
    "import runpy, types; memory = types.SimpleNamespace(**runpy.run_path('ddfnet/utils/memory.py'))",
    "import numpy",
    "numpy.ones(25 * 2**20, numpy.float32)",
)
PROBE = """
import resource, sys
{load}
kept = memory.keep_freed_memory()
{library}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    {allocate}  # 100 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = [faults() for _ in range(8)]  # what else is allocated has to find its place first
print(int(kept), min(counts[-3:]), max(counts[-3:]))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


def source(text, parts):
    return text.format(**dict(zip(("load", "library", "allocate"), parts, strict=True)))


def probe(parts, **variables):
    kept_out = ("MALLOC_", "GLIBC_", "DDFNET_MALLOC")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(kept_out)}
    # huge pages would hide the difference: one fault for 512 pages
    code = "import ctypes; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)\n" + source(PROBE, parts)
    command = [sys.executable, "-c", code]
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    kept, least, most = map(int, done.stdout.split())
    return bool(kept), least, most


@pytest.mark.parametrize("parts", [TORCH, NUMPY], ids=["torch", "numpy"])
def test_freed_memory_is_used_again_without_page_faults(parts):
    kept, _, most = probe(parts)
    assert kept
    assert most < 1000


@pytest.mark.parametrize("variables", [{"DDFNET_MALLOC": "0"}, {"MALLOC_ARENA_MAX": "2"}], ids=str)
def test_a_user_who_has_decided_is_left_alone(variables):
    kept, least, _ = probe(NUMPY, **variables)
    assert not kept
    assert least > 20_000  # 25,600 pages


READER = """
import sys
{load}
memory.keep_freed_memory()  # as a forked worker inherits it
{library}
assert sys.argv[1] == "kept" or memory.return_large_blocks()

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

before = resident()
{allocate}  # 100 MiB
print((resident() - before) // 1024)
"""


@pytest.mark.parametrize(("how", "low", "high"), [("kept", 90, 110), ("returned", 0, 10)])
def test_readers_give_the_memory_of_a_large_image_back(how, low, high):
    command = [sys.executable, "-c", source(READER, NUMPY), how]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert low <= int(done.stdout) <= high
