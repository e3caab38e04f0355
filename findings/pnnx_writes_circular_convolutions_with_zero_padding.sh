#!/usr/bin/env bash
# Finding (2026-11): pnnx turns a convolution with padding_mode="circular" into one with zero padding for ncnn.
#
# Expected: the ncnn network computes what the PyTorch network does, or the conversion stops at the layer.
# Real: reflect and replicate become a Padding layer and a convolution. circular becomes the convolution alone, with
#   zero padding: the result is, to the last digits, that of a network with padding_mode="zeros". The conversion ends
#   well, the files load and the size of the map is right; one line of thirty says that the mode is unsupported. The
#   Python file that pnnx writes next to them, and that pnnx.export returns, keeps the mode, so comparing that with the
#   original shows no difference: it says nothing of the ncnn files.
# Why it matters: circular padding is for panoramas, polar maps and textures. Each such layer is wrong along the
#   borders, by as much as the values themselves, and each further layer carries it inwards.
# Way out: compare the output of ncnn itself with PyTorch's, as is done below.
#
# Versions: pnnx 20261020, ncnn 1.0.20261020, torch 2.14.1, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen (differences from a NumPy reference, in standard deviations of the output):
#   pnnx 20261020 ncnn 1.0.20261020 torch 2.14.1
#     mode       groups stride  torch   ncnn    ncnn from zero padding  pnnx's own Python  layers around the middle
#       zeros     1      1       0.000   0.000   0.000                   0.000              Convolution
#       zeros     4      1       0.000   0.000   0.000                   0.000              ConvolutionDepthWise
#       zeros     1      2       0.000   0.000   0.000                   0.000              Convolution
#       reflect   1      1       0.000   0.000   1.089                   0.000              Padding Convolution
#       reflect   4      1       0.000   0.000   1.144                   0.000              Padding ConvolutionDepthWise
#       reflect   1      2       0.000   0.000   0.608                   0.000              Padding Convolution
#       replicate 1      1       0.000   0.000   1.050                   0.000              Padding Convolution
#       replicate 4      1       0.000   0.000   1.089                   0.000              Padding ConvolutionDepthWise
#       replicate 1      2       0.000   0.000   0.726                   0.000              Padding Convolution
#       circular  1      1       0.000   1.145   0.000                   0.000              Convolution
#       circular  4      1       0.000   0.940   0.000                   0.000              ConvolutionDepthWise
#       circular  1      2       0.000   0.764   0.000                   0.000              Convolution
#     what is said of it: line 27 of 30, 'unsupported padding_mode circular'
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  pnnx==20261020 ncnn==1.0.20261020 torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import contextlib
import importlib.metadata
import os
import sys
import tempfile

import ncnn
import numpy as np
import pnnx
import torch
from torch import nn

torch.set_num_threads(1)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pnnx", "ncnn", "torch")))


class Network(nn.Module):
    def __init__(self, mode, groups, stride):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 8, 3, stride=stride, padding=1, padding_mode=mode, groups=groups)
        self.third = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.third(self.second(self.first(x)).relu())


def by_hand(model, image, mode):
    """The same network in NumPy; the middle layer is padded as the mode says."""
    parts = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def convolve(x, layer, stride, groups):
        weight, bias = parts[f"{layer}.weight"], parts[f"{layer}.bias"]
        kernel, rows, columns = weight.shape[2], x.shape[1], x.shape[2]
        out = np.empty((len(weight), (rows - kernel) // stride + 1, (columns - kernel) // stride + 1))
        inputs = weight.shape[1]
        for channel in range(len(weight)):
            first = channel // (len(weight) // groups) * inputs
            for row in range(out.shape[1]):
                for column in range(out.shape[2]):
                    top, left = row * stride, column * stride
                    window = x[first : first + inputs, top : top + kernel, left : left + kernel]
                    out[channel, row, column] = (window * weight[channel]).sum() + bias[channel]
        return out

    names = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    x = convolve(image[0].double().numpy(), "first", 1, 1)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode=names[mode])
    x = np.maximum(convolve(x, "second", model.second.stride[0], model.second.groups), 0)
    return convolve(x, "third", 1, 1)


@contextlib.contextmanager
def messages_to(path):
    """pnnx writes from C, so the descriptors themselves are turned."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def export_and_run(model, image):
    with messages_to("messages"):
        again = pnnx.export(model, "network.pt", image, fp16=False)
        net = ncnn.Net()
        net.opt.num_threads = 1
        net.load_param("network.ncnn.param")
        net.load_model("network.ncnn.bin")
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0].numpy()).clone())
        result = np.array(extractor.extract("out0")[1])
    with open("messages") as file:
        told = file.read()
    layers = [line.split()[0] for line in open("network.ncnn.param").read().splitlines()[2:]]
    return result, again(image)[0].detach().numpy(), layers, told


def main():
    changed = []
    print("  mode       groups stride  torch   ncnn    ncnn from zero padding  pnnx's own Python  layers around the middle")
    for mode in ("zeros", "reflect", "replicate", "circular"):
        for groups, stride in ((1, 1), (4, 1), (1, 2)):
            torch.manual_seed(0)
            model = Network(mode, groups, stride).eval()
            image = torch.randn(1, 4, 12, 14)
            truth, zeros = by_hand(model, image, mode), by_hand(model, image, "zeros")
            deviation = truth.std()
            found, python, layers, told = export_and_run(model, image)
            own = model(image)[0].detach().numpy()
            errors = [np.abs(x - y).max() / deviation for x, y in ((own, truth), (found, truth), (found, zeros), (python, truth))]
            between = " ".join(layers[layers.index("Convolution") + 1 : -1])
            print(f"    {mode:9s} {groups}      {stride}       {errors[0]:.3f}   {errors[1]:.3f}   {errors[2]:.3f}                   {errors[3]:.3f}              {between}")
            wrong = [error > 1e-3 for error in errors]
            if wrong != [False, mode == "circular", mode not in ("zeros", "circular"), False]:
                changed.append(f"{mode} {groups} {stride}: {errors}")
            if mode == "circular" and errors[1] < 0.2:
                changed.append(f"circular {groups} {stride}: only {errors[1]}")
            told = [line for line in told.splitlines() if line.strip()]
            warned = [line for line in told if "padding" in line or "unsupported" in line]
            if warned != ["unsupported padding_mode circular"] * (mode == "circular"):
                changed.append(f"{mode}: {warned}")
    print(f"  what is said of it: line {told.index(warned[0]) + 1} of {len(told)}, {warned[0]!r}")
    if changed:
        sys.exit("CHANGED: " + "; ".join(changed))
    print("OK: behavior is as described")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
        os.chdir("/")
PY
"$work/venv/bin/python" "$work/check.py"
