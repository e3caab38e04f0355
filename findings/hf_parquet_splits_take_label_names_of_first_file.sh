#!/usr/bin/env bash
# Finding (2026-11): load_dataset over several parquet files takes the class names of the first file for
# all of them, so a validation split written with other names is silently relabeled.
#
# Expected: each parquet file that datasets writes carries its features, class names included. Loading
#   a train and a validation file together either keeps each split's names, maps the numbers by name,
#   or fails: concatenate_datasets refuses to join the same two data sets, and each file alone is read
#   with its own names.
# Real: load_dataset("parquet", data_files={"train": ..., "validation": ...}), and the same on a folder
#   with train-00000-of-00001.parquet and validation-00000-of-00001.parquet, reads the features of the
#   first file only. The integers of the other files are kept and read with the first file's names.
#   No warning, streaming or not. Two shards of one split behave alike. It fails only when a number
#   lies outside the first list.
# Why it matters: class numbers come from sorted folder names. A validation folder without one class
#   (or with another spelling that sorts elsewhere) numbers all later classes one lower. Written to
#   parquet each file is right; loaded together, all later classes of the validation split are wrong
#   by one, and the accuracy falls for a reason that no name in the printed features shows.
# Way out, checked below: read the files one by one, compare the names, or align_labels_with_mapping.
#
# Versions: datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0
#   train folder: ['cat', 'dog', 'owl', 'yak'], numbers [0, 1, 2, 3]
#   validation folder: ['dog', 'owl', 'yak'], numbers [0, 1, 2]
#   validation, alone     : ['dog->dog', 'owl->owl', 'yak->yak']
#   validation, data_files: ['dog->cat', 'owl->dog', 'yak->owl']
#   validation, streaming : ['dog->cat', 'owl->dog', 'yak->owl']
#   validation, folder    : ['dog->cat', 'owl->dog', 'yak->owl']
#   validation, two shards: ['dog->cat', 'owl->dog', 'yak->owl']
#   validation, aligned   : ['dog->dog', 'owl->owl', 'yak->yak']
#   concatenate_datasets  : ValueError
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import os
import sys

import datasets
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__)
base = sys.argv[1]
cache = f"{base}/cache"


def named(split):
    names = split.features["label"]
    return [f"{row['folder']}->{names.int2str(row['label'])}" for row in split]


files = {}
os.makedirs(f"{base}/both/data")
for split, classes in (("train", ["cat", "dog", "owl", "yak"]), ("validation", ["dog", "owl", "yak"])):
    for name in classes:
        os.makedirs(f"{base}/{split}/pictures/{name}")
        Image.new("RGB", (8, 8)).save(f"{base}/{split}/pictures/{name}/1.png")
    folder = datasets.load_dataset("imagefolder", data_files=f"{base}/{split}/pictures/**", split="train", cache_dir=cache)
    folder = folder.add_column("folder", [folder.features["label"].int2str(number) for number in folder["label"]])
    files[split] = f"{base}/both/data/{split}-00000-of-00001.parquet"
    folder.to_parquet(files[split])
    print(f"{split} folder: {folder.features['label'].names}, numbers {list(folder['label'])}")

found = {}
alone = datasets.Dataset.from_parquet(files["validation"], cache_dir=cache)
found["alone"] = named(alone)
found["data_files"] = named(datasets.load_dataset("parquet", data_files=files, cache_dir=cache)["validation"])
found["streaming"] = named(datasets.load_dataset("parquet", data_files=files, streaming=True)["validation"])
found["folder"] = named(datasets.load_dataset(f"{base}/both", cache_dir=cache)["validation"])
found["two shards"] = named(datasets.load_dataset("parquet", data_files=list(files.values()), split="train", cache_dir=cache))[4:]
train = datasets.Dataset.from_parquet(files["train"], cache_dir=cache)
found["aligned"] = named(alone.align_labels_with_mapping({n: i for i, n in enumerate(train.features["label"].names)}, "label"))
for how, pairs in found.items():
    print(f"validation, {how:10s}: {pairs}")
try:
    datasets.concatenate_datasets([train, alone])
    joined = "accepted"
except ValueError:
    joined = "ValueError"
print(f"concatenate_datasets  : {joined}")

right = ["dog->dog", "owl->owl", "yak->yak"]
wrong = ["dog->cat", "owl->dog", "yak->owl"]
if found["alone"] != right or found["aligned"] != right or joined != "ValueError":
    sys.exit("CHANGED: one file alone, aligned labels or concatenate_datasets behave differently")
if any(found[how] != wrong for how in ("data_files", "streaming", "folder", "two shards")):
    sys.exit("CHANGED: files loaded together no longer take the names of the first one")
print("OK: behavior is as described")
PY
mkdir "$work/data"
"$work/venv/bin/python" "$work/check.py" "$work/data"
