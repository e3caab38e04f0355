#!/usr/bin/env bash
# Finding (2026-11): Hugging Face datasets drops in-place edits of an image that came from a file, and
# keeps the very same edits when the bytes are embedded.
#
# Expected: in map(), image.thumbnail((64, 64)), image.paste(...) or drawing on the image changes what
#   is stored, as it does for any other value that the function returns.
# Real: the encoder looks at image.filename first. A decoded image that still carries its file name is
#   stored as that path, so the untouched file is what comes back. thumbnail() and paste() work in
#   place and keep the name; resize() and crop() return a new image without a name and are stored.
#   With embedded bytes (parquet, hub) there is no file name and the in-place edit is stored. So one
#   and the same function gives a 64-pixel data set or a full-size one, depending on how the data set
#   was loaded, without any message. Dataset.from_dict with edited Pillow images does the same.
# Why it matters: thumbnail() is the usual way to shrink a training set, paste() the usual way to blank
#   out a face, a watermark or a test region. The edit seems to work (the function saw it), then the
#   original pixels are trained on, evaluated on or published.
#
# Versions: datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0 pillow 13.0.0
#   source     edit                stored size  brightest pixel
#   file       thumbnail in place  (800, 600)   255
#   file       resize, new image   (64, 48)     232
#   file       paste black         (800, 600)   255
#   file       copy + paste black  (800, 600)   0
#   embedded   thumbnail in place  (64, 48)     242
#   embedded   resize, new image   (64, 48)     232
#   embedded   paste black         (800, 600)   0
#   embedded   copy + paste black  (800, 600)   0
#   from_dict of an edited image   (800, 600)   255
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import sys

import datasets
import numpy as np
import PIL
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pillow", PIL.__version__)

path = sys.argv[1] + "/picture.jpg"
pixels = np.full((600, 800, 3), 255, np.uint8)
pixels[::7] = 90
Image.fromarray(pixels).save(path, quality=95)


def thumbnail(row):
    row["image"].thumbnail((64, 64))
    return row


def resize(row):
    row["image"] = row["image"].resize((64, 48))
    return row


def black(row):
    row["image"].paste((0, 0, 0), (0, 0, 800, 600))
    return row


def copy_black(row):
    row["image"] = row["image"].copy()
    return black(row)


from_file = datasets.Dataset.from_dict({"image": [path]}).cast_column("image", datasets.Image())
with open(path, "rb") as handle:
    embedded = datasets.Dataset.from_dict(
        {"image": [{"bytes": handle.read(), "path": None}]}, features=datasets.Features({"image": datasets.Image()})
    )

seen = {}
print("source     edit                stored size  brightest pixel")
for source, ds in (("file", from_file), ("embedded", embedded)):
    for name, edit in (
        ("thumbnail in place", thumbnail),
        ("resize, new image", resize),
        ("paste black", black),
        ("copy + paste black", copy_black),
    ):
        image = ds.map(edit)[0]["image"]
        seen[source, name] = image.size, int(np.asarray(image).max())
        print(f"{source:10s} {name:19s} {str(image.size):12s} {seen[source, name][1]}")

edited = Image.open(path)
edited.thumbnail((64, 64))
assert edited.size == (64, 48)
image = datasets.Dataset.from_dict({"image": [edited]}, features=datasets.Features({"image": datasets.Image()}))[0]["image"]
seen["from_dict"] = image.size, int(np.asarray(image).max())
print(f"from_dict of an edited image   {str(image.size):12s} {seen['from_dict'][1]}")

wrong = []
if seen["file", "thumbnail in place"][0] != (800, 600) or seen["from_dict"][0] != (800, 600):
    wrong.append("an in-place thumbnail of a file is stored now")
if seen["file", "paste black"][1] == 0:
    wrong.append("an in-place paste on a file is stored now")
if seen["embedded", "thumbnail in place"][0] != (64, 48) or seen["embedded", "paste black"][1] != 0:
    wrong.append("in-place edits of embedded images are no longer stored")
for source in ("file", "embedded"):
    if seen[source, "resize, new image"][0] != (64, 48) or seen[source, "copy + paste black"][1] != 0:
        wrong.append(f"{source}: new images are not stored")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
print("OK: behavior is as described")
PY
mkdir "$work/data"
"$work/venv/bin/python" "$work/check.py" "$work/data"
