#!/usr/bin/env bash
# Finding (2026-11): OpenCV turns a photo upright from its EXIF tag in JPEG, PNG and WebP, and leaves the same photo lying on
# its side in AVIF.
#
# Expected: imread and imdecode apply the orientation, unless IMREAD_IGNORE_ORIENTATION is given, for a format that can store
#   it. In AVIF it is a property of the file (rotation and mirror), and the format says that readers have to apply it.
# Real: for AVIF it is not looked at. All eight orientations come back as stored, with and without the flag.
# Why it matters: AVIF is what a folder of photos is shrunk to. Labels, boxes and embeddings were made with the JPEGs,
#   upright; after the conversion the same code reads every portrait photo on its side (width and height exchanged).
#   A classifier loses accuracy on those only, a detector's boxes miss. Pillow gets both right (exif_transpose), and
#   a browser shows the files upright.
# Way out: read AVIF with Pillow and ImageOps.exif_transpose, or turn the pixels before the conversion.
#
# Versions: opencv-python-headless 5.0.0.93 (the wheels of 4.14.0.94 read no AVIF), Pillow 13.0.0, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   opencv-python-headless 5.0.0.93 pillow 13.0.0
#     JPEG  orientation 6: OpenCV 48x80 BRYG, IGNORE_ORIENTATION 80x48 RGBY, Pillow 48x80 BRYG
#     PNG   orientation 6: OpenCV 48x80 BRYG, IGNORE_ORIENTATION 80x48 RGBY, Pillow 48x80 BRYG
#     WEBP  orientation 6: OpenCV 48x80 BRYG, IGNORE_ORIENTATION 80x48 RGBY, Pillow 48x80 BRYG
#     AVIF  orientation 6: OpenCV 80x48 RGBY, IGNORE_ORIENTATION 80x48 RGBY, Pillow 48x80 BRYG
#     upright with OpenCV, of eight orientations: JPEG 8, PNG 8, WEBP 8, AVIF 1
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import os
import sys
import tempfile

import cv2
import numpy as np
from PIL import Image, ImageOps

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("opencv-python-headless", "pillow")))
ORIENTATION = 0x0112
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif"}
# Four quarters of one color each, wider than high, so that every orientation can be told from every other.
pixels = np.zeros((48, 80, 3), np.uint8)
pixels[:24, :40], pixels[:24, 40:], pixels[24:, :40], pixels[24:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
stored = Image.fromarray(pixels)


def layout(image):
    """Size and the colors of the four quarters, top left to bottom right."""
    array = np.asarray(image)
    height, width = array.shape[:2]
    places = [(height * y // 4, width * x // 4) for y in (1, 3) for x in (1, 3)]
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 0): "Y"}
    return f"{width}x{height} " + "".join(names[tuple(int(value > 127) for value in array[place])] for place in places)


def opencv(path, flag=cv2.IMREAD_COLOR):
    read = layout(cv2.imread(path, flag)[:, :, ::-1])
    with open(path, "rb") as file:
        decoded = layout(cv2.imdecode(np.frombuffer(file.read(), np.uint8), flag)[:, :, ::-1])
    if read != decoded:
        sys.exit(f"CHANGED: imread {read}, imdecode {decoded}")
    return read


failures = []
upright_count = dict.fromkeys(FORMATS, 0)
with tempfile.TemporaryDirectory() as folder:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        reference = io.BytesIO()
        stored.save(reference, "PNG", exif=exif)
        upright = layout(ImageOps.exif_transpose(Image.open(reference)).convert("RGB"))
        for form, ending in FORMATS.items():
            path = os.path.join(folder, f"{orientation}.{ending}")
            stored.save(path, form, exif=exif, **({} if form == "PNG" else {"quality": 95}))
            with Image.open(path) as image:
                by_pillow = layout(ImageOps.exif_transpose(image).convert("RGB"))
            if by_pillow != upright:
                failures.append(f"Pillow, {form} {orientation}: {by_pillow}")
            seen = opencv(path)
            upright_count[form] += seen == upright
            if (form == "AVIF" or orientation == 1) and seen != layout(stored):
                failures.append(f"{form} {orientation}: {seen}")
            if orientation == 6:
                ignoring = opencv(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
                print(f"  {form:5s} orientation 6: OpenCV {seen}, IGNORE_ORIENTATION {ignoring}, Pillow {by_pillow}")
print("  upright with OpenCV, of eight orientations:", ", ".join(f"{form} {count}" for form, count in upright_count.items()))
if upright_count != {"JPEG": 8, "PNG": 8, "WEBP": 8, "AVIF": 1}:
    failures.append(f"upright {upright_count}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY

python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" "$work/check.py"
