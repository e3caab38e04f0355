#!/usr/bin/env bash
# Finding (2026-11): torchvision resizes 16-bit images (uint16) with bicubic or Lanczos to white dots beside black and black
# dots beside white, and adjust_gamma turns their white black.
#
# Expected: values that the cubic kernel throws over the ends of the range are cut to it, as for uint8 (and documented to be
#   kept for float). White stays white at gamma 1.
# Real: resize computes in float, rounds, clips for uint8 alone, and casts: 65535 + 600 becomes 599, 0 - 600 becomes 64936.
#   So each sharp edge between dark and bright gets a line of the opposite end. adjust_gamma and
#   to_dtype(uint16, scale=True) multiply a float32 by 65535.999, which is 65536 in float32, and cast it to 0.
# Why it matters: decode_image(mode=UNCHANGED) hands out 16-bit PNGs (X-ray, microscopy, depth, satellite) as uint16, and
#   bicubic is what many vision transformers are resized with. The damage is a thin line at edges and at
#   saturated places: hardly visible in a preview, but the largest values of the image. Training and evaluation
#   read the same wrong pixels, so nothing fails. For bilinear, and for the same image in 8 bits, all is right.
# Way out, checked below: to_dtype(float32, scale=True) before the resize, clamp after it.
#
# Versions: torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, pillow 12.3.0, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1 torchvision 0.29.1
#     64x64, left half 0, right half 65535, resized: the middle six pixels of a row; largest error against the clipped float
#     BILINEAR   48  [0, 0, 5957, 59577, 65535, 65535]  error     1.0 of 65535; the same image in 8 bits 0.2 of 255
#     BILINEAR  112  [0, 0, 14043, 51491, 65535, 65535]  error     1.0 of 65535; the same image in 8 bits 0.4 of 255
#     BICUBIC    48  [0, 65204, 2314, 63220, 331, 65535]  error 65204.0 of 65535; the same image in 8 bits 0.0 of 255
#     BICUBIC   112  [65381, 60700, 10890, 54644, 4835, 154]  error 65381.0 of 65535; the same image in 8 bits 0.4 of 255
#     LANCZOS    48  [90, 64798, 2237, 63297, 737, 65444]  error 64798.0 of 65535; the same image in 8 bits 0.4 of 255
#     LANCZOS   112  [64501, 57879, 11409, 54125, 7656, 1034]  error 64501.0 of 65535; the same image in 8 bits 0.4 of 255
#     [0, 16384, 32768, 65000, 65535]: adjust_gamma(1.0) [0, 16384, 32768, 65000, 0], to float32 and back [0, 16384, 32768, 65000, 0]; 8 bits at gamma 1.0 [0, 64, 128, 254, 255]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==12.3.0

cat > "$work/check.py" <<'PY'
import sys
import tempfile

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

print("torch", torch.__version__.split("+")[0], "torchvision", torchvision.__version__.split("+")[0])
changed = []

# A black half, a white half, written and read as a 16-bit PNG.
pixels = np.zeros((64, 64), np.uint16)
pixels[:, 32:] = 65535
with tempfile.NamedTemporaryFile(suffix=".png") as file:
    Image.fromarray(pixels).save(file.name)
    image = decode_image(file.name, mode=ImageReadMode.UNCHANGED)
if image.dtype != torch.uint16 or not np.array_equal(image[0].numpy(), pixels):
    sys.exit(f"CHANGED: reads {image.dtype}")
eight = (image.to(torch.float32) / 257).to(torch.uint8)

print("  64x64, left half 0, right half 65535, resized: the middle six pixels of a row; largest error against the clipped float")
for mode in ("BILINEAR", "BICUBIC", "LANCZOS"):
    for size in (48, 112):
        arguments = dict(size=[size, size], interpolation=InterpolationMode[mode], antialias=True)
        seen = F.resize(image, **arguments).to(torch.float32)
        truth = F.resize(F.to_dtype(image, torch.float32, scale=True), **arguments).clamp(0, 1) * 65535
        error = (seen - truth).abs().max().item()
        error8 = (F.resize(eight, **arguments).to(torch.float32) - truth / 257).abs().max().item()
        row = seen[0, 0, size // 2 - 3 : size // 2 + 3].int().tolist()
        print(f"  {mode:9s}{size:4d}  {row}  error {error:7.1f} of 65535; the same image in 8 bits {error8:.1f} of 255")
        if (error > 30000) != (mode != "BILINEAR") or error8 > (12 if mode == "LANCZOS" else 6):
            changed.append(f"{mode} {size}: {error} {error8}")

ramp = torch.tensor([[[0, 16384, 32768, 65000, 65535]]], dtype=torch.uint16)
gamma = F.adjust_gamma(ramp, 1.0).flatten().tolist()
back = F.to_dtype(F.to_dtype(ramp, torch.float32, scale=True), torch.uint16, scale=True).flatten().tolist()
byte = F.adjust_gamma(torch.tensor([[[0, 64, 128, 254, 255]]], dtype=torch.uint8), 1.0).flatten().tolist()
print(f"  {ramp.flatten().tolist()}: adjust_gamma(1.0) {gamma}, to float32 and back {back}; 8 bits at gamma 1.0 {byte}")
if gamma[-1] != 0 or back[-1] != 0 or byte[-1] != 255 or abs(gamma[-2] - 65000) > 1:
    changed.append(f"white: {gamma} {back} {byte}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
