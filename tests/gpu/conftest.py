"""Setting of the GPU tests: they skip without CUDA, and use full float32.

`DDFNET_GPU_TESTS_DEVICE=cpu` runs their bodies on the CPU with small shapes, which finds mistakes in the tests.
"""

import os
import sys
from pathlib import Path

# cuBLAS reads it once. Tests that fill uninitialized memory ask for deterministic algorithms, and cuBLAS wants this.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The graphs here are small: starting a pool of compile processes for each worker costs more than it saves.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

sys.path.append(str(Path(__file__).resolve().parents[1] / "ops" / "ddf"))  # for ddf_cases
sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))  # for covering

import pytest
import torch
from gpu_cases import DEVICE


def pytest_configure(config):
    # known to pytest-xdist only, which need not be installed
    config.addinivalue_line("markers", "xdist_group(name): tests that must not run at the same time")


def pytest_runtest_setup(item):
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _full_float32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
