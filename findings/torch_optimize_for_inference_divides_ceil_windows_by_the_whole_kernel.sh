#!/usr/bin/env bash
# Finding (2026-11): torch.jit.optimize_for_inference, torch.fx's function of that name and torch.utils.mkldnn move a
# network to oneDNN's layout, where average pooling with ceil_mode divides the windows at the border by the whole
# kernel; the latter two also make zeros of every other padding_mode of a convolution.
#
# Expected: optimize_for_inference keeps the function. What oneDNN lacks stays in the ordinary layout or is refused,
#   as divisor_override is, with an error.
# Real: AvgPool2d(2, 2, ceil_mode=True) on 9 x 9: the last row and column average two pixels, the corner one. In that
#   layout they are divided by four, thus a half and a quarter of what they should be. The same with AvgPool3d (not
#   checked below), and with padding where the last window reaches beyond it. With count_include_pad=False it is
#   right, as is each map that the windows fill, so the size of the picture decides. fx and to_mkldnn take only the
#   numbers of a convolution's padding: reflect, circular and replicate become zeros, silently. TorchScript's function
#   keeps those.
# Why it matters: count_include_pad=True is the default of AvgPool2d, ceil_mode the usual way to keep odd maps whole in
#   shortcuts. A check with 224 x 224 passes, and 225 or 299 (or a detector's pictures) is off along two borders of
#   each map; it looks like a loss at odd resolutions. Functions of this name are called once, before a benchmark.
#
# Versions: torch 2.14.1 (CPU), numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1+cu130 numpy 2.4.6
#   largest error / standard deviation        eager        jit         fx  to_mkldnn     freeze
#   zeros, pool 2, 8 x 8                     0.0000     0.0000     0.0000     0.0000     0.0000
#   zeros, pool 2, 9 x 9                     0.0000     1.1232     1.1232     1.1232     0.0000
#   same, count_include_pad=False            0.0000     0.0000     0.0000     0.0000     0.0000
#   zeros, pool 3 padding 1, 9 x 9           0.0000     0.0000     0.0000     0.0000     0.0000
#   zeros, pool 3 padding 1, 8 x 8           0.0000     0.3608     0.3608     0.3608     0.0000
#   reflect, pool 2, 8 x 8                   0.0000     0.0000     1.8716     1.8716     0.0000
#   circular, pool 2, 8 x 8                  0.0000     0.0000     1.6032     1.6032     0.0000
#   replicate, pool 2, 8 x 8                 0.0000     0.0000     1.6827     1.6827     0.0000
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

import numpy as np
import torch
import torch.fx.experimental.optimization as fx
import torch.utils.mkldnn
from torch import nn

warnings.simplefilter("ignore")
print("torch", torch.__version__, "numpy", np.__version__)


def pooled(x, kernel, padding, include):  # AvgPool2d(kernel, 2, padding, ceil_mode=True), in NumPy and float64
    size = x.shape[-1]
    count = -((kernel - size - 2 * padding) // 2) + 1
    if (count - 1) * 2 >= size + padding:  # a window that starts in the padding behind the map is left out
        count -= 1
    out = np.empty((*x.shape[:2], count, count))
    for i in range(count):
        for j in range(count):
            sides = []
            for k in (i, j):
                start = 2 * k - padding
                sides.append((max(start, 0), min(start + kernel, size), min(start + kernel, size + padding) - start))
            (top, bottom, height), (left, right, width) = sides
            area = height * width if include else (bottom - top) * (right - left)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].sum((2, 3)) / area
    return out


def convolved(x, layer):  # padded by NumPy, so that the layer's own padding plays no role
    mode = {"zeros": "constant", "reflect": "reflect", "circular": "wrap", "replicate": "edge"}[layer.padding_mode]
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode=mode)
    views = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    out = np.einsum("nchwij,ocij->nohw", views, layer.weight.detach().double().numpy())
    return out + layer.bias.detach().double().numpy()[:, None, None]


class Net(nn.Module):
    def __init__(self, mode="zeros", pool=(2, 0, True)):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode)
        self.pool = nn.AvgPool2d(pool[0], 2, pool[1], ceil_mode=True, count_include_pad=pool[2])
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)

    def forward(self, x):
        return self.last(self.pool(self.relu(self.first(x))))


def jit(net, x):
    model = torch.jit.optimize_for_inference(torch.jit.trace(net, x))
    return [model(x) for _ in range(3)][-1]


ways = {
    "eager": lambda net, x: net(x),
    "jit": jit,
    "fx": lambda net, x: fx.optimize_for_inference(net)(x),
    "to_mkldnn": lambda net, x: torch.utils.mkldnn.to_mkldnn(net)(x.to_mkldnn()).to_dense(),
    "freeze": lambda net, x: torch.jit.freeze(torch.jit.trace(net, x))(x),
}
cases = {  # name: (size, padding_mode, (kernel, padding, count_include_pad)), the ways that are wrong
    "zeros, pool 2, 8 x 8": (8, "zeros", (2, 0, True), ()),
    "zeros, pool 2, 9 x 9": (9, "zeros", (2, 0, True), ("jit", "fx", "to_mkldnn")),
    "same, count_include_pad=False": (9, "zeros", (2, 0, False), ()),
    "zeros, pool 3 padding 1, 9 x 9": (9, "zeros", (3, 1, True), ()),
    "zeros, pool 3 padding 1, 8 x 8": (8, "zeros", (3, 1, True), ("jit", "fx", "to_mkldnn")),
    "reflect, pool 2, 8 x 8": (8, "reflect", (2, 0, True), ("fx", "to_mkldnn")),
    "circular, pool 2, 8 x 8": (8, "circular", (2, 0, True), ("fx", "to_mkldnn")),
    "replicate, pool 2, 8 x 8": (8, "replicate", (2, 0, True), ("fx", "to_mkldnn")),
}
failures = []
print("largest error / standard deviation  " + "".join(f"{way:>11s}" for way in ways))
for name, (size, mode, pool, wrong) in cases.items():
    torch.manual_seed(0)
    net = Net(mode, pool).eval()
    x = torch.randn(2, 3, size, size)
    want = convolved(pooled(np.maximum(convolved(x.double().numpy(), net.first), 0), *pool), net.last)
    with torch.no_grad():
        outputs = {way: how(copy.deepcopy(net), x).numpy() for way, how in ways.items()}
    errors = {way: float(np.abs(y - want).max() / want.std()) for way, y in outputs.items()}
    print(f"{name:36s}" + "".join(f"{e:11.4f}" for e in errors.values()))
    if any((e > 0.1) != (way in wrong) or 1e-4 < e < 0.1 for way, e in errors.items()):
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
