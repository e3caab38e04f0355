#!/usr/bin/env bash
# Finding (2026-11): image.save("photo.heic", exif=image.getexif()) writes a portrait photo lying on its side; with the same
# EXIF as bytes, or with no exif argument at all, it is upright.
#
# Expected: save(path, exif=image.getexif()) is Pillow's idiom for keeping the EXIF block, and every format takes the object
#   as well as its bytes. HEIF keeps the orientation as a property of the file, which the plugin sets from the EXIF.
# Real: the property is looked up in the bytes of the block. An Exif object has no bytes to look in, so none is set, and the
#   block itself goes in with its tag 6. A reader has to ignore that tag in HEIF, and the plugin's own reader sets
#   it to 1 when it opens the file: neither exif_transpose nor open_heif turns the photo any more. The plugin's
#   info["original_orientation"] still says 6, as it does for a file that has been turned.
# Why it matters: the plugin is how Python reads and writes the photos of phones, most of which are portraits and stored lying.
#   A folder that is converted, shrunk or anonymized this way has every portrait photo on its side, for this reader and
#   for all others, and nothing left in the image that the reader returns tells which ones.
# Way out, checked below: leave exif away (the plugin keeps it by itself), or exif=image.getexif().tobytes().
#
# Versions: pillow-heif 1.8.1, Pillow 13.0.0 and 12.3.0, Python 3.11, x86-64. Date: 2026-11.
# Output that was seen:
#   pillow-heif 1.8.1 pillow 12.3.0
#   written with                       Image.open  exif_transpose  open_heif  tag  original_orientation
#     no exif argument                 (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.info['exif']          (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.getexif().tobytes()   (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.getexif()             (96, 64)    (96, 64)        (96, 64)   1    6
#     exif=image.getexif(), JPEG                   (64, 96)
#     exif=image.getexif(), PNG                    (64, 96)
#     exif=image.getexif(), WEBP                   (64, 96)
#     exif=image.getexif(), AVIF                   (64, 96)
#   pillow-heif 1.8.1 pillow 13.0.0
#   written with                       Image.open  exif_transpose  open_heif  tag  original_orientation
#     no exif argument                 (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.info['exif']          (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.getexif().tobytes()   (64, 96)    (64, 96)        (64, 96)   1    6
#     exif=image.getexif()             (96, 64)    (96, 64)        (96, 64)   1    6
#     exif=image.getexif(), JPEG                   (64, 96)
#     exif=image.getexif(), PNG                    (64, 96)
#     exif=image.getexif(), WEBP                   (64, 96)
#     exif=image.getexif(), AVIF                   (64, 96)
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import sys

import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pillow-heif", "pillow")))
ORIENTATION = 0x0112
UPRIGHT, LYING = (64, 96), (96, 64)  # width and height


def photo():
    """A portrait photo as a camera writes it: stored lying, orientation 6."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    Image.new("RGB", LYING, "red").save(buffer, "JPEG", exif=exif)
    return Image.open(buffer)


failures = []
if ImageOps.exif_transpose(photo()).size != UPRIGHT:
    failures.append("the JPEG is not upright")
arguments = {
    "no exif argument": lambda image: {},
    "exif=image.info['exif']": lambda image: {"exif": image.info["exif"]},
    "exif=image.getexif().tobytes()": lambda image: {"exif": image.getexif().tobytes()},
    "exif=image.getexif()": lambda image: {"exif": image.getexif()},
}
print("written with                       Image.open  exif_transpose  open_heif  tag  original_orientation")
for name, make in arguments.items():
    image = photo()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", quality=90, **make(image))
    opened = Image.open(buffer)
    sizes = [opened.size, ImageOps.exif_transpose(opened).size, pillow_heif.open_heif(io.BytesIO(buffer.getvalue())).size]
    tag, original = opened.getexif().get(ORIENTATION), opened.info.get("original_orientation")
    print(f"  {name:32s} {sizes[0]!s:11s} {sizes[1]!s:15s} {sizes[2]!s:10s} {tag}    {original}")
    expected = LYING if name == "exif=image.getexif()" else UPRIGHT
    if sizes != [expected] * 3 or (tag, original) != (1, 6):
        failures.append(f"{name}: {sizes}, tag {tag}, original {original}")
for form in ("JPEG", "PNG", "WEBP", "AVIF"):
    image = photo()
    buffer = io.BytesIO()
    image.save(buffer, form, exif=image.getexif())
    size = ImageOps.exif_transpose(Image.open(buffer)).size
    print(f"  exif=image.getexif(), {form:4s}       {'':11s} {size}")
    if size != UPRIGHT:
        failures.append(f"{form}: {size}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
PY

for version in 12.3.0 13.0.0; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "pillow==$version" pillow-heif==1.8.1
  "$work/venv-$version/bin/python" "$work/check.py"
done
echo "OK: behavior is as described"
