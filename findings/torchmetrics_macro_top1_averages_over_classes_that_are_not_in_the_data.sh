#!/usr/bin/env bash
# Finding (2026-11): torchmetrics' default accuracy of a 1000-class network on data with 200 of the classes is 11 %
# where each class is right in 40 % of its images; its top-5 accuracy of the same outputs is right.
#
# Expected: MulticlassAccuracy(1000), whose default is "macro", is the mean of the accuracies of the classes that have
#   images, as scikit-learn's balanced_accuracy_score is. A class without images has no accuracy.
# Real: a class without images counts with accuracy 0 as soon as one image is taken for it by mistake. So the mean
#   goes over the classes in the data and those that were guessed wrongly, up to all 1000. For top_k=5 classes without
#   images are left out, so top-1 and top-5 are not means over the same classes, and with a top-1 that is
#   too small by a factor of four the pair looks like a network that knows the answer but ranks it badly.
#   MulticlassRecall does the same. "weighted" and "micro" are not affected.
# Why it matters: ImageNet-A, -R, ObjectNet and Imagenette have 10 to 200 of the 1000 classes; so has each split of
#   classes for few-shot or continual learning, each part of a validation set that is sorted by class, and each
#   batch: forward() of the metric gives the value of a batch, and the curve over the batches is far below their result.
#   The worse the network, the more absent classes it guesses, so the error grows with the shift that is measured.
# Ways out, checked below: average="weighted" or "micro"; or to mask the logits of the absent classes.
#
# Versions: torchmetrics 1.9.0, scikit-learn 1.9.1, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torchmetrics 1.9.0 scikit-learn 1.9.1 torch 2.14.1
#     by hand                  top-1  39.0%   top-5  63.4%
#     macro (default)          top-1  10.2%   top-5  63.4%
#     recall, macro            top-1  10.2%   top-5  63.4%
#     weighted                 top-1  39.0%   top-5  63.4%
#     micro                    top-1  39.0%   top-5  63.4%
#     macro, masked logits     top-1  57.4%   top-5  81.7%
#     by hand, masked logits   top-1  57.3%   top-5  81.6%
#     scikit-learn, balanced   top-1  39.0%
#     classes in the data 200, in data or predictions 765: 0.390 x 200 / 765 = 0.102
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchmetrics==1.9.0 scikit-learn==1.9.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchmetrics", "scikit-learn", "torch")))
CLASSES, PRESENT, EACH = 1000, 200, 10
torch.manual_seed(0)
labels = torch.arange(PRESENT).repeat_interleave(EACH)
logits = torch.randn(len(labels), CLASSES)
logits[torch.arange(len(labels)), labels] += 3.0


def by_hand(x, k):
    """Mean over the classes in the data; each has the same number of images, so it is the plain accuracy, too."""
    hits = (x.topk(k, dim=1).indices == labels[:, None]).any(1).float()
    return float(hits.view(PRESENT, EACH).mean(1).mean())


def metric(x, k, average="macro", kind=MulticlassAccuracy):
    return float(kind(CLASSES, top_k=k, average=average)(x, labels))


masked = logits.clone()
masked[:, PRESENT:] = -1e4
rows = {
    "by hand": (by_hand(logits, 1), by_hand(logits, 5)),
    "macro (default)": (metric(logits, 1), metric(logits, 5)),
    "recall, macro": (metric(logits, 1, kind=MulticlassRecall), metric(logits, 5, kind=MulticlassRecall)),
    "weighted": (metric(logits, 1, "weighted"), metric(logits, 5, "weighted")),
    "micro": (metric(logits, 1, "micro"), metric(logits, 5, "micro")),
    "macro, masked logits": (metric(masked, 1), metric(masked, 5)),
    "by hand, masked logits": (by_hand(masked, 1), by_hand(masked, 5)),
}
for name, (top1, top5) in rows.items():
    print(f"  {name:24s} top-1 {top1:6.1%}   top-5 {top5:6.1%}")
predicted = logits.argmax(1)
by_sklearn = float(balanced_accuracy_score(labels.numpy(), predicted.numpy()))
print(f"  {'scikit-learn, balanced':24s} top-1 {by_sklearn:6.1%}")
counted = len(set(labels.tolist()) | set(predicted.tolist()))
print(f"  classes in the data {PRESENT}, in data or predictions {counted}: {rows['by hand'][0]:.3f} x {PRESENT} / {counted} = {rows['by hand'][0] * PRESENT / counted:.3f}")

right1, right5 = rows["by hand"]
diluted = right1 * PRESENT / counted


def near(a, b):
    return abs(a - b) < 1e-4


ok = (
    counted > 2.5 * PRESENT
    and near(by_sklearn, right1)
    and all(near(rows[name][0], diluted) and near(rows[name][1], right5) for name in ("macro (default)", "recall, macro"))
    and all(near(rows[name][0], right1) and near(rows[name][1], right5) for name in ("weighted", "micro"))
    and near(rows["macro, masked logits"][0], rows["by hand, masked logits"][0])
)
if not ok:
    sys.exit(f"CHANGED: {rows}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
