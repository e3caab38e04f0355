#!/usr/bin/env bash
# Finding (2026-11): PyTorch's int8 interpolate and adaptive_avg_pool2d mix the channels of a one-pixel map of plain format.
#
# Expected: enlarging a map of 1x1 pixels repeats each channel's one value over its own plane, in int8 as in float.
# Real: for a map of (N, C, 1, 1) with plain strides (C, 1, 1, 1), interpolate (nearest, bilinear) and
#   adaptive_avg_pool2d return each image's values in turn: every channel holds the first channels' values. Such a map
#   passes for channels_last and for plain at the same time; the result is written in the one format and labelled
#   with the other. It is so with each of the engines x86, fbgemm, onednn and qnnpack, so it is not the known fault
#   of qnnpack's ReLU6. Other sizes of map are right.
# Who meets it: an int8 map of one pixel gets plain strides from mean((2, 3), keepdim=True), from a Linear layer and a
#   reshape, and from quantize_per_tensor. Int8 convolutions give the strides (C, 1, C, C), and AdaptiveAvgPool2d(1)
#   of a convolution's map too; with these all is right.
# Why it matters: mean(keepdim=True) and AdaptiveAvgPool2d(1) are held to be the same thing, and in float they are.
#   The branch of the whole map's context, enlarged to the map's size, is garbled in one of them after the conversion;
#   histogram and range are right and nothing warns. The network loses a part of its accuracy, as if int8 cost it.
# Way out, checked below: AdaptiveAvgPool2d(1) in place of the mean.
#
# Versions: torch 2.14.1, scikit-learn 1.9.1, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#     4 channels of one pixel, 10 20 30 40, to 2x2 pixels: first channel, second channel
#       float, all three           [10, 10, 10, 10] [20, 20, 20, 20]
#       int8 adaptive_avg_pool2d   [10, 20, 30, 40] [10, 20, 30, 40]
#       int8 interpolate nearest   [10, 20, 30, 40] [10, 20, 30, 40]
#       int8 interpolate bilinear  [10, 20, 30, 40] [10, 20, 30, 40]
#     digits, right answers in per cent; interpolate enlarges the 1x1 map of averages to 4x4
#       mean(keepdim=True)     float 91  x86 85  fbgemm 85  onednn 84  qnnpack 85
#       AdaptiveAvgPool2d(1)   float 91  x86 91  fbgemm 91  onednn 91  qnnpack 91
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 scikit-learn==1.9.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import logging
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.manual_seed(0)
print("torch", torch.__version__.split("+")[0])
changed = []


def pooled_by_hand(x, size):
    """Adaptive average pooling, window by window."""
    images, channels, height, width = x.shape
    out = np.zeros((images, channels, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            top, bottom = row * height // size, -(-(row + 1) * height // size)
            left, right = column * width // size, -(-(column + 1) * width // size)
            out[:, :, row, column] = x[:, :, top:bottom, left:right].mean((2, 3))
    return torch.from_numpy(out)


engines = [name for name in ("x86", "fbgemm", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines]
print("  4 channels of one pixel, 10 20 30 40, to 2x2 pixels: first channel, second channel")
operators = {
    "float, all three": (lambda x: F.adaptive_avg_pool2d(x, 2), False),
    "int8 adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), True),
    "int8 interpolate nearest": (lambda x: F.interpolate(x, size=2), True),
    "int8 interpolate bilinear": (lambda x: F.interpolate(x, size=2, mode="bilinear"), True),
}
for name, (operator, is_int8) in operators.items():
    for engine in engines:
        torch.backends.quantized.engine = engine
        pixel = torch.tensor([10.0, 20, 30, 40]).reshape(1, 4, 1, 1)
        result = operator(torch.quantize_per_tensor(pixel, 1, 0, torch.quint8)).dequantize() if is_int8 else operator(pixel)
        channels = result.flatten(2)[0].int().tolist()
        if engine == engines[0]:
            print(f"    {name:26s} {channels[0]} {channels[1]}")
        if (channels[0] == [10] * 4) == is_int8 or sorted(result.flatten().tolist()) != sorted([10, 20, 30, 40] * 4):
            changed.append(f"{name} {engine}: {channels}")
# Controls: a channels_last map of one pixel, any other size of map, one channel, or a result of one pixel.
for engine in engines:
    torch.backends.quantized.engine = engine
    sliced = torch.arange(100.0).reshape(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    sliced = torch.quantize_per_tensor(sliced, 1, 0, torch.quint8)[:, :, :1, :1]
    if F.interpolate(sliced, size=2).dequantize().flatten(2)[0, :, 3].tolist() != [0, 25, 50, 75]:
        changed.append(f"control {engine}: channels_last")
    for shape, size in (((2, 4, 2, 2), 3), ((2, 4, 1, 2), 3), ((2, 4, 5, 5), 2), ((2, 1, 1, 1), 2), ((2, 4, 1, 1), 1), ((2, 4, 7, 7), 1)):
        x = torch.randint(0, 200, shape).float()
        found = F.adaptive_avg_pool2d(torch.quantize_per_tensor(x, 1, 0, torch.quint8), size).dequantize()
        if (found - pooled_by_hand(x.numpy(), size)).abs().max() > 1:
            changed.append(f"control {engine} {shape} to {size}")


class Network(nn.Module):
    """Joins each pixel with the average of the whole map, brought back to the size of the map."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.third = nn.Conv2d(64, 32, 3, padding=1)
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(self.second(x))
        context = self.pool(x) if self.way == "AdaptiveAvgPool2d(1)" else x.mean((2, 3), keepdim=True)
        x = torch.cat([x, F.interpolate(context, size=4)], 1)
        return self.last(self.pool(F.relu(self.third(x))).flatten(1))


digits = load_digits()
images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target)
train, test = slice(0, 1300), slice(1300, None)
print("  digits, right answers in per cent; interpolate enlarges the 1x1 map of averages to 4x4")
for way in ("mean(keepdim=True)", "AdaptiveAvgPool2d(1)"):
    torch.manual_seed(0)
    model = Network(way)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):
        for rows in torch.randperm(1300).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[train][rows]), labels[train][rows]).backward()
            optimizer.step()
    model.eval()
    right = {}
    for engine in ("float", *engines):
        tested = model
        if engine != "float":
            torch.backends.quantized.engine = engine
            prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (images[:2],))
            prepared(images[train])
            tested = convert_fx(prepared)
        with torch.no_grad():
            right[engine] = 100 * (tested(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"    {way:22s} " + "  ".join(f"{name} {value:.0f}" for name, value in right.items()))
    for engine in engines:
        lost = right["float"] - right[engine]
        if (lost > 3) != way.startswith("mean") or right["float"] < 85:
            changed.append(f"{way} {engine}: {right}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
