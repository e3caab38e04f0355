#!/usr/bin/env bash
# Finding (2026-11): image.save("photo.avif", exif=exif) deletes the orientation from the exif object of the caller, so the
# second photo that is saved with it lies on its side, in whatever format.
#
# Expected: save() reads its arguments. With JPEG, PNG, WebP and TIFF the Exif object is the same after as before, and the
#   idiom save(path, exif=image.getexif()) can be used as often as one likes.
# Real: AVIF stores the orientation as a property of the file and not in the EXIF block, and to leave it out of the block the
#   plugin pops the tag from the very object that was passed. The first file is right. The second AVIF made with the
#   object, and a JPEG made with it, have no orientation at all. image.getexif() hands out one object per image, so
#   that image has lost its orientation too: exif_transpose(image) afterwards does nothing. Bytes are left alone.
# Why it matters: the usual script writes each photo in several sizes or qualities (thumbnail and full, a rate-distortion or
#   robustness sweep, AVIF and a JPEG fallback) with one exif. The first size of a portrait photo is upright, all others
#   are lying, without a message; or the AVIF is upright and the copy that the training reads is not.
# Way out, checked below: exif=exif.tobytes(), or turn the pixels with exif_transpose before anything is saved.
#
# Versions: Pillow 13.0.0 and 12.3.0, Python 3.11. Date: 2026-11.
# Output that was seen:
#   pillow 12.3.0
#     JPEG three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     PNG three times, orientation in the object afterwards        ([(40, 64), (40, 64), (40, 64)], 6)
#     WEBP three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     TIFF three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     AVIF three times, orientation in the object afterwards       ([(40, 64), (64, 40), (64, 40)], None)
#     AVIF, then JPEG                                              [(40, 64), (64, 40)]
#     JPEG, then AVIF                                              [(40, 64), (40, 64)]
#     exif_transpose of a photo before and after photo.save to AVIF ((40, 64), (64, 40))
#     AVIF in three sizes with one exif                            [(40, 64), (32, 20), (16, 10)]
#     AVIF three times, exif.tobytes()                             [(40, 64), (40, 64), (40, 64)]
#   pillow 13.0.0
#     JPEG three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     PNG three times, orientation in the object afterwards        ([(40, 64), (40, 64), (40, 64)], 6)
#     WEBP three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     TIFF three times, orientation in the object afterwards       ([(40, 64), (40, 64), (40, 64)], 6)
#     AVIF three times, orientation in the object afterwards       ([(40, 64), (64, 40), (64, 40)], None)
#     AVIF, then JPEG                                              [(40, 64), (64, 40)]
#     JPEG, then AVIF                                              [(40, 64), (40, 64)]
#     exif_transpose of a photo before and after photo.save to AVIF ((40, 64), (64, 40))
#     AVIF in three sizes with one exif                            [(40, 64), (32, 20), (16, 10)]
#     AVIF three times, exif.tobytes()                             [(40, 64), (40, 64), (40, 64)]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import io
import sys

import PIL
from PIL import Image, ImageOps

print("pillow", PIL.__version__)
ORIENTATION, MAKE = 0x0112, 0x010F
stored = Image.new("RGB", (64, 40), "red")  # a portrait photo, 40 wide and 64 high, stored lying


def new_exif():
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "maker"
    return exif


def saved_size(image, form, exif):
    """Width and height of the saved file as every viewer shows it."""
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    return ImageOps.exif_transpose(Image.open(buffer)).size


failures = []


def row(name, seen, expected):
    print(f"  {name:60s} {seen}")
    if seen != expected:
        failures.append(f"{name}: {seen}")


for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
    exif = new_exif()
    sizes = [saved_size(stored, form, exif) for _ in range(3)]
    row(f"{form} three times, orientation in the object afterwards", (sizes, exif.get(ORIENTATION)), ([(40, 64)] + [(64, 40)] * 2, None) if form == "AVIF" else ([(40, 64)] * 3, 6))
exif = new_exif()
row("AVIF, then JPEG", [saved_size(stored, form, exif) for form in ("AVIF", "JPEG")], [(40, 64), (64, 40)])
exif = new_exif()
row("JPEG, then AVIF", [saved_size(stored, form, exif) for form in ("JPEG", "AVIF")], [(40, 64), (40, 64)])

buffer = io.BytesIO()
stored.save(buffer, "JPEG", exif=new_exif())
photo = Image.open(buffer)
before = ImageOps.exif_transpose(photo).size
saved_size(photo, "AVIF", photo.getexif())
row("exif_transpose of a photo before and after photo.save to AVIF", (before, ImageOps.exif_transpose(photo).size), ((40, 64), (64, 40)))
photo = Image.open(buffer)
exif = photo.getexif()
sizes = []
for side in (64, 32, 16):
    small = photo.copy()
    small.thumbnail((side, side))
    sizes.append(saved_size(small, "AVIF", exif))
row("AVIF in three sizes with one exif", sizes, [(40, 64), (32, 20), (16, 10)])
exif = new_exif().tobytes()
row("AVIF three times, exif.tobytes()", [saved_size(stored, "AVIF", exif) for _ in range(3)], [(40, 64)] * 3)
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
PY

for version in 12.3.0 13.0.0; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check "pillow==$version"
  "$work/venv-$version/bin/python" "$work/check.py"
done
echo "OK: behavior is as described"
