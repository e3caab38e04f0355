#!/usr/bin/env bash
# Finding (2026-11): cv2.imread(path, IMREAD_COLOR_RGB) gives BGR when the file is an AVIF with an alpha channel,
# and plain cv2.imread gives RGB when the file is a PAM. Red and blue are exchanged, without a word.
#
# Expected: IMREAD_COLOR_RGB exists so that nobody has to write the conversion from BGR; it decodes to red, green,
#   blue whatever the format is. Likewise IMREAD_COLOR is always blue, green, red.
# Real: the flag works for JPEG, PNG, WebP, GIF, TIFF, BMP, JPEG 2000 and AVIF without alpha, and is not seen by the
#   branch of the AVIF decoder for pictures that store an alpha channel, single or animated, also through
#   imdecodemulti. The same picture without alpha is right. PAM is the opposite: it is RGB with every flag, also
#   with IMREAD_COLOR and IMREAD_UNCHANGED.
# Why it matters: a folder of pictures from the web holds some AVIFs, a few of them with alpha. Those alone train
#   (or are classified) with red and blue exchanged; shapes are fine, nothing is logged, and a look at the first
#   pictures shows nothing. The classic way, cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), is right for AVIF,
#   so replacing it by the flag is what brings the fault in.
#
# Versions: opencv-python-headless 5.0.0.93 and 4.14.0.94, pillow 12.3.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   opencv 5.0.0 pillow 12.3.0 numpy 2.4.6                  (4.14.0: the same)
#   file                    truth  COLOR_RGB  multi RGB  COLOR_BGR  convert(BGR)
#   JPEG                    RGB    RGB        RGB        BGR        RGB
#   PNG with alpha          RGB    RGB        RGB        BGR        RGB
#   WebP with alpha         RGB    RGB        RGB        BGR        RGB
#   AVIF                    RGB    RGB        RGB        BGR        RGB
#   AVIF with alpha         RGB    BGR        BGR        BGR        RGB
#   AVIF animated, alpha    RGB    BGR        BGR        BGR        RGB
#   PAM                     RGB    RGB        RGB        RGB        BGR
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cat > "$work/check.py" <<'PY'
import io
import sys

import cv2
import numpy as np
import PIL
from PIL import Image

print("opencv", cv2.__version__, "pillow", PIL.__version__, "numpy", np.__version__)
orange = (230, 100, 20)
height, width = 48, 64
rgb = Image.new("RGB", (width, height), orange)
half = Image.new("RGBA", (width, height), (*orange, 128))


def saved(picture, form, **keys):
    file = io.BytesIO()
    picture.save(file, form, **keys)
    return file.getvalue()


def pam(picture):
    head = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
    return head.encode() + picture.tobytes()


files = {
    "JPEG": saved(rgb, "JPEG"),
    "PNG with alpha": saved(half, "PNG"),
    "WebP with alpha": saved(half, "WEBP"),
    "AVIF": saved(rgb, "AVIF"),
    "AVIF with alpha": saved(half, "AVIF"),
    "AVIF animated, alpha": saved(half, "AVIF", save_all=True, append_images=[half]),
    "PAM": pam(rgb),
}


def order(pixels):  # which of the two orders the picture is in: every pixel must agree
    pixels = pixels[..., :3].astype(int)
    near = [name for name, want in (("RGB", orange), ("BGR", orange[::-1])) if (abs(pixels - want) < 12).all()]
    return near[0] if near else "neither"


def independent(data):  # Pillow's decoder, as the referee of what the file shows
    if data.startswith(b"P7"):  # the body of a PAM file is its pixels, in the order that TUPLTYPE names
        body = np.frombuffer(data.split(b"ENDHDR\n", 1)[1], np.uint8)
        return order(body.reshape(height, width, 3))
    return order(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


failures = []
print("file                    truth  COLOR_RGB  multi RGB  COLOR_BGR  convert(BGR)")
for name, data in files.items():
    raw = np.frombuffer(data, np.uint8)
    bgr = cv2.imdecode(raw, cv2.IMREAD_COLOR_BGR)
    seen = [
        order(cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB)),
        order(cv2.imdecodemulti(raw, cv2.IMREAD_COLOR_RGB)[1][0]),
        order(bgr),
        order(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)),
    ]
    print(f"{name:22s}  {independent(data):5s}  {seen[0]:9s}  {seen[1]:9s}  {seen[2]:9s}  {seen[3]}")
    want = ["RGB", "RGB", "BGR", "RGB"]
    if name.startswith("AVIF") and "alpha" in name:
        want[:2] = ["BGR", "BGR"]
    if name == "PAM":
        want[2:] = ["RGB", "BGR"]
    if seen != want or independent(data) != "RGB":
        failures.append(name)
if failures:
    sys.exit("CHANGED: " + ", ".join(failures))
PY
for version in 4.14.0.94 5.0.0.93; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "opencv-python-headless==$version" pillow==12.3.0 numpy==2.4.6
  "$work/venv-$version/bin/python" "$work/check.py"
done
echo "OK: behavior is as described"
