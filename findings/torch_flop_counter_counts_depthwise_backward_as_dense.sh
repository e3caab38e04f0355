#!/usr/bin/env bash
# Finding (2026-11): PyTorch's FlopCounterMode counts the backward pass of a grouped convolution as if half of
# it were dense: a depthwise layer of 64 channels costs 65 forward passes instead of 2.
#
# Expected: the backward pass of a convolution is two products of the size of the forward pass, one for the
#   input and one for the weight, whatever the number of groups. Dense layers are counted so.
# Real: the forward pass and the gradient of the input take the weight's own shape, (C, C / groups, k, k), and
#   are right. The gradient of the weight is counted as a convolution with batch and channels exchanged, in
#   which the groups are lost: it comes out groups times too large, so backward / forward is 1 + groups
#   instead of 2. The same depthwise layer written as 64 layers of one channel is counted right.
# Why it matters: this counter ships with PyTorch and is the usual source of model FLOPs utilization, counted
#   operations per second over the peak of the device. EfficientNet-B0's training step is counted 13 times too
#   large and ConvNeXt's nearly 3 times, and the printed utilization is too good by as much. In tables of
#   training cost, networks made cheap by depthwise layers look more expensive than dense ones. Forward counts
#   are right, so a test against a published table shows nothing.
# Way out: count the forward pass and multiply by three.
#
# Versions: torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1 torchvision 0.29.1
#   one layer, 64 channels, 3x3      backward / forward
#     groups=1                                    2.00
#     groups=2                                    3.00
#     groups=8                                    9.00
#     groups=64                                  65.00
#     the same as 64 single layers                2.00
#   whole networks, 64x64 pixels
#     resnet18                                     2.00
#     resnext50_32x4d                              3.69
#     mobilenet_v2                                18.65
#     efficientnet_b0                             38.70
#     convnext_tiny                                7.69
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision")))


def counted(step):
    with FlopCounterMode(display=False) as counter:
        result = step()
    return counter.get_total_flops(), result


def ratio(network, *shape):
    """Counted cost of the backward pass in forward passes; inputs with a gradient, so about 2 is right."""
    forward, y = counted(lambda: network(torch.randn(2, *shape, requires_grad=True)))
    backward, _ = counted(lambda: y.sum().backward())
    return backward / forward


failures = []
print("one layer, 64 channels, 3x3      backward / forward")
for groups in (1, 2, 8, 64):
    seen = ratio(nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False), 64, 16, 16)
    print(f"  groups={groups:<3d}{seen:38.2f}")
    if abs(seen - (1 + groups)) > 0.01:
        failures.append(f"groups={groups}: {seen}")


class Unrolled(nn.Module):
    """The depthwise convolution once more, as 64 convolutions of one channel each."""

    def forward(self, x):
        weight = torch.ones(1, 1, 3, 3, requires_grad=True)
        return torch.cat([nn.functional.conv2d(channel, weight) for channel in x.split(1, 1)], 1)


control = ratio(Unrolled(), 64, 16, 16)
print(f"  the same as 64 single layers{control:20.2f}")
print("whole networks, 64x64 pixels")
for name, low, high in (
    ("resnet18", 1.9, 2.1),
    ("resnext50_32x4d", 2.5, 99),
    ("mobilenet_v2", 10, 999),
    ("efficientnet_b0", 10, 999),
    ("convnext_tiny", 5, 999),
):
    seen = ratio(getattr(torchvision.models, name)(), 3, 64, 64)
    print(f"  {name:16s}{seen:33.2f}")
    if not low < seen < high:
        failures.append(f"{name}: {seen}")
if abs(control - 2) > 0.01:
    failures.append(f"control: {control}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
