#!/usr/bin/env bash
# Finding (2026-11): cv2.imread multiplies the colors of an 8-bit TIFF by its fourth channel, also with
# IMREAD_UNCHANGED, where that channel is marked as plain (unassociated) alpha. It does so for TIFF alone.
#
# Expected: IMREAD_UNCHANGED gives the stored numbers, IMREAD_COLOR drops the fourth channel, as both do with PNG,
#   WebP, AVIF and JPEG 2000. Unassociated alpha means just that: the colors are not multiplied.
# Real: libtiff's reader of ready-made RGBA is used, which multiplies: color * alpha / 255, rounded. The fourth
#   channel itself comes back as it was. So do TIFFs of 16 bits if read with IMREAD_COLOR, but not with
#   IMREAD_UNCHANGED. TIFFs whose fourth channel is marked as unspecified are read as stored.
# Why it matters: aerial and satellite pictures (red, green, blue, near infrared) are kept as 4-channel TIFFs, and
#   tifffile.imwrite(photometric="rgb") marks the infrared as alpha by default, as Pillow does of its mode RGBA. A
#   network then trains on colors times infrared: water goes black, and the same scene as PNG, or read by Pillow or
#   tifffile, is another picture. Nothing is logged, and the type, the shape and the infrared are right.
# Ways out, checked below: read with tifffile or Pillow; or write extrasamples=["unspecified"].
#
# Versions: opencv-python-headless 5.0.0.93, tifffile 2026.3.3, pillow 12.3.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   opencv 5.0.0 tifffile 2026.3.3 pillow 12.3.0
#   largest difference of the colors, of 255     from the stored ones      from color * fourth / 255
#   file                                         UNCHANGED     COLOR       UNCHANGED     COLOR    fourth kept
#   PNG by Pillow                                      0.0       0.0           253.0     253.0    yes
#   WebP, lossless                                     0.0       0.0           253.0     253.0    yes
#   JPEG 2000, lossless                                0.0       0.0           253.0     253.0    yes
#   TIFF by Pillow                                   253.0     253.0             0.5       0.5    yes
#   TIFF by Pillow, deflate                          253.0     253.0             0.5       0.5    yes
#   TIFF by tifffile                                 253.0     253.0             0.5       0.5    yes
#   TIFF, fourth unspecified                           0.0       0.0           253.0     253.0    yes
#   TIFF of 16 bits                                    0.0     253.0           253.0       0.5    yes
#   TIFF of 16 bits, unspecified                       0.0       0.0           253.0     253.0    yes
#   TIFF of three channels                             0.0       0.0           253.0     253.0    -
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  opencv-python-headless==5.0.0.93 tifffile==2026.3.3 pillow==12.3.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import io
import sys

import cv2
import numpy as np
import PIL
import tifffile
from PIL import Image

print("opencv", cv2.__version__, "tifffile", tifffile.__version__, "pillow", PIL.__version__)
rng = np.random.default_rng(0)
rgbn = rng.integers(0, 256, (40, 56, 4)).astype(np.uint8)  # red, green, blue, near infrared
deep = rgbn.astype(np.uint16) * 257


def tiff(pixels, **keys):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", **keys)
    return file.getvalue()


def pillow(form, **keys):
    file = io.BytesIO()
    Image.fromarray(rgbn).save(file, form, **keys)
    return file.getvalue()


cases = {  # name: file, (UNCHANGED, COLOR) are multiplied
    "PNG by Pillow": (pillow("PNG"), (False, False)),
    "WebP, lossless": (pillow("WEBP", lossless=True, exact=True), (False, False)),
    "JPEG 2000, lossless": (pillow("JPEG2000"), (False, False)),
    "TIFF by Pillow": (pillow("TIFF"), (True, True)),
    "TIFF by Pillow, deflate": (pillow("TIFF", compression="tiff_adobe_deflate"), (True, True)),
    "TIFF by tifffile": (tiff(rgbn), (True, True)),
    "TIFF, fourth unspecified": (tiff(rgbn, extrasamples=["unspecified"]), (False, False)),
    "TIFF of 16 bits": (tiff(deep), (False, True)),
    "TIFF of 16 bits, unspecified": (tiff(deep, extrasamples=["unspecified"]), (False, False)),
    "TIFF of three channels": (tiff(rgbn[..., :3]), (False, False)),
}
stored = rgbn[..., :3].astype(np.float64)
product = stored * rgbn[..., 3:] / 255
failures = []
print("largest difference of the colors, of 255     from the stored ones      from color * fourth / 255")
print("file                                         UNCHANGED     COLOR       UNCHANGED     COLOR    fourth kept")
for name, (data, multiplied) in cases.items():
    raw = np.frombuffer(data, np.uint8)
    unchanged, color = (cv2.imdecode(raw, flag) for flag in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_COLOR))
    scale = 257 if unchanged.dtype == np.uint16 else 1
    # tifffile and Pillow agree on what is stored
    if name.startswith("TIFF"):
        whole = tifffile.imread(io.BytesIO(data)).astype(np.float64) / scale
        assert np.array_equal(whole, rgbn[..., : whole.shape[-1]])
    if scale == 1 and "unspecified" not in name:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)))[..., :3], stored)
    views = [unchanged[..., 2::-1] / scale, color[..., ::-1].astype(np.float64)]
    kept = unchanged.shape[-1] == 4 and np.array_equal(unchanged[..., 3] / scale, rgbn[..., 3])
    plain = [float(np.abs(v - stored).max()) for v in views]
    times = [float(np.abs(v - product).max()) for v in views]
    numbers = f"{plain[0]:9.1f} {plain[1]:9.1f} {times[0]:15.1f} {times[1]:9.1f}"
    print(f"{name:44s} {numbers}    {'yes' if kept else '-' if unchanged.shape[-1] == 3 else 'no'}")
    found = tuple(far > 100 and near <= 2 for far, near in zip(plain, times, strict=True))
    exact = all(far <= 2 for far, many in zip(plain, multiplied, strict=True) if not many)
    if found != multiplied or not exact or (unchanged.shape[-1] == 4 and not kept):
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
