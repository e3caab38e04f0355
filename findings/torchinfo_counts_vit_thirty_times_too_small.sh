#!/usr/bin/env bash
# Finding (2026-11): torchinfo's "mult-adds" are right for convolutional networks and 30 to 70 times too
# small for vision transformers.
#
# Expected: total_mult_adds of a ViT is near the published cost, short of the attention products at
#   most, which are no modules (15 % here; torch's counter leaves out fused attention on a CPU too).
#   For ResNet-18 torchinfo agrees with PyTorch's own counter to the digit.
# Real: a Linear layer is counted as batch size times its number of parameters, whatever stands between
#   the batch and the last axis. Applied to (batch, 197 tokens, 192) it is counted for one token out of
#   197, and in Swin, which keeps (batch, height, width, channels), for one pixel of the map. So
#   ViT-Tiny comes out at 34 million instead of 1075, below MobileNetV3-Small, and Swin-Tiny, a network
#   of 4.5 billion, just above it. The same Linear layer as a 1x1 convolution is counted right.
# Why it matters: the number is printed under every summary and copied into model cards and tables of
#   accuracy against cost, where a transformer then looks cheaper than any mobile network. Convolution
#   and attention in one table are not comparable, and a search under a budget of mult-adds picks
#   attention for a reason that is not there.
#
# Versions: torchinfo 1.8.0, timm 1.0.31, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11.
# Date: 2026-11.
# Output that was seen:
#   torchinfo 1.8.0 timm 1.0.31 torch 2.14.1
#   resnet18                        : torchinfo  1814.08 M, torch's counter  1814.07 M, ratio   1.00
#   mobilenetv3_small_100           : torchinfo    56.52 M, torch's counter    56.51 M, ratio   1.00
#   vit_tiny_patch16_224            : torchinfo    34.47 M, torch's counter  1074.85 M, ratio  31.18
#   swin_tiny_patch4_window7_224    : torchinfo    62.80 M, torch's counter  4490.57 M, ratio  71.51
#   vit_tiny at 112                 : torchinfo    12.77 M, torch's counter   272.84 M, ratio  21.37
#   Linear(192, 576, bias=False)    : torchinfo     0.11 M, torch's counter    21.79 M, ratio 197.00
#   Conv1d(192, 576, 1, bias=False) : torchinfo    21.79 M, torch's counter    21.79 M, ratio   1.00
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 timm==1.0.31 torchinfo==1.8.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import timm
import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchinfo", "timm", "torch")))


def count(model, *shape):
    model.eval()
    x = torch.zeros(1, *shape)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(x)
        return torchinfo.summary(model, input_data=x, verbose=0).total_mult_adds / 1e6, counter.get_total_flops() / 2e6


rows = {}
for name in ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"):
    rows[name] = count(timm.create_model(name, num_classes=1000), 3, 224, 224)
rows["vit_tiny at 112"] = count(timm.create_model("vit_tiny_patch16_224", img_size=112), 3, 112, 112)
rows["Linear(192, 576, bias=False)"] = count(nn.Linear(192, 576, bias=False), 197, 192)
rows["Conv1d(192, 576, 1, bias=False)"] = count(nn.Conv1d(192, 576, 1, bias=False), 192, 197)
for name, (ours, torchs) in rows.items():
    print(f"{name:32s}: torchinfo {ours:8.2f} M, torch's counter {torchs:8.2f} M, ratio {torchs / ours:6.2f}")

ratio = {name: torchs / ours for name, (ours, torchs) in rows.items()}
ok = (
    all(abs(ratio[name] - 1) < 0.01 for name in ("resnet18", "mobilenetv3_small_100", "Conv1d(192, 576, 1, bias=False)"))
    and ratio["vit_tiny_patch16_224"] > 20
    and ratio["swin_tiny_patch4_window7_224"] > 40
    and abs(ratio["Linear(192, 576, bias=False)"] - 197) < 1
)
if not ok:
    sys.exit("CHANGED: torchinfo counts Linear layers over tokens differently now")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
