#!/usr/bin/env bash
# Finding (2026-11): PyTorch's FlopCounterMode counts torchvision's ViT a third too small in eval mode under no_grad,
# and nn.TransformerEncoder as 0; in train mode, or with gradients, both are right.
#
# Expected: the number of operations of a forward pass does not depend on eval or train mode. What the counter does not
#   know it should show, at least as a row in its table.
# Real: without gradients, nn.MultiheadAttention and nn.TransformerEncoderLayer in eval mode call one fused operator
#   each (the "fast path"). The counter has no formula for these and skips them without a word: all four projections
#   and the attention of torchvision's ViT, and the feed-forward part too of an encoder layer, are 0. timm's ViT, which has
#   attention of its own, has the same cost in both modes, and the two agree in train mode to the digit.
# Why it matters: eval() and no_grad() are how a network's cost is measured. torchvision's ViT then looks 1.5 times as
#   cheap as timm's, the same network; with longer sequences, where attention is what costs, nearly everything
#   is lost. Utilization (counted operations / time) of inference comes out too small, and of train mode right.
# Ways out, checked below: torch.backends.mha.set_fastpath_enabled(False), or count with gradients enabled.
#
# Versions: torch 2.14.1, torchvision 0.29.1, timm 1.0.31, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1 torchvision 0.29.1 timm 1.0.31
#     multiply-adds in millions          train   eval, gradients   eval, no_grad   the same, no fast path
#     nn.MultiheadAttention               0.82              0.82            0.00                     0.82
#     nn.TransformerEncoder               3.28              3.28            0.00                     3.28
#     torchvision vit_b_16, 64 pixels  1454.09           1454.09          972.80                  1454.09
#     timm vit_base, 64 pixels         1454.09           1454.09         1454.09                  1454.09
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "timm")))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def counted(network, shape, train=False, gradients=False, fast=True):
    network.train(train)
    torch.backends.mha.set_fastpath_enabled(fast)
    with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / 2e6


layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
# name: network, input, whether all of it is lost
cases = {
    "nn.MultiheadAttention": (Attention(), (50, 64), True),
    "nn.TransformerEncoder": (nn.TransformerEncoder(layer, 2), (50, 64), True),
    "torchvision vit_b_16, 64 pixels": (torchvision.models.vit_b_16(image_size=64), (3, 64, 64), False),
    "timm vit_base, 64 pixels": (timm.create_model("vit_base_patch16_224", img_size=64), (3, 64, 64), None),
}
changed = []
print(f"  {'multiply-adds in millions':32s}   train   eval, gradients   eval, no_grad   the same, no fast path")
for name, (network, shape, everything) in cases.items():
    train = counted(network, shape, train=True, gradients=True)
    gradients = counted(network, shape, gradients=True)
    plain = counted(network, shape)
    slow = counted(network, shape, fast=False)
    print(f"  {name:32s}{train:8.2f} {gradients:17.2f} {plain:15.2f} {slow:24.2f}")
    lost = plain == 0 if everything else plain < 0.7 * train if everything is False else plain == train
    if not lost or gradients != train or slow != train:
        changed.append(name)
if changed:
    sys.exit(f"CHANGED: {changed}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
