#!/usr/bin/env bash
# Finding (2026-11): a Triton kernel wrapped by torch.library.wrap_triton and launched in eager code outside a
# triton_op takes about ten times the host time of the plain launch.
#
# Expected: wrap_triton marks a kernel as traceable. Outside of tracing it should hand the call through: the
#   result is the same, and inside a triton_op the very same line costs next to nothing extra.
# Real: without a triton_op around it the wrapper takes the tracing path although nothing is traced: the kernel
#   and its constants are entered in a table and a higher-order operator is dispatched, in Python, for each
#   launch. Here the launch goes from 6 to 75 microseconds; a whole triton_op, dispatch included, takes 22.
#   triton_op switches the wrapper off while it runs its body in eager mode; a torch.autograd.Function, a
#   module's forward and a custom_op do not.
# Why it matters: libraries wrap their kernels once so that torch.compile users can trace them, and call
#   them from an autograd.Function for everybody else. A network with a hundred launches per step then spends
#   7 ms of host time on them instead of 0.6: small batches and inference are limited by the host, and the
#   profiler shows Python, not a kernel. Numbers and GPU times are unchanged, so benchmarks with GPU events
#   show nothing.
# Ways out, checked below: put the launch into a triton_op, or wrap only where torch.compiler.is_compiling().
# No GPU is needed: a stub stands where Triton hands the launch to the driver.
#
# Versions: torch 2.14.1, triton 3.8.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen (times vary; the second row was 9 to 13 times the first):
#   torch 2.14.1 triton 3.8.0
#   double[grid](...)                         6.0 us,   1.0 times the plain launch
#   wrap_triton(double)[grid](...)           74.6 us,  12.5 times the plain launch
#   the same inside an autograd.Function     83.8 us,  14.0 times the plain launch
#   the same inside a custom_op              98.4 us,  16.4 times the plain launch
#   double[grid] inside a custom_op          16.0 us,   2.7 times the plain launch
#   the same inside a triton_op              21.8 us,   3.6 times the plain launch
#   wrapped only if torch is compiling        6.5 us,   1.1 times the plain launch
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 triton==3.8.0 numpy==2.4.6
export TRITON_CACHE_DIR="$work/cache"

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import time
from types import SimpleNamespace

import torch
import triton
import triton.language as tl
from torch.library import custom_op, triton_op, wrap_triton
from triton.backends.compiler import GPUTarget

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton")))
launches = 0


class Launcher:
    """Stands for the GPU: counts a launch and does nothing, so that only the way to it is timed."""

    def __init__(self, source, metadata):
        pass

    def __call__(self, *arguments):
        global launches
        launches += 1


class Utils:
    def load_binary(self, *arguments):
        return 1, 1, 32, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=Launcher,
        utils=Utils(),
    )
)


@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


x, y = torch.zeros(1024), torch.zeros(1024)
wrapped = wrap_triton(double)


@triton_op("finding::traced", mutates_args={"y"})
def traced(x: torch.Tensor, y: torch.Tensor) -> None:
    wrap_triton(double)[(8,)](x, y, 1024, BLOCK=128)


@custom_op("finding::opaque", mutates_args={"y"})
def opaque(x: torch.Tensor, y: torch.Tensor) -> None:
    double[(8,)](x, y, 1024, BLOCK=128)


@custom_op("finding::opaque_wrapped", mutates_args={"y"})
def opaque_wrapped(x: torch.Tensor, y: torch.Tensor) -> None:
    wrapped[(8,)](x, y, 1024, BLOCK=128)


def chosen():
    kernel = wrap_triton(double) if torch.compiler.is_compiling() else double
    kernel[(8,)](x, y, 1024, BLOCK=128)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        wrapped[(8,)](x, y, 1024, BLOCK=128)
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def microseconds(call, times=500):
    global launches
    for _ in range(100):
        call()
    launches, best = 0, float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - start) / times * 1e6)
    assert launches == 5 * times
    return best


torch.set_num_threads(1)
ways = {
    "double[grid](...)": lambda: double[(8,)](x, y, 1024, BLOCK=128),
    "wrap_triton(double)[grid](...)": lambda: wrapped[(8,)](x, y, 1024, BLOCK=128),
    "the same inside an autograd.Function": lambda: Function.apply(x, y),
    "the same inside a custom_op": lambda: opaque_wrapped(x, y),
    "double[grid] inside a custom_op": lambda: opaque(x, y),
    "the same inside a triton_op": lambda: traced(x, y),
    "wrapped only if torch is compiling": chosen,
}
cost = {name: microseconds(call) for name, call in ways.items()}
plain = cost["double[grid](...)"]
for name, value in cost.items():
    print(f"{name:38s} {value:6.1f} us, {value / plain:5.1f} times the plain launch")
slow = min(list(cost.values())[1:4])
if slow < 3 * plain or slow < 1.5 * cost["the same inside a triton_op"] or list(cost.values())[-1] > 2 * plain:
    sys.exit("CHANGED: a wrapped kernel called alone is no longer much slower")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
