#!/usr/bin/env bash
# Finding (2026-11): PReLU quantized by PyTorch multiplies the positive values, too: by the largest of its slopes.
#
# Expected: int8 PReLU passes on what is above 0 and multiplies what is below 0 by the slope, to about a step of the
#   quantization, as quantized ReLU and LeakyReLU do and as the reference model of the same library does.
# Real: the kernel computes "x times 1" for positive values with a 1 that is quantized with scale and zero point of the
#   slopes. These reach as far as the largest slope, so the 1 is cut to it: PReLU as built (0.25) turns 1.0 into 0.25, with
#   slopes of 0.01 to 0.5 into 0.5. Only when the largest slope is 1 is the result right.
# Why it matters: with one slope the layer becomes linear: the network loses its nonlinearity; with several, what is
#   above 0 shrinks in each layer. Nothing warns; the accuracy falls far and that is blamed on 8 bits. The slopes and scales in the converted module print right, and negative values are right.
# Way out, checked below: keep PReLU in float (set_object_type(nn.PReLU, None)), or LeakyReLU for one slope.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#     convolution and activation: factor of positive values, error / deviation of the float output
#     ReLU                  x86 1.00, 0.02   qnnpack 1.00, 0.01   reference 1.00, 0.02   kept in float 1.00, 0.02
#     LeakyReLU 0.25        x86 1.00, 0.04   qnnpack 1.00, 0.02   reference 1.00, 0.04   kept in float 1.00, 0.04
#     PReLU as built, 0.25  x86 0.25, 0.80   qnnpack 0.25, 0.81   reference 1.00, 0.03   kept in float 1.00, 0.03
#     PReLU 0.1             x86 0.10, 1.04   qnnpack 0.10, 1.04   reference 1.00, 0.03   kept in float 1.00, 0.03
#     PReLU 0.01 to 0.5     x86 0.50, 0.51   qnnpack 0.50, 0.51   reference 1.00, 0.03   kept in float 1.00, 0.03
#     PReLU -0.2 to 0.2     x86 0.20, 0.96   qnnpack 0.20, 0.96   reference 1.00, 0.03   kept in float 1.00, 0.03
#     PReLU 0.1 to 1.0      x86 1.00, 0.03   qnnpack 1.00, 0.02   reference 1.00, 0.03   kept in float 1.00, 0.03
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import logging
import sys
import warnings

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
print("torch", torch.__version__.split("+")[0])


def int8(model, images, engine, keep_float=False, convert=convert_fx):
    torch.backends.quantized.engine = engine
    mapping = get_default_qconfig_mapping(engine)
    if keep_float:
        mapping.set_object_type(nn.PReLU, None)
    prepared = prepare_fx(copy.deepcopy(model), mapping, (images,))
    prepared(images)
    return convert(prepared)(images).detach()


torch.manual_seed(0)
images = torch.randn(8, 3, 16, 16)
cases = {
    "ReLU": None,
    "LeakyReLU 0.25": 0.25,
    "PReLU as built, 0.25": [0.25] * 8,
    "PReLU 0.1": [0.1] * 8,
    "PReLU 0.01 to 0.5": torch.linspace(0.01, 0.5, 8).tolist(),
    "PReLU -0.2 to 0.2": torch.linspace(-0.2, 0.2, 8).tolist(),
    "PReLU 0.1 to 1.0": torch.linspace(0.1, 1.0, 8).tolist(),
}
changed = []
print("  convolution and activation: factor of positive values, error / deviation of the float output")
for name, slopes in cases.items():
    activation = nn.ReLU() if slopes is None else nn.LeakyReLU(slopes) if isinstance(slopes, float) else nn.PReLU(8)
    if isinstance(slopes, list):
        activation.weight.data = torch.tensor(slopes)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation).eval()
    before, truth = model[0](images).detach(), model(images).detach()
    ways = {"x86": ("x86",), "qnnpack": ("qnnpack",)}
    ways |= {"reference": ("x86", False, convert_to_reference_fx), "kept in float": ("x86", True)}
    line = []
    for way, arguments in ways.items():
        result = int8(model, images, *arguments)
        factor = (result / before)[before > 0.5].median().item()
        error = ((result - truth).square().mean().sqrt() / truth.std()).item()
        line.append(f"{way} {factor:4.2f}, {error:4.2f}")
        expected = max(slopes) if isinstance(slopes, list) and way in ("x86", "qnnpack") else 1.0
        if abs(factor - expected) > 0.03 or (error > 0.3) != (expected < 0.9):
            changed.append(f"{name}, {way}: {factor} {error}")
    print(f"  {name:22s}" + "   ".join(line))
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
