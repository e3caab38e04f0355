#!/usr/bin/env bash
# Finding (2026-11): FullGrad of the package grad-cam stretches the map of each single channel to 0..1 before it adds
# them, so what moves the logit by a thousandth shines more than half as brightly as what decides it.
#
# Expected: FullGrad adds |input x gradient| and |bias x gradient| of all layers and channels. That sum is its point: the
#   terms make up the logit, and a place is as bright as its share. The picture is scaled to 0..1 at the end, per image.
# Real: the function that resizes the terms to the image also normalizes, and it is called with batch and channels
#   folded together, so minimum and maximum are taken per channel. The size of a bias and of a gradient
#   drop out; only where inside its channel a term is large still counts. The sum over the channels then is a vote with
#   equal weights, of thousands of channels, nearly all of which have next to nothing to say about the class.
# Why it matters: maps look plausible (edges and textures everywhere light up), so the method is judged "noisy" or
#   "not class-specific" in comparisons that were made with this package. An irrelevant region is marked as
#   strongly as the cause, which is what a user of saliency maps wants to exclude. GradCAM and the other methods of the
#   package scale per image.
#
# Versions: grad-cam 1.5.7, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   grad-cam 1.5.7 torch 2.14.1
#     right channel: weight  bias    brightness right / left: FullGrad of the package   by its definition
#                    1.000   1.00                                          1.026              1.0004
#                    0.100   1.00                                          0.705              0.1000
#                    0.010   1.00                                          0.666              0.0100
#                    0.001   1.00                                          0.601              0.0010
#                    1.000   0.10                                          1.025              0.1048
#                    0.100   0.01                                          0.637              0.0015
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 grad-cam==1.5.7 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import torch
from pytorch_grad_cam import FullGrad
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("grad-cam", "torch")))
SIZE = 24
THIRD = SIZE // 3


class TwoChannels(nn.Module):
    """Channel 0 is read in the left third of the image with weight 1, channel 1 in the right third with another."""

    def __init__(self, weight, bias):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        nn.init.ones_(self.conv.weight)
        self.conv.bias.data = torch.tensor([1.0, bias])
        readout = torch.zeros(2, SIZE, SIZE)
        readout[0, :, :THIRD] = 1.0
        readout[1, :, -THIRD:] = weight
        self.register_buffer("readout", readout)

    def forward(self, x):
        logit = (self.conv(x).relu() * self.readout).mean((1, 2, 3))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def sides(saliency):
    return float(saliency[:, :THIRD].mean()), float(saliency[:, -THIRD:].mean())


def by_hand(network, x):
    """|input x gradient| + sum over the channels of |bias x gradient|, and whether the terms make up the logit."""
    x = x.clone().requires_grad_()
    maps = network.conv(x)
    logit = (maps.relu() * network.readout).mean()
    on_input, on_maps = torch.autograd.grad(logit, (x, maps))
    terms = (x * on_input)[0, 0].detach(), (network.conv.bias[:, None, None] * on_maps[0]).detach()
    assert abs(float(terms[0].sum() + terms[1].sum() - logit)) < 1e-5
    return terms[0].abs() + terms[1].abs().sum(0)


torch.manual_seed(0)
x = 0.01 * torch.rand(1, 1, SIZE, SIZE)
changed = []
print("  right channel: weight  bias    brightness right / left: FullGrad of the package   by its definition")
for weight, bias in ((1.0, 1.0), (0.1, 1.0), (0.01, 1.0), (0.001, 1.0), (1.0, 0.1), (0.1, 0.01)):
    network = TwoChannels(weight, bias).eval()
    left, right = sides(by_hand(network, x))
    truth = right / left
    with FullGrad(network, []) as method:
        left, right = sides(method(x, [ClassifierOutputTarget(0)])[0])
    seen = right / left
    print(f"               {weight:7.3f} {bias:6.2f} {seen:46.3f} {truth:19.4f}")
    if not 0.5 < seen < 1.05 or truth > 1.01 * weight * (bias + 0.01):
        changed.append(f"{weight}, {bias}: {seen}, {truth}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
