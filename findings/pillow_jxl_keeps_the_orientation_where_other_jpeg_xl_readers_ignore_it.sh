#!/usr/bin/env bash
# Finding (2026-11): of two JPEG XL files that pillow-jxl-plugin writes from one portrait photo, the untouched one is upright in
# other readers and the one that was resized first lies on its side.
#
# Expected: save("photo.jxl") keeps the EXIF block, as this plugin does by itself, so the photo stays upright for whoever
#   reads it, whether it was resized before or not.
# Real: an untouched JPEG is repacked without loss (the default), which sets the orientation of the JPEG XL header, and any
#   reader applies that. Once the pixels are encoded (resize, convert, lossless_jpeg=False) the plugin writes the
#   tag to the EXIF block only, and JPEG XL readers have to ignore the tag there. The plugin itself shows the tag for both
#   kinds, so exif_transpose is right for both and a test with the plugin alone finds nothing.
# Why it matters: one folder holds both conventions, photo by photo, as some were small enough already. imagecodecs (zarr,
#   tifffile, scientific loaders) and viewers read the resized portrait photos lying, width and height exchanged,
#   so the network is trained with one reader and served with another one that turns part of the pictures.
# Way out, checked below: exif_transpose before saving.
#
# Versions: pillow-jxl-plugin 1.3.8, Pillow 12.3.0, imagecodecs 2026.3.6, numpy 2.4.6, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   pillow-jxl-plugin 1.3.8 pillow 12.3.0 imagecodecs 2026.3.6
#   saved                                   plugin + exif_transpose   tag of the plugin   imagecodecs
#     untouched                             high BRYG                 6                   high BRYG
#     lossless_jpeg=False                   high BRYG                 6                   wide RGBY
#     resized                               high BRYG                 6                   wide RGBY
#     resized, exif=                        high BRYG                 6                   wide RGBY
#     convert                               high BRYG                 6                   wide RGBY
#     exif_transpose                        high BRYG                 None                high BRYG
#     exif_transpose, resized               high BRYG                 None                high BRYG
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  pillow-jxl-plugin==1.3.8 pillow==12.3.0 imagecodecs==2026.3.6 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import os
import sys
import tempfile
import warnings

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401  (registers the format)
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pillow-jxl-plugin", "pillow", "imagecodecs")))
ORIENTATION = 0x0112
pixels = np.zeros((48, 96, 3), np.uint8)
pixels[:24, :48], pixels[:24, 48:], pixels[24:, :48], pixels[24:, 48:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def layout(image):
    """Shape and the colors of the four quarters, top left to bottom right."""
    array = np.asarray(image)
    height, width = array.shape[:2]
    places = [(height * y // 4, width * x // 4) for y in (1, 3) for x in (1, 3)]
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 0): "Y"}
    return ("wide " if width > height else "high ") + "".join(names[tuple(int(value > 127) for value in array[place])] for place in places)


UPRIGHT, LYING = "high BRYG", "wide RGBY"
exif = Image.Exif()
exif[ORIENTATION] = 6
failures = []
print("saved                                   plugin + exif_transpose   tag of the plugin   imagecodecs")
with tempfile.TemporaryDirectory() as folder:
    source, path = os.path.join(folder, "photo.jpg"), os.path.join(folder, "photo.jxl")
    Image.fromarray(pixels).save(source, exif=exif, quality=95, subsampling=0)
    if layout(ImageOps.exif_transpose(Image.open(source))) != UPRIGHT:
        failures.append("the JPEG is not upright")
    for name, edit, options, expected, expected_tag in (
        ("untouched", lambda image: image, {}, UPRIGHT, 6),
        ("lossless_jpeg=False", lambda image: image, {"lossless_jpeg": False}, LYING, 6),
        ("resized", lambda image: image.resize((48, 24)), {}, LYING, 6),
        ("resized, exif=", lambda image: image.resize((48, 24)), {"exif": exif.tobytes()}, LYING, 6),
        ("convert", lambda image: image.convert("RGB"), {}, LYING, 6),
        ("exif_transpose", ImageOps.exif_transpose, {}, UPRIGHT, None),
        ("exif_transpose, resized", lambda image: ImageOps.exif_transpose(image).resize((24, 48)), {}, UPRIGHT, None),
    ):
        edit(Image.open(source)).save(path, **options)
        with open(path, "rb") as file:
            content = file.read()
        opened = Image.open(io.BytesIO(content))
        tag = opened.getexif().get(ORIENTATION)
        by_plugin, by_imagecodecs = layout(ImageOps.exif_transpose(opened)), layout(imagecodecs.jpegxl_decode(content))
        print(f"  {name:37s} {by_plugin:25s} {tag!s:19s} {by_imagecodecs}")
        if (by_plugin, tag, by_imagecodecs) != (UPRIGHT, expected_tag, expected):
            failures.append(f"{name}: {by_plugin}, tag {tag}, {by_imagecodecs}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
