#!/usr/bin/env bash
# Finding (2026-11): timm's DropBlock with a rate of 10 % drops 15 % of a 7x7 map, 24 % of a 4x4 map and 93 % where the
# block is as large as the map; torchvision's drops 9 to 10 % throughout.
#
# Expected: the rate is the share of the map that is set to zero, about; that is what the formula of the paper for
#   the number of block centers is for. It divides by the places where a whole block fits into the map.
# Real: timm uses that formula for the probability of a center, but draws centers everywhere, also where the block hangs
#   over the border. On large maps it is nearly the same. On a map not much larger than the block, too few places are
#   assumed and far too many centers drawn: 49 instead of 1 for a block of 7 on 7x7, with the probability that was
#   meant for the one. What is left is scaled up to the old mean, so 7 % of the pixels carry everything.
# Why it matters: DropBlock is for the last stages, where the maps are small. timm's ResNets (drop_block_rate=0.1) put
#   blocks of 3 on the last stage: 7x7 for images of 224 pixels, 4x4 for 128 pixels. So the strength of the regularization
#   depends on the image size, progressive resizing changes it on the way, and a rate taken from a paper, or from
#   torchvision, is another one here. The default block of DropBlock2d is 7.
#
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   timm 1.0.31 torchvision 0.29.1 torch 2.14.1
#     rate 10 %            timm   predicted   torchvision
#     map 56, block 7     11.1%       11.1%          9.5%
#     map 28, block 7     13.4%       13.3%          9.5%
#     map 14, block 7     21.1%       20.9%          9.5%
#     map  7, block 7     92.6%       93.0%          9.6%
#     map 14, block 3     11.7%       11.7%          9.5%
#     map  7, block 3     14.7%       14.9%          9.3%
#     map  4, block 3     24.6%       24.5%          9.7%
#     last stage of resnet18(drop_block_rate=0.1): block, scale, rate {(3, 1.0, 0.1)}
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
from timm.layers import DropBlock2d

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("timm", "torchvision", "torch")))
RATE = 0.1


def dropped(layer, size):
    """Share of zeros in maps of ones, over many maps."""
    torch.manual_seed(0)
    return float((layer(torch.ones(4000, 1, size, size)) == 0).float().mean())


def predicted(size, block):
    """Centers anywhere in the map, with the probability that the formula gives for places where a block fits."""
    center = RATE * size**2 / block**2 / (size - block + 1) ** 2
    reach = [min(i + block // 2, size - 1) - max(i - block // 2, 0) + 1 for i in range(size)]
    return sum(1 - (1 - center) ** (a * b) for a in reach for b in reach) / size**2


changed = []
print("  rate 10 %            timm   predicted   torchvision")
for size, block in ((56, 7), (28, 7), (14, 7), (7, 7), (14, 3), (7, 3), (4, 3)):
    by_timm = dropped(DropBlock2d(RATE, block).train(), size)
    by_torchvision = dropped(torchvision.ops.DropBlock2d(RATE, block).train(), size)
    print(f"  map {size:2d}, block {block}   {by_timm:7.1%} {predicted(size, block):11.1%} {by_torchvision:13.1%}")
    if abs(by_timm - predicted(size, block)) > 0.015 or not 0.08 < by_torchvision < 0.115:
        changed.append(f"{size}, {block}")

model = timm.create_model("resnet18", drop_block_rate=RATE)
last = {(layer.block_size, layer.gamma_scale, layer.drop_prob) for name, layer in model.named_modules()
        if isinstance(layer, DropBlock2d) and name.startswith("layer4")}  # fmt: skip
print(f"  last stage of resnet18(drop_block_rate=0.1): block, scale, rate {last}")
if last != {(3, 1.0, RATE)}:
    changed.append("resnet18")
if changed:
    sys.exit(f"CHANGED: {changed}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
