#!/usr/bin/env bash
# Finding (2026-11): ExecuTorch's Python runtime takes a channels_last tensor for a contiguous one, silently.
#
# Expected: a tensor of the right shape and dtype gives the same outputs whatever its strides, or an error.
# Real: for a channels_last tensor execute() returns without a word what the network gives for other
#   numbers: the memory read in order, as if it were contiguous. Both the portable kernels and XNNPACK.
#   A transposed or a sliced tensor is refused with a RuntimeError, so there is a check of
#   strides, and channels_last, the one other layout that networks are fed with, is what passes it.
# Why it matters: an image from PIL, OpenCV or a decoder is height x width x channels; permute(2, 0, 1)[None]
#   of it is channels_last. The usual test of an export is on torch.randn, which is contiguous: it
#   passes, and the deployed network is wrong on every image. Call .contiguous() before execute().
#
# Versions: executorch 1.5.1, torch 2.14.1, torchao 0.18.0, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   executorch 1.5.1 torch 2.14.1
#   portable contiguous: off by 5.2e-08, equal to the network on the memory in order: True
#   portable channels_last: off by 3.8e-02, equal to the network on the memory in order: True
#   portable rows and columns swapped in memory: RuntimeError
#   portable part of a larger tensor: RuntimeError
#   XNNPACK  contiguous: off by 6.0e-08, equal to the network on the memory in order: True
#   XNNPACK  channels_last: off by 3.8e-02, equal to the network on the memory in order: True
#   XNNPACK  rows and columns swapped in memory: RuntimeError
#   XNNPACK  part of a larger tensor: RuntimeError
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  executorch==1.5.1 torch==2.14.1 torchao==0.18.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("executorch", "torch")))
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
network.eval()
image = torch.randn(1, 3, 32, 32)
layouts = {
    "contiguous": image,
    "channels_last": image.contiguous(memory_format=torch.channels_last),
    "rows and columns swapped in memory": image.mT.contiguous().mT,
    "part of a larger tensor": torch.cat([image, image], 3)[..., :32],
}
failures = []
with torch.no_grad():
    expected = network(image)
    program = torch.export.export(network, (image,))
    for backend, partitioners in (("portable", []), ("XNNPACK", [XnnpackPartitioner()])):
        lowered = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
        loaded = Runtime.get().load_program(lowered.buffer)
        method = loaded.load_method("forward")
        for name, x in layouts.items():
            assert torch.equal(x, image)
            try:
                got = method.execute([x])[0].clone()
            except Exception as error:
                print(f"{backend:8s} {name}: {type(error).__name__}")
                if name in ("contiguous", "channels_last"):
                    failures.append(f"{backend} refuses {name}")
                continue
            off = (got - expected).abs().max().item()
            in_order = network(x.as_strided(image.shape, image.stride()))  # of the memory as it lies
            same = torch.allclose(got, in_order, atol=1e-4)
            print(f"{backend:8s} {name}: off by {off:.1e}, equal to the network on the memory in order: {same}")
            if name == "contiguous" and off > 1e-4:
                failures.append(f"{backend} is wrong")
            if name == "channels_last" and (off < 1e-2 or not same):
                failures.append(f"{backend} no longer misreads {name}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
