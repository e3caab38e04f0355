#!/usr/bin/env bash
# Finding (2026-11): timm numbers the folders 1, 2, ... 10 as 0 .. 9 and torchvision as 0, 2, 3 ... 1; capitals and small letters
# are in another order as well. A checkpoint of the one, evaluated with the loader of the other, has other labels.
#
# Expected: "one folder per class, classes sorted by name" is one convention. The two read the same folders, both call the
#   reader ImageFolder, and for the WordNet folders of ImageNet their numbers are equal.
# Real: torchvision sorts the names as text (digits, capitals, small letters). timm sorts "naturally": runs of digits as numbers,
#   everything in small letters. With equal width of the digits and one kind of letters both agree.
# Why it matters: folders named by number (CIFAR-100, Places, exports of labeling tools) or by readable names that start with a
#   capital here and there are the usual fine-tuning set. The number of classes is the same and loading is strict, so
#   nothing fails; the accuracy is near chance, or, with capitals, wrong for a part of the classes only, which looks like
#   a bad model. A confusion matrix with the names of one loader and the predictions of the other blames the wrong classes.
# Way out, checked below: give timm the class_map of the other loader, or save the names with the checkpoint and compare.
#
# Versions: timm 1.0.31, torchvision 0.29.1, torch 2.14.1, numpy 2.4.6, Python 3.11, Linux. Date: 2026-11.
# Output that was seen:
#   timm 1.0.31 torchvision 0.29.1
#   folders                           classes  with the same number in both
#     numbers 1 to 12                      12  1
#         torchvision: 1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9
#         timm:        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
#     numbers 01 to 12                     12  12
#     numbers 0 to 999                   1000  12
#     animals, some with a capital          5  1
#         torchvision: Siamese cat, Yorkshire terrier, ox, tabby, zebra
#         timm:        ox, Siamese cat, tabby, Yorkshire terrier, zebra
#     animals, small letters                5  5
#     WordNet                               3  3
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import os
import sys
import tempfile

from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

print(*(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("timm", "torchvision")))
failures = []
cases = {
    "numbers 1 to 12": ([str(number) for number in range(1, 13)], 1),
    "numbers 01 to 12": ([f"{number:02d}" for number in range(1, 13)], 12),
    "numbers 0 to 999": ([str(number) for number in range(1000)], None),
    "animals, some with a capital": (["Yorkshire terrier", "zebra", "tabby", "Siamese cat", "ox"], 1),
    "animals, small letters": (["yorkshire terrier", "zebra", "tabby", "siamese cat", "ox"], 5),
    "WordNet": (["n01440764", "n02123045", "n15075141"], 3),
}
print("folders                           classes  with the same number in both")
for name, (classes, expected) in cases.items():
    with tempfile.TemporaryDirectory() as root:
        for label in classes:
            os.mkdir(os.path.join(root, label))
            Image.new("RGB", (2, 2)).save(os.path.join(root, label, "image.png"))
        theirs = ImageFolder(root).class_to_idx
        ours = create_dataset("", root).reader.class_to_idx
        mapped = create_dataset("", root, class_map=theirs).reader.class_to_idx
    same = sum(theirs[label] == ours[label] for label in classes)
    print(f"  {name:31s} {len(classes):7d}  {same}")
    if len(classes) <= 12 and same < len(classes):
        print("      torchvision:", ", ".join(sorted(theirs, key=theirs.get)))
        print("      timm:       ", ", ".join(sorted(ours, key=ours.get)))
    if expected is None and not 1 <= same < 20 or expected is not None and same != expected:
        failures.append(f"{name}: {same} of {len(classes)} agree")
    if mapped != theirs:
        failures.append(f"{name}: class_map gives {mapped}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
