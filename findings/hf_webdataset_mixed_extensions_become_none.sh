#!/usr/bin/env bash
# Finding (2026-11): Hugging Face datasets fixes the columns of a WebDataset shard from its first five
# samples; a later ".png" or ".jpeg" in a shard of ".jpg" is dropped and the image is None.
#
# Expected: a tar shard whose samples hold .jpg and, further on, .jpeg or .png pictures either gives
#   every picture (as the webdataset library does with its "jpg;png;jpeg" selection), or is refused:
#   datasets does refuse a shard when the first samples disagree about their fields.
# Real: only the first five samples are looked at. Fields that appear later are thrown away, fields
#   that are missing later become None, and the label stays. No error and no warning, in streaming
#   mode and without. Put the same odd sample among the first five and loading fails.
# Why it matters: collections scraped from several sources have rare other extensions, and so has
#   ImageNet once files are named by what they are (one of its .JPEG files is a PNG). The usual
#   "skip broken samples" collate then silently drops exactly those pictures, in validation sets too;
#   the accuracy is reported over fewer pictures than the shard holds.
#
# Versions: datasets 5.2.0, webdataset 1.0.2, Pillow 13.0.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0 webdataset 1.0.2
#   webdataset          : 8 pictures of 8, labels [0, 1, 2, 3, 4, 5, 6, 7]
#   datasets            : 5 pictures of 8, labels [0, 1, 2, 3, 4, 5, 6, 7]
#   datasets, streaming : 5 pictures of 8, labels [0, 1, 2, 3, 4, 5, 6, 7]
#   columns             : ['__key__', '__url__', 'cls', 'jpg']
#   odd sample is 3rd   : ValueError
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 webdataset==1.0.2 pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import sys
import tarfile

import datasets
import webdataset
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "webdataset", importlib.metadata.version("webdataset"))
base = sys.argv[1]


def write(name, extensions):
    path = f"{base}/{name}.tar"
    with tarfile.open(path, "w") as shard:
        for number, extension in enumerate(extensions):
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16), (number, 0, 0)).save(buffer, "PNG" if extension == "png" else "JPEG")
            for end, content in ((extension, buffer.getvalue()), ("cls", str(number).encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{end}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    return path


late = write("late", ["jpg"] * 5 + ["jpeg", "png", "jpeg"])
early = write("early", ["jpg", "jpg", "png", "jpg", "jpg", "jpg"])

rows = {}
rows["webdataset"] = list(webdataset.WebDataset(late, shardshuffle=False).decode("pil").to_tuple("jpg;png;jpeg", "cls"))
for name, streaming in (("datasets", False), ("datasets, streaming", True)):
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": late}, split="train", streaming=streaming, cache_dir=f"{base}/cache"
    )
    rows[name] = [(row["jpg"], row["cls"]) for row in loaded]
counts = {}
for name, pairs in rows.items():
    counts[name] = sum(image is not None for image, _ in pairs)
    print(f"{name:20s}: {counts[name]} pictures of {len(pairs)}, labels {[label for _, label in pairs]}")
columns = sorted(loaded.features)
print(f"{'columns':20s}: {columns}")
try:
    datasets.load_dataset("webdataset", data_files={"train": early}, split="train", streaming=True)
    refused = "accepted"
except ValueError:
    refused = "ValueError"
print(f"{'odd sample is 3rd':20s}: {refused}")

if counts["webdataset"] != 8:
    sys.exit("CHANGED: webdataset no longer gives all pictures")
if counts["datasets"] != 5 or counts["datasets, streaming"] != 5 or any(len(pairs) != 8 for pairs in rows.values()):
    sys.exit("CHANGED: datasets no longer drops the later pictures while it keeps their labels")
if columns != ["__key__", "__url__", "cls", "jpg"] or refused != "ValueError":
    sys.exit("CHANGED: the columns or the early check differ")
print("OK: behavior is as described")
PY
mkdir "$work/data"
"$work/venv/bin/python" "$work/check.py" "$work/data"
