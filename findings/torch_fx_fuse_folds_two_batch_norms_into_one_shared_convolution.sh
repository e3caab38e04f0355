#!/usr/bin/env bash
# Finding (2026-11): torch.fx.experimental.optimization.fuse folds every batch norm that follows a shared convolution
# into that one convolution, one on top of the other; the fused network is another function, silently.
#
# Expected: a head that runs over several feature levels with one convolution and a batch norm per level cannot be
#   folded into a single convolution. A fuser leaves it alone or copies the weights, as torch.jit.freeze does. fuse()
#   does look for this kind of trouble: where the output of a convolution has a second reader, nothing is folded.
# Real: it looks at the readers of each call, not at how often the module is called. For the first call it puts a fused
#   copy in the place of the shared convolution; for the second call the copy is fused again with the second
#   norm. Both calls then use the convolution scaled and shifted by both norms. One block (convolution and norm) that is
#   applied twice is folded twice too. The result has the right shape, finite numbers and no batch norm left.
# Why it matters: shared convolutions with a norm per level are the design of EfficientDet's and NAS-FPN's heads, and
#   one block applied several times that of recurrent and weight-tied networks. Fusing is the last step before a
#   benchmark or an export, where speed is looked at and a ResNet has proved that fusing keeps the outputs.
# Ways out, checked below: torch.jit.freeze; or a copy of the convolution for each call before fusing.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#                                         fx fuse   jit.freeze   (largest error / standard deviation of the output)
#     a convolution per level              0.0000       0.0000
#     one convolution, a norm per level    2.4609       0.0000
#     one block applied twice              9.0024       0.0000
#     a second reader of the convolution   0.0000       0.0000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import sys
import warnings

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

warnings.simplefilter("ignore")
torch.manual_seed(0)
print("torch", torch.__version__.split("+")[0])


def convolution():
    return nn.Conv2d(8, 8, 3, padding=1, bias=False)


def norm():
    """A batch norm as after training: statistics and weights that are not 0 and 1."""
    layer = nn.BatchNorm2d(8)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    return layer


class Head(nn.Module):
    """Two levels; shared: one convolution for both, else one each."""

    def __init__(self, shared):
        super().__init__()
        first = convolution()
        self.convs = nn.ModuleList([first, first if shared else copy.deepcopy(first)])
        self.norms = nn.ModuleList([norm(), norm()])

    def forward(self, x):
        fine = self.norms[0](self.convs[0](x))
        coarse = self.norms[1](self.convs[1](x[..., ::2, ::2]))
        return torch.cat([fine.flatten(1), coarse.flatten(1)], 1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = convolution(), norm()

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = convolution(), norm()

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


def error(fused, network):
    """Largest difference over the size of the outputs."""
    x = torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        wished, got = network(x), fused(x)
    assert got.shape == wished.shape and got.isfinite().all()
    return float((got - wished).abs().max() / wished.std())


cases = {
    "a convolution per level": (Head(shared=False), False),
    "one convolution, a norm per level": (Head(shared=True), True),
    "one block applied twice": (Tied(), True),
    "a second reader of the convolution": (TwoReaders(), False),
}
changed = []
print(f"  {'':36s}fx fuse   jit.freeze   (largest error / standard deviation of the output)")
for name, (network, wrong) in cases.items():
    network.eval()
    by_fx = error(fuse(network), network)
    by_jit = error(torch.jit.freeze(torch.jit.script(network)), network)
    print(f"  {name:36s}{by_fx:7.4f}   {by_jit:10.4f}")
    if (by_fx > 0.5) != wrong or (not wrong and by_fx > 1e-4) or by_jit > 1e-4:
        changed.append(name)
if changed:
    sys.exit(f"CHANGED: {changed}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
