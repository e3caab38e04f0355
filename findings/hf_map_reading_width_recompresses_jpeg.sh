#!/usr/bin/env bash
# Finding (2026-11): in Hugging Face datasets, a map() that only LOOKS at an image rewrites it as a
# JPEG of quality 75.
#
# Expected: map(lambda e: {"width": e["image"].width}) adds a column. The image column, which the
#   function neither returns nor changes, keeps its bytes (a filter() that reads the same attribute
#   does keep them).
# Real: as soon as the function touches a decoded image, the column is encoded again when the row is
#   written. Pillow's decoded image remembers format "JPEG", so it is saved with Pillow's default
#   settings: quality 75 and 4:2:0 chroma, whatever the source had. A 95-quality 4:4:4 picture loses
#   two thirds of its bytes and up to 20 gray levels, and every further map of that kind costs more.
#   No warning is given. An explicit .convert("RGB") has the opposite effect: the format is forgotten
#   and the column becomes PNG, three times the original bytes but without loss.
# Why it matters: "add the size / a hash / an embedding / a pseudo label" is the usual first map over
#   an image data set, often followed by to_parquet() or push_to_hub(). Training and validation sets
#   that went through different numbers of maps then differ in JPEG damage, and the stored data set
#   is no longer the one that was downloaded.
# Ways out, checked below: cast_column("image", Image(decode=False)) before the map, or
#   input_columns= with columns that are not images.
#
# Versions: datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0 pillow 13.0.0 pyarrow 26.0.1
#   as loaded                        45802 bytes  JPEG  changed by max  0 mean 0.000
#   filter reads width               45802 bytes  JPEG  changed by max  0 mean 0.000
#   map returns row untouched        45802 bytes  JPEG  changed by max  0 mean 0.000
#   map reads width                  14483 bytes  JPEG  changed by max 20 mean 2.630
#   map reads width, 5 times         14465 bytes  JPEG  changed by max 32 mean 3.559
#   map reads width after convert   144977 bytes  PNG   changed by max  0 mean 0.000
#   map with input_columns=label     45802 bytes  JPEG  changed by max  0 mean 0.000
#   map with decode=False            45802 bytes  JPEG  changed by max  0 mean 0.000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import io
import sys

import datasets
import numpy as np
import PIL
import pyarrow
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pillow", PIL.__version__, "pyarrow", pyarrow.__version__)

noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
buffer = io.BytesIO()
Image.fromarray(noise).resize((320, 320), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95, subsampling=0)
data = datasets.Dataset.from_dict(
    {"image": [{"bytes": buffer.getvalue(), "path": None}], "label": [7]},
    features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
)
original = np.asarray(data[0]["image"]).astype(int)


def stored(ds):
    raw = ds.with_format("arrow")[0]["image"][0].as_py()["bytes"]
    picture = Image.open(io.BytesIO(raw))
    off = np.abs(np.asarray(picture).astype(int) - original)
    return len(raw), picture.format, int(off.max()), float(off.mean())


def width(row):
    return {"width": row["image"].width}


def width_of_rgb(row):
    row["image"] = row["image"].convert("RGB")
    row["width"] = row["image"].width
    return row


five = data
for _ in range(5):
    five = five.map(width)

results = {}
for name, ds in {
    "as loaded": data,
    "filter reads width": data.filter(lambda row: row["image"].width > 10),
    "map returns row untouched": data.map(lambda row: row),
    "map reads width": data.map(width),
    "map reads width, 5 times": five,
    "map reads width after convert": data.map(width_of_rgb),
    "map with input_columns=label": data.map(lambda label: {"twice": 2 * label}, input_columns="label"),
    "map with decode=False": data.cast_column("image", datasets.Image(decode=False)).map(
        lambda row: {"size": len(row["image"]["bytes"])}
    ),
}.items():
    size, kind, worst, mean = results[name] = stored(ds)
    print(f"{name:30s} {size:7d} bytes  {kind:4s}  changed by max {worst:2d} mean {mean:.3f}")

full = results["as loaded"][0]
problems = []
for name in ("filter reads width", "map returns row untouched", "map with input_columns=label", "map with decode=False"):
    if results[name][0] != full or results[name][2] != 0:
        problems.append(f"{name}: the bytes were expected to be kept")
if not (results["map reads width"][0] < full / 2 and results["map reads width"][2] >= 10):
    problems.append("map reads width: no loss any more")
if not results["map reads width, 5 times"][3] > results["map reads width"][3] + 0.3:
    problems.append("five maps cost no more than one")
if results["map reads width after convert"][1:3] != ("PNG", 0):
    problems.append("convert no longer leads to PNG")
if problems:
    sys.exit("CHANGED: " + "; ".join(problems))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
