#!/usr/bin/env bash
# Finding (2026-11): torchvision.io.decode_image(..., mode=RGB_ALPHA) takes the colors of a palette PNG without
# transparency for the four channels of the result, three by three, and gives gray PNGs of 1, 2 and 4 bits an
# alpha of 1, 3 and 15 instead of 255.
#
# Expected: a mode that adds an alpha channel adds one that is opaque, 255, where the file has none, as it does for
#   the common PNGs of 8 bits (gray, RGB), and as Pillow's convert("RGBA") and mode=RGB of the same function show.
# Real: of a palette PNG the rows are still three bytes to a pixel, read with four: the first is (R, G, B, R of the
#   second), the next (G, B of the second, R, G of the third) and so on, and the last quarter of a row is no pixel.
#   GRAY_ALPHA has the same fault. A palette with one transparent entry (a tRNS chunk) is right. Gray PNGs below
#   8 bits have the right gray, and an alpha that is the largest value of that depth, not 255: nearly invisible.
# Why it matters: RGB_ALPHA is how one reads mixed PNGs to composite them on white. Palette PNGs are what drawings,
#   logos, sketches and label masks come as, and what optimizers (pngquant) make of photos; the shape, the type and
#   the range of values are right. Composited, a black and white drawing of 1 bit becomes an all but white square.
#
# Versions: torch 2.14.1, torchvision 0.29.1, pillow 12.3.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1+cu130 torchvision 0.29.1+cu130 pillow 12.3.0
#   PNG                    pillow  mode=RGB  RGB_ALPHA: mean error of colors, alpha   composited on white
#   gray, 1 bits           True    True            0.0     254.0                     127.0
#   gray, 2 bits           True    True            0.0     252.0                     112.0
#   gray, 4 bits           True    True            0.0     240.0                     116.3
#   gray, 8 bits           True    True            0.0       0.0                       0.0
#   RGB, 8 bits            True    True            0.0       0.0                       0.0
#   palette, 2 bits        True    True           87.0     125.9                      97.8
#   palette, 2 bits, tRNS  True    True            0.0       0.0                       0.0
#   palette, 4 bits        True    True           80.6     122.9                      88.2
#   palette, 4 bits, tRNS  True    True            0.0       0.0                       0.0
#   palette, 8 bits        True    True           74.2     121.3                      91.0
#   palette, 8 bits, tRNS  True    True            0.0       0.0                       0.0
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 pillow==12.3.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import io
import struct
import sys
import zlib

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

print("torch", torch.__version__, "torchvision", torchvision.__version__, "pillow", PIL.__version__)
rng = np.random.default_rng(0)
height, width = 12, 16


def png(depth, kind, rows, *extra):  # written here byte by byte, so that the expected pixels need no library
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    packed = np.packbits(bits.reshape(len(rows), -1), axis=1)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def with_alpha(color, alpha=255):
    return np.concatenate([color, np.broadcast_to(np.uint8(alpha), (height, width, 1))], -1)


cases = {}
for depth in (1, 2, 4, 8):
    gray = rng.integers(0, 2**depth, (height, width))
    shown = np.repeat(gray[..., None] * (255 // (2**depth - 1)), 3, -1).astype(np.uint8)
    cases[f"gray, {depth} bits"] = png(depth, 0, gray), with_alpha(shown), "alpha" if depth < 8 else ""
colors = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
cases["RGB, 8 bits"] = png(8, 2, colors.reshape(height, -1)), with_alpha(colors), ""
palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)
for depth in (2, 4, 8):
    index = rng.integers(0, 2**depth, (height, width))
    plte = (b"PLTE", palette[: 2**depth].tobytes())
    cases[f"palette, {depth} bits"] = png(depth, 3, index, plte), with_alpha(palette[index]), "shift"
    clear = np.where(index == 0, 7, 255)[..., None]  # entry 0 has an alpha of 7
    data = png(depth, 3, index, plte, (b"tRNS", b"\7"))
    cases[f"palette, {depth} bits, tRNS"] = data, with_alpha(palette[index], clear), ""

failures = []
print("PNG                    pillow  mode=RGB  RGB_ALPHA: mean error of colors, alpha   composited on white")
for name, (data, want, fault) in cases.items():
    file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    plain = decode_image(file, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    got = decode_image(file, ImageReadMode.RGB_ALPHA).permute(1, 2, 0).numpy()
    known = 3 * width // 4  # the pixels that the three bytes of each pixel fill
    error = np.abs(got[:, :known].astype(float) - want[:, :known])
    composite = []
    for v in (got[:, :known], want[:, :known]):
        alpha = v[..., 3:] / 255
        composite.append(v[..., :3] * alpha + 255 * (1 - alpha))
    off = np.abs(composite[0] - composite[1]).mean()
    fine = bool((pillow == want).all()), bool((plain == want[..., :3]).all())
    color, alpha = error[..., :3].mean(), error[..., 3].mean()
    print(f"{name:22s} {fine[0]!s:7s} {fine[1]!s:9s} {color:9.1f} {alpha:9.1f} {off:25.1f}")
    if fault == "shift":  # the bytes of three channels, read as four
        seen = bool((got[:, :known].reshape(height, -1) == want[..., :3].reshape(height, -1)).all())
    elif fault == "alpha":
        depth = int(name.split()[1])
        seen = bool((got == np.where([1, 1, 1, 0], want, 2**depth - 1)).all())
    else:
        seen = bool((got == want).all())
    if not (all(fine) and seen):
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
