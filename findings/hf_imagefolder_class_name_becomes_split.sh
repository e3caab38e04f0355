#!/usr/bin/env bash
# Finding (2026-11): one class folder called "bullet_train" makes load_dataset("imagefolder") forget
# all other classes.
#
# Expected: a folder with one subfolder per class and no split folders loads as a single "train" split
#   that holds every class, as the same folder without that class does.
# Real: split names are looked for as words inside the relative path of every file. "bullet_train" has
#   the word "train", so the loader concludes that the data set has named splits: train is that one
#   class, and files that match no split word are left out without a message. The label column is
#   gone too, since only one folder is left. "test_tube" becomes the test split, "eval_kit" too, and
#   "dev" the validation split. The words match at separators only: "bullettrain" is harmless.
# Why it matters: "bullet train" is class 466 of ImageNet-1k, so the usual renaming of the WordNet
#   folders to readable names is enough. Self-supervised training on ds["train"] then runs on with one
#   class of a thousand, and a classifier stops at a missing label column, far from the cause. With a
#   "test_tube" beside it the labels are there: training and test are one class each.
# Way out, checked below: name the files, data_files={"train": "<root>/**"}.
#
# Versions: datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0
#   folders bullettrain, cat, dog, tabby: {'train': (12, ['bullettrain', 'cat', 'dog', 'tabby'])}
#   folders bullet_train, cat, dog, tabby: {'train': (3, None)}
#   folders bullet train, cat, dog, test_tube: {'train': (3, ['bullet train', 'test_tube']), 'test': (3, ['bullet train', 'test_tube'])}
#   folders cat, dev, dog: {'validation': (3, None)}
#   with data_files, folders bullet_train, cat, dog, tabby: {'train': (12, ['bullet_train', 'cat', 'dog', 'tabby'])}
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


def describe(loaded):
    return {
        split: (ds.num_rows, ds.features["label"].names if "label" in ds.features else None)
        for split, ds in loaded.items()
    }


def load(number, names, explicit=False):
    root = f"{base}/set{number}"
    for shade, name in enumerate(names):
        os.makedirs(f"{root}/{name}", exist_ok=True)
        for item in range(3):
            Image.new("RGB", (8, 8), (20 * shade, 10 * item, 0)).save(f"{root}/{name}/{item}.png")
    how = {"data_files": {"train": f"{root}/**"}} if explicit else {"data_dir": root}
    found = describe(datasets.load_dataset("imagefolder", cache_dir=f"{base}/cache{number}", **how))
    print(("with data_files, " if explicit else "") + "folders " + ", ".join(names) + ":", found)
    return found


harmless = load(0, ["bullettrain", "cat", "dog", "tabby"])
train = load(1, ["bullet_train", "cat", "dog", "tabby"])
both = load(2, ["bullet train", "cat", "dog", "test_tube"])
dev = load(3, ["cat", "dev", "dog"])
named = load(4, ["bullet_train", "cat", "dog", "tabby"], explicit=True)

ok = (
    harmless == {"train": (12, ["bullettrain", "cat", "dog", "tabby"])}
    and train == {"train": (3, None)}
    and {split: count for split, (count, _) in both.items()} == {"train": 3, "test": 3}
    and dev == {"validation": (3, None)}
    and named == {"train": (12, ["bullet_train", "cat", "dog", "tabby"])}
)
if not ok:
    sys.exit("CHANGED: class folders with a split word in their name load differently now")
print("OK: behavior is as described")
PY
mkdir "$work/data"
"$work/venv/bin/python" "$work/check.py" "$work/data"
