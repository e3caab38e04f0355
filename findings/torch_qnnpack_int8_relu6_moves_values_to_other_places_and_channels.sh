#!/usr/bin/env bash
# Finding (2026-11): with the engine qnnpack, PyTorch's int8 ReLU6, Hardtanh and clamp return their values at other places.
#
# Expected: ReLU6 clips each value where it stands, whatever the memory format; the int8 network gives what the float
#   network gives, to about a step of the quantization per layer, as it does with the engines x86, fbgemm and onednn.
# Real: the kernel reads the memory in the order in which it lies and writes it to a result of the plain format. For a
#   channels_last map the values come back as if channels were columns: right numbers, wrong places. Quantized
#   convolutions return channels_last maps, so a ReLU6 after one shuffles its map. Plain maps are right.
# Why it matters: qnnpack is the engine for phones, and MobileNetV2, the network for them, has a ReLU6 after nearly every
#   convolution. Range and histogram of the activations are right and nothing warns. Measured here: one layer.
#   On the developer's machine with engine x86 the same converted network is right.
# Way out, checked below: ReLU in place of ReLU6 (what torchvision's own quantizable MobileNetV2 does).
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#     qnnpack, 4 channels of 2x3 pixels that count from 0 to 23: clamp(2, 20)
#       plain          first channel [2, 2, 2, 3, 4, 5], last [18, 19, 20, 20, 20, 20]
#       channels_last  first channel [2, 6, 12, 18, 2, 7], last [16, 20, 5, 11, 17, 20]
#     convolution and activation in int8: error / deviation of the float output
#       ReLU6  x86       0.03
#       ReLU6  fbgemm    0.03
#       ReLU6  onednn    0.02
#       ReLU6  qnnpack   1.43
#       ReLU   x86       0.02
#       ReLU   fbgemm    0.02
#       ReLU   onednn    0.01
#       ReLU   qnnpack   0.01
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
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
print("torch", torch.__version__.split("+")[0])
changed = []

torch.backends.quantized.engine = "qnnpack"
print("  qnnpack, 4 channels of 2x3 pixels that count from 0 to 23: clamp(2, 20)")
for name, layout in (("plain", torch.contiguous_format), ("channels_last", torch.channels_last)):
    counting = torch.arange(24.0).reshape(1, 4, 2, 3).contiguous(memory_format=layout)
    quantized = torch.quantize_per_tensor(counting, 0.1, 0, torch.quint8)
    result = quantized.clamp(2, 20).dequantize()
    print(f"    {name:14s} first channel {[int(x) for x in result[0, 0].flatten()]}, last {[int(x) for x in result[0, 3].flatten()]}")
    if (result.sub(counting.clamp(2, 20)).abs().max() > 0.06) != (name == "channels_last"):
        changed.append(f"clamp {name}")
    if not torch.allclose(result.flatten().sort()[0], counting.clamp(2, 20).flatten().sort()[0], atol=0.06):
        changed.append(f"clamp {name}: other values")
    for function, arguments in ((F.relu6, ()), (F.hardtanh, (2.0, 20.0))):
        far = (function(quantized, *arguments).dequantize() - function(counting, *arguments)).abs().max() > 0.06
        if far != (name == "channels_last"):
            changed.append(f"{function.__name__} {name}")


def int8(model, images, engine):
    torch.backends.quantized.engine = engine
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (images,))
    prepared(images)
    return convert_fx(prepared)(images).detach()


torch.manual_seed(0)
images = 3 * torch.randn(4, 8, 13, 15)
print("  convolution and activation in int8: error / deviation of the float output")
for name, activation in (("ReLU6", nn.ReLU6()), ("ReLU", nn.ReLU())):
    model = nn.Sequential(nn.Conv2d(8, 8, 1), activation).eval()
    truth = model(images).detach()
    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        error = ((int8(model, images, engine) - truth).square().mean().sqrt() / truth.std()).item()
        print(f"    {name:6s} {engine:8s} {error:5.2f}")
        if (error > 1) != (name == "ReLU6" and engine == "qnnpack") or 0.2 < error <= 1:
            changed.append(f"{name} {engine}: {error}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
