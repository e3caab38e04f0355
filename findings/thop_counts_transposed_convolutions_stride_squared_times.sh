#!/usr/bin/env bash
# Finding (2026-11): thop counts a transposed convolution by its output: with stride 2 it comes out four times too
# expensive, with stride 16, which is usual at the end of a segmentation network, 256 times.
#
# Expected: a transposed convolution multiplies each input pixel with the kernel: input pixels x kernel x channels. It
#   is the gradient of the convolution from the large map to the small one and costs the same. thop counts
#   that convolution, and the other counters count both, so.
# Real: thop has one rule for both kinds: output pixels x kernel x input channels. For stride 1 it is the same; for a
#   stride s it is s x s times too large.
# Why it matters: thop's profile() is the source of the GFLOPs in many tables of segmentation, detection and
#   image restoration. The 16-fold upsampling layer of an FCN with 21 classes is 0.09 billion multiply-adds for an image
#   of 224 pixels and 23 billion by thop, five times a ResNet-50; in the small U-Net below the whole network is 13 % too
#   dear. "Bilinear upsampling + 3x3 convolution" is counted right and looks about twice as dear as a 2x2 transposed
#   convolution that really costs a ninth of it. Classifiers have no such layer, so a test against a published
#   table shows nothing.
#
# Versions: thop 0.1.1.post2209072238, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   thop 0.1.1-2209072238 torch 2.14.1
#     multiply-adds in millions                  thop   torch's counter   by hand   thop / torch
#     Conv2d 2x2, stride 2, 28 -> 14              1.61            1.61      1.61         1.00
#     ConvTranspose2d 2x2, stride 2, 14 -> 28     6.42            1.61      1.61         4.00
#     ConvTranspose2d 3x3, stride 1               3.61            3.61      3.61         1.00
#     ConvTranspose2d 32x32, stride 16         22658.68           88.51     88.51       256.00
#     3x3 convolution after upsampling           14.50           14.45     14.45         1.00
#     small U-Net                               448.14          397.80                   1.13
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 thop==0.1.1.post2209072238 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import torch
from thop import profile
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("thop", "torch")))


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1))


class UNet(nn.Module):
    """Two levels down, two up, with 2x2 transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([block(3, 32), block(32, 64)])
        self.middle = block(64, 128)
        self.grow = nn.ModuleList([nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)])
        self.up = nn.ModuleList([block(128, 64), block(64, 32)])

    def forward(self, x):
        kept = []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.middle(x)
        for grow, layer in zip(self.grow, self.up, strict=True):
            x = layer(torch.cat([grow(x), kept.pop()], 1))
        return x


def counts(network, *shape):
    x = torch.zeros(1, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return profile(network, (x,), verbose=False)[0], counter.get_total_flops() / 2


# name: network, input, multiply-adds by hand (or none), thop / truth
cases = {
    "Conv2d 2x2, stride 2, 28 -> 14": (nn.Conv2d(32, 64, 2, 2), (32, 28, 28), 14 * 14 * 32 * 64 * 4, 1),
    "ConvTranspose2d 2x2, stride 2, 14 -> 28": (nn.ConvTranspose2d(64, 32, 2, 2), (64, 14, 14), 14 * 14 * 32 * 64 * 4, 4),
    "ConvTranspose2d 3x3, stride 1": (nn.ConvTranspose2d(64, 32, 3, 1, 1), (64, 14, 14), 14 * 14 * 32 * 64 * 9, 1),
    "ConvTranspose2d 32x32, stride 16": (nn.ConvTranspose2d(21, 21, 32, 16, 8), (21, 14, 14), 14 * 14 * 21 * 21 * 1024, 256),
    "3x3 convolution after upsampling": (nn.Sequential(nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(64, 32, 3, padding=1)), (64, 14, 14), 28 * 28 * 32 * 64 * 9, None),
    "small U-Net": (UNet(), (3, 64, 64), None, None),
}
changed = []
print(f"  {'multiply-adds in millions':42s} thop   torch's counter   by hand   thop / torch")
for name, (network, shape, truth, factor) in cases.items():
    by_thop, by_torch = counts(network, *shape)
    hand = f"{truth / 1e6:9.2f}" if truth else " " * 9
    print(f"  {name:40s} {by_thop / 1e6:7.2f} {by_torch / 1e6:15.2f} {hand} {by_thop / by_torch:12.2f}")
    if truth and by_torch != truth or factor and by_thop != factor * by_torch:
        changed.append(name)
if changed:
    sys.exit(f"CHANGED: {changed}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
