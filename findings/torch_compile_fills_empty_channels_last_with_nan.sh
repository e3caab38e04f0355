#!/usr/bin/env bash
# Finding (2026-11): under torch.compile, torch.empty(..., memory_format=torch.channels_last) is filled with NaN by a
# kernel of its own; torch.empty without the argument, empty_strided and empty_like(x) are not.
#
# Expected: empty allocates and writes nothing, compiled or not, in whatever memory format. In eager mode it is so.
# Real: Inductor allocates most kinds of empty without writing to them, but for a memory format in the call it
#   makes a tensor of one constant, NaN, in the wished order. So the buffer is written once in full before the
#   operator that really fills it runs, although deterministic mode, which does so on purpose, is off. empty_like(x) of a
#   channels_last x is free; empty_like(x, memory_format=torch.channels_last), the same tensor spelled out, is not.
# Why it matters: this is how an operator of one's own (a Triton kernel in a triton_op, a custom_op with an output
#   argument) makes its result in the layout that convolutions want. Each call then writes its output twice and
#   launches one kernel more, which is what compiling was meant to save. Results are right, so only the generated
#   code or a trace shows it. The code that Inductor makes for CUDA has the same extra kernel.
#   The same empty made contiguous and permuted costs nothing, which is the way out.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11, g++ 12. Date: 2026-11. A C++ compiler is needed.
# Output that was seen:
#   torch 2.14.1
#   output made by      generated kernels  strides of the result
#   plain                               0  (1568, 196, 14, 1)
#   memory_format                       1  (1568, 1, 112, 8) cpp_fused_empty_0(buf1)
#   like                                0  (1568, 1, 112, 8)
#   like_memory_format                  1  (1568, 1, 112, 8) cpp_fused_empty_like_0(buf1)
#   strided                             0  (1568, 1, 112, 8)
#   permuted                            0  (1568, 1, 112, 8)
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6
export TORCHINDUCTOR_CACHE_DIR="$work/cache"

cat > "$work/check.py" <<'PY'
import importlib.metadata
import re
import sys
import warnings

import torch
from torch._inductor.utils import run_and_get_code

warnings.simplefilter("ignore")
print("torch", importlib.metadata.version("torch"))


@torch.library.custom_op("finding::double", mutates_args={"out"})
def double(x: torch.Tensor, out: torch.Tensor) -> None:
    """Stands for a kernel of one's own that writes each element of out."""
    torch.mul(x, 2, out=out)


def plain(x):
    out = torch.empty(x.shape)
    double(x, out)
    return out


def memory_format(x):
    out = torch.empty(x.shape, memory_format=torch.channels_last)
    double(x, out)
    return out


def like(x):
    out = torch.empty_like(x)
    double(x, out)
    return out


def like_memory_format(x):
    out = torch.empty_like(x, memory_format=torch.channels_last)
    double(x, out)
    return out


def strided(x):
    out = torch.empty_strided(x.shape, x.stride())
    double(x, out)
    return out


def permuted(x):
    b, c, h, w = x.shape
    out = torch.empty(b, h, w, c).permute(0, 3, 1, 2)
    double(x, out)
    return out


x = torch.randn(4, 8, 14, 14).contiguous(memory_format=torch.channels_last)
expected = {plain: 0, memory_format: 1, like: 0, like_memory_format: 1, strided: 0, permuted: 0}
failures = []
print("output made by      generated kernels  strides of the result")
for function, kernels in expected.items():
    torch._dynamo.reset()
    result, codes = run_and_get_code(torch.compile(function, fullgraph=True), x)
    calls = re.findall(r"cpp_fused\w*\(\w+\)", codes[0][codes[0].index("def call") :])
    print(f"{function.__name__:20s}{len(calls):17d}  {result.stride()}", *calls)
    if len(calls) != kernels or ("quiet_NaN" in codes[0]) != bool(kernels):
        failures.append(f"{function.__name__}: {calls}")
    if not torch.equal(result, x * 2):
        failures.append(f"{function.__name__}: wrong result")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
