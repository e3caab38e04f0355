#!/usr/bin/env bash
# Finding (2026-11): with the engine qnnpack, PyTorch's int8 average pool ignores count_include_pad=False and
# divisor_override, unless ceil_mode is set.
#
# Expected: all arguments count, or an error. The other engines and float obey them.
# Real: quint8 maps go to QNNPACK's pool, which has neither argument: it divides by the whole kernel. With padding=1 and
#   count_include_pad=False the border of a 3x3 pool comes out at 6/9, its corners at 4/9 of the mean;
#   divisor_override=1 (a sum) gives the mean. With ceil_mode=True all is right.
# Why it matters: count_include_pad=False with padding is what the Inception networks pool with in each block: every block
#   darkens the border of its map in int8 on the phone, not on the machine with engine x86 where the network was
#   converted and measured. Nothing warns, and the accuracy that is missing looks like that of 8 bits.
# Way out, checked below: ceil_mode=True at stride 1, where it changes nothing else.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#     3x3 average pool of an image that is 0.9 everywhere, stride 1: corner, edge, middle
#     padding, count_include_pad=False  float 0.90 0.90 0.90   x86 0.90 0.90 0.90   fbgemm 0.90 0.90 0.90   onednn 0.90 0.90 0.90   qnnpack 0.40 0.60 0.90
#     the same with ceil_mode=True      float 0.90 0.90 0.90   x86 0.90 0.90 0.90   fbgemm 0.90 0.90 0.90   onednn 0.90 0.90 0.90   qnnpack 0.90 0.90 0.90
#     padding                           float 0.40 0.60 0.90   x86 0.40 0.60 0.90   fbgemm 0.40 0.60 0.90   onednn 0.40 0.60 0.90   qnnpack 0.40 0.60 0.90
#     no padding                        float 0.90 0.90 0.90   x86 0.90 0.90 0.90   fbgemm 0.90 0.90 0.90   onednn 0.90 0.90 0.90   qnnpack 0.90 0.90 0.90
#     divisor_override=18               float 0.45 0.45 0.45   x86 0.45 0.45 0.45   fbgemm 0.45 0.45 0.45   onednn 0.45 0.45 0.45   qnnpack 0.90 0.90 0.90
#     four pooled paths of Inception in int8: error / deviation of the float output
#       as it is        x86       0.21
#       as it is        qnnpack   2.81
#       ceil_mode=True  x86       0.21
#       ceil_mode=True  qnnpack   0.14
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

# All pixels 0.9, so every window's true mean over the pixels inside is 0.9.
ones = torch.full((1, 8, 5, 5), 0.9)
cases = {
    "padding, count_include_pad=False": (dict(padding=1, count_include_pad=False), True),
    "the same with ceil_mode=True": (dict(padding=1, count_include_pad=False, ceil_mode=True), False),
    "padding": (dict(padding=1), False),
    "no padding": (dict(), False),
    "divisor_override=18": (dict(divisor_override=18), True),
}
print("  3x3 average pool of an image that is 0.9 everywhere, stride 1: corner, edge, middle")
for name, (arguments, wrong) in cases.items():
    truth = F.avg_pool2d(ones, 3, 1, **arguments)
    rows = {"float": truth}
    for engine in ("x86", "fbgemm", "onednn", "qnnpack"):
        torch.backends.quantized.engine = engine
        quantized = torch.quantize_per_tensor(ones, 0.01, 0, torch.quint8)
        rows[engine] = F.avg_pool2d(quantized, 3, 1, **arguments).dequantize()
    middle = truth.shape[-1] // 2
    texts = []
    for engine, result in rows.items():
        seen = [result[0, 0, 0, 0].item(), result[0, 0, 0, middle].item(), result[0, 0, middle, middle].item()]
        texts.append(engine + " " + " ".join(f"{x:.2f}" for x in seen))
        if ((result - truth).abs().max() > 0.02) != (wrong and engine == "qnnpack"):
            changed.append(f"{name}, {engine}: {seen}")
    print(f"  {name:34s}" + "   ".join(texts))


class Block(nn.Module):
    """The pooled path of an Inception block, four times."""

    def __init__(self, **more):
        super().__init__()
        parts = []
        for i in range(4):
            parts += [nn.AvgPool2d(3, 1, padding=1, count_include_pad=False, **more), nn.Conv2d(3 if i == 0 else 16, 16, 1), nn.ReLU()]
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x)


print("  four pooled paths of Inception in int8: error / deviation of the float output")
images = F.interpolate(torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=(12, 12), mode="bilinear")
for name, more in (("as it is", {}), ("ceil_mode=True", {"ceil_mode": True})):
    torch.manual_seed(0)
    model = Block(**more).eval()
    truth = model(images).detach()
    for engine in ("x86", "qnnpack"):
        torch.backends.quantized.engine = engine
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (images,))
        prepared(images)
        result = convert_fx(prepared)(images).detach()
        error = ((result - truth).square().mean().sqrt() / (truth - truth.mean((0, 2, 3), keepdim=True)).std()).item()
        print(f"    {name:16s}{engine:8s}{error:6.2f}")
        if (error > 1) != (engine == "qnnpack" and not more):
            changed.append(f"{name}, {engine}: {error}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
