#!/usr/bin/env bash
# Finding (2026-11): Triton's interpreter computes each sum, difference and product of 32-bit integers five times, and
# lists the whole language at each call of a helper function. Offsets are what kernels consist of, so that this is more
# than half of the time of tests that run in the interpreter.
#
# Expected: 32-bit offsets, the default of tl.arange and tl.program_id, cost what 64-bit ones cost, or less; a call of
#   another @triton.jit function costs a Python call; and the launch option sanitize_overflow=False does what it does
#   for the compiler, which has the check off by default.
# Real: the interpreter has the check for overflows always on. For each sum of 32-bit integers both operands are cast to
#   64 bits, added, compared with the largest and the smallest number, and the two answers combined, before the sum
#   itself is made: 5 operations of NumPy. 64-bit integers and floats take 1. The launch option is dropped in silence.
#   And each call of a helper goes through all members of triton.language, its tensor class and its math module to
#   replace them by interpreted ones, which the kernel around it has done before: 4 listings a call.
# Why it matters: kernels are tested without a GPU in the interpreter, and its speed decides how many cases a test can
#   have. 35 cases of a convolution-like kernel took 118 s of CPU, and 50 s without these two (one core of an AMD EPYC).
#   A kernel split into small helpers, the clean way, pays the most.
# Ways out, checked below: replace the options of the interpreter's builder in the test process (the check is of no use
#   for tensors of tests, which are small), or compute offsets in 64 bits where it makes no difference.
# No torch is needed: the kernels have no tensors.
#
# Versions: triton 3.8.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen (without the times, which vary):
#   20 programs of 20 steps x = x * 2 + 1 - x: operations of NumPy, listings of a module or class
#   int32                                     6000      4
#   int64                                     1200      4
#   float32                                   1200      4
#   int32, launched with sanitize_overflow=0  6000      4
#   int32, by a helper function               6000   1604
#   int32, option of the builder off          1200      4
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check triton==3.8.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import dataclasses
import importlib.metadata
import inspect
import time

import triton
import triton.language as tl
from triton.runtime import interpreter

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("triton", "numpy")))
counts = {"operations": 0, "listings": 0}


def counted(function, name):
    def count(*arguments, **options):
        counts[name] += 1
        return function(*arguments, **options)

    return count


builder = interpreter.InterpreterBuilder
builder.binary_op = counted(builder.binary_op, "operations")
inspect.getmembers = counted(inspect.getmembers, "listings")


@triton.jit
def step(x):
    return x * 2 + 1 - x


@triton.jit
def kernel(unused, dtype: tl.constexpr, HELPER: tl.constexpr):
    x = tl.arange(0, 8).to(dtype)
    for _ in range(20):
        x = step(x) if HELPER else x * 2 + 1 - x


def run(title, dtype, helper=False, **options):
    counts.update(operations=0, listings=0)
    start = time.process_time()
    kernel[(20,)](1, dtype, helper, **options)
    seen = counts["operations"], counts["listings"]
    print(f"{title:40} {seen[0]:5}  {seen[1]:5}  {time.process_time() - start:6.2f} s")
    return seen


print("20 programs of 20 steps x = x * 2 + 1 - x: operations of NumPy, listings of a module or class")
narrow = run("int32", tl.int32)
wide = run("int64", tl.int64)
floats = run("float32", tl.float32)
option = run("int32, launched with sanitize_overflow=0", tl.int32, sanitize_overflow=False)
helper = run("int32, by a helper function", tl.int32, helper=True)
interpreter.interpreter_builder.options = dataclasses.replace(
    interpreter.interpreter_builder.options, sanitize_overflow=False
)
off = run("int32, option of the builder off", tl.int32)

assert wide[0] == floats[0] == 20 * 20 * 3 == off[0]
assert narrow[0] == option[0] == helper[0] == 5 * wide[0]
assert helper[1] - narrow[1] == 4 * 20 * 20, (helper, narrow)
print("OK: behavior is as described")
PY
TRITON_INTERPRET=1 "$work/venv/bin/python" "$work/check.py"
