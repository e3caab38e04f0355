#!/usr/bin/env bash
# Finding (2026-11): fvcore counts a product of one matrix with a batch of matrices, weight @ x, as if the batch had one
# image, and a convolution with padding="same" as nothing.
#
# Expected: FlopCountAnalysis gives the multiply-adds of what runs, and reports operators that it does not know. The
#   product with its operands exchanged, x @ weight, and a convolution with padding=1 are counted right.
# Real: the handler of matmul multiplies the sizes of the FIRST operand by the last size of the second. When the batch
#   is in the second operand only, it is lost; where both have batch axes that are broadcast against each other, only
#   those of the first count. There is no warning, since the operator is "supported". With padding="same" PyTorch
#   records another operator, which fvcore does not know: there is a warning, in a list together with those for
#   additions and multiplications that everybody ignores, and the layer is free.
# Why it matters: weight @ tokens is how token-mixing layers (MLP-Mixer, gMLP, spatial gating), position-wise
#   attention and shared dynamic filters are written on (batch, tokens, channels), and fvcore is what many tables
#   of "GFLOPs" come from. With the usual batch of 1 it is right; what is divided by the batch size
#   afterwards is too small by the batch size. Networks ported from TensorFlow have padding="same" throughout.
#
# Versions: fvcore 0.1.5.post20221221, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   fvcore 0.1.5.post20221221 torch 2.14.1
#     multiply-adds in thousands   batch    fvcore   torch's counter   by hand   fvcore warns of
#     weight @ x                       1     153.7             153.7     153.7   nothing
#     weight @ x                      32     153.7            4917.2    4917.2   nothing
#     (x.mT @ weight.mT).mT            1     153.7             153.7     153.7   aten::mT
#     (x.mT @ weight.mT).mT           32    4917.2            4917.2    4917.2   aten::mT
#     weight.expand(batch) @ x         1     153.7             153.7     153.7   nothing
#     weight.expand(batch) @ x        32    4917.2            4917.2    4917.2   nothing
#     Conv2d(padding=1)                1     451.6             451.6     451.6   nothing
#     Conv2d(padding=1)               32   14450.7           14450.7   14450.7   nothing
#     Conv2d(padding="same")           1       0.0             451.6     451.6   aten::_convolution_mode
#     Conv2d(padding="same")          32       0.0           14450.7   14450.7   aten::_convolution_mode
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 fvcore==0.1.5.post20221221 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import logging
import sys
import warnings

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("fvcore", "torch")))


class Apply(nn.Module):
    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return self.function(self.weight, x)


TOKENS, CHANNELS = 49, 64
cases = {
    "weight @ x": (Apply(torch.matmul, TOKENS, TOKENS), (TOKENS, CHANNELS)),
    "(x.mT @ weight.mT).mT": (Apply(lambda w, x: (x.mT @ w.mT).mT, TOKENS, TOKENS), (TOKENS, CHANNELS)),
    "weight.expand(batch) @ x": (Apply(lambda w, x: torch.bmm(w.expand(len(x), -1, -1), x), TOKENS, TOKENS), (TOKENS, CHANNELS)),
    "Conv2d(padding=1)": (nn.Conv2d(16, 16, 3, padding=1), (16, 14, 14)),
    'Conv2d(padding="same")': (nn.Conv2d(16, 16, 3, padding="same"), (16, 14, 14)),
}
lost_by_batch, free = {"weight @ x"}, {'Conv2d(padding="same")'}
changed = []
print(f"  {'multiply-adds in thousands':28s} batch    fvcore   torch's counter   by hand   fvcore warns of")
for name, (network, shape) in cases.items():
    one = TOKENS * TOKENS * CHANNELS if len(shape) == 2 else 14 * 14 * 16 * 16 * 9
    for batch in (1, 32):
        x = torch.zeros(batch, *shape)
        analysis = FlopCountAnalysis(network, x)
        counted = analysis.total()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
        by_torch = counter.get_total_flops() // 2
        warned = ", ".join(analysis.unsupported_ops()) or "nothing"
        print(f"  {name:28s} {batch:5d} {counted / 1e3:9.1f} {by_torch / 1e3:17.1f} {one * batch / 1e3:9.1f}   {warned}")
        wished = 0 if name in free else one if name in lost_by_batch else one * batch
        if counted != wished or by_torch != one * batch or (name in lost_by_batch and warned != "nothing"):
            changed.append(f"{name}, batch {batch}: {counted}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
