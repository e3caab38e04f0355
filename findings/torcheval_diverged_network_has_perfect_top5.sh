#!/usr/bin/env bash
# Finding (2026-11): in torcheval, a network whose outputs are all NaN has a top-5 accuracy of 100 %.
#
# Expected: a diverged network (all logits NaN) or a dead one (all logits equal) scores what guessing
#   scores in top-5, about 0.5 % of 1000 classes, or NaN, or an error. Code based on topk, such as
#   that of torchmetrics below, reports the guess.
# Real: for k > 1 torcheval counts how many logits are strictly greater than the logit of the right
#   class and calls the sample right when fewer than k are. Nothing is greater than NaN, and nothing is
#   greater than itself, so each sample is right. For k = 1 argmax is used and the same outputs
#   score 0.1 %, so top-1 and top-5 of one network contradict each other.
# Why it matters: "keep the checkpoint with the best top-5" picks exactly the diverged one, an alarm on
#   falling top-5 stays silent, and a sweep over learning rates is won by the rate that blew up.
#   Milder ties do it too: with logits rounded to whole numbers (coarse quantization, saturated
#   heads) random outputs over 1000 classes gain several times the true top-5.
#
# Versions: torcheval 0.0.7, torchmetrics 1.9.0, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torcheval 0.0.7 torchmetrics 1.9.0 torch 2.14.1
#   random           top-1: torcheval   0.10 %, torchmetrics   0.10 %
#   random           top-5: torcheval   0.35 %, torchmetrics   0.35 %
#   random, rounded  top-1: torcheval   0.15 %, torchmetrics   0.15 %
#   random, rounded  top-5: torcheval   1.70 %, torchmetrics   0.35 %
#   all zero         top-1: torcheval   0.10 %, torchmetrics   0.10 %
#   all zero         top-5: torcheval 100.00 %, torchmetrics   0.40 %
#   all NaN          top-1: torcheval   0.10 %, torchmetrics   0.10 %
#   all NaN          top-5: torcheval 100.00 %, torchmetrics   0.40 %
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torcheval==0.0.7 torchmetrics==1.9.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import math
import sys

import torch
from torcheval.metrics import MulticlassAccuracy as TorchevalAccuracy
from torchmetrics.classification import MulticlassAccuracy as TorchmetricsAccuracy

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torcheval", "torchmetrics", "torch")))
CLASSES, SAMPLES = 1000, 2000
generator = torch.Generator().manual_seed(0)
labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
random = torch.randn(SAMPLES, CLASSES, generator=generator)
outputs = {
    "random": random,
    "random, rounded": random.round(),
    "all zero": torch.zeros(SAMPLES, CLASSES),
    "all NaN": torch.full((SAMPLES, CLASSES), math.nan),
}


def score(metric, logits):
    for part, target in zip(logits.split(250), labels.split(250)):
        metric.update(part, target)
    return float(metric.compute())


seen = {}
for name, logits in outputs.items():
    for k in (1, 5):
        ours = score(TorchevalAccuracy(k=k), logits)
        other = score(TorchmetricsAccuracy(num_classes=CLASSES, top_k=k, average="micro"), logits)
        seen[name, k] = ours, other
        print(f"{name:16s} top-{k}: torcheval {100 * ours:6.2f} %, torchmetrics {100 * other:6.2f} %")

ok = (
    seen["all NaN", 5][0] == 1.0
    and seen["all zero", 5][0] == 1.0
    and seen["all NaN", 1][0] < 0.01
    and all(other < 0.02 for _, other in seen.values())
    and math.isclose(*seen["random", 5], abs_tol=1e-6)
    and seen["random, rounded", 5][0] > 2 * seen["random, rounded", 5][1]
)
if not ok:
    sys.exit("CHANGED: torcheval no longer counts ties and NaN as right")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
