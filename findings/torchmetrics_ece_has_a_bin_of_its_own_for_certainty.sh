#!/usr/bin/env bash
# Finding (2026-11): the calibration error of torchmetrics puts confidences of exactly 1.0 into an extra
# bin, so ECE jumps fourfold when a confidence moves by one ten-millionth, or from float32 to bfloat16.
#
# Expected: with n bins the interval from 0 to 1 is cut in n, the last one including 1.0. With a single
#   bin the error is by definition |accuracy - mean confidence|.
# Real: a confidence of exactly 1.0 falls behind the last edge and gets bin number n + 1. Samples at
#   0.94 and samples at 1.0 are then no longer averaged, over- and underconfidence no longer cancel
#   inside the top bin, and n_bins=1 does not give its definition. 1.0 is not rare: float32 softmax
#   gives it for any lead of about 17 or more, bfloat16 for a lead of 7. Below, half of the samples
#   have confidence 0.94 and half lead by the number in the first column; only the rounding of the
#   latter's confidence changes from row to row.
# Why it matters: ECE is reported to three digits and compared between papers, precisions and exported
#   models. A bfloat16 or quantized model looks far worse calibrated than the float32 one with the
#   same predictions only because its confidences round to 1.0, and temperature scaling looks better
#   than it is because it takes them off 1.0.
#
# Versions: torchmetrics 1.9.0, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torchmetrics 1.9.0 torch 2.14.1
#   lead  dtype     confidence   exactly 1  torchmetrics 15 bins / 1 bin  definition 15 bins / 1 bin
#    6.5  float32   0.99700207           0  0.0185 / 0.0185               0.0185 / 0.0185
#   16.0  float32   0.99999976           0  0.0200 / 0.0200               0.0200 / 0.0200
#   17.5  float32   1.00000000         500  0.0800 / 0.0800               0.0200 / 0.0200
#   20.0  float32   1.00000000         500  0.0800 / 0.0800               0.0200 / 0.0200
#    8.0  float32   0.99932957           0  0.0197 / 0.0197               0.0197 / 0.0197
#    8.0  bfloat16  1.00000000         500  0.0793 / 0.0793               0.0207 / 0.0207
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import torch
from torchmetrics.classification import MulticlassCalibrationError

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchmetrics", "torch")))

LABELS = torch.zeros(1000, dtype=torch.long)
LABELS[:50] = 1  # the first half is right in 90 %, the second half always


def network(lead):
    logits = torch.zeros(1000, 3)
    logits[:500, 0] = lead
    logits[500:] = torch.tensor([0.94, 0.05, 0.01]).log() + 3
    return logits


def measured(logits, bins):
    metric = MulticlassCalibrationError(num_classes=3, n_bins=bins, norm="l1")
    metric.update(logits.softmax(1), LABELS)
    return float(metric.compute())


def defined(logits, bins):
    confidence, predicted = logits.softmax(1).double().max(1)
    right = (predicted == LABELS).double()
    number = (confidence * bins).ceil().clamp(1, bins)
    total = 0.0
    for b in range(1, bins + 1):
        inside = number == b
        if inside.any():
            total += float(inside.double().mean() * (right[inside].mean() - confidence[inside].mean()).abs())
    return total


failures = []
print("lead  dtype     confidence   exactly 1  torchmetrics 15 bins / 1 bin  definition 15 bins / 1 bin")
for lead, dtype, extra in (
    (6.5, torch.float32, False),
    (16.0, torch.float32, False),
    (17.5, torch.float32, True),
    (20.0, torch.float32, True),
    (8.0, torch.float32, False),
    (8.0, torch.bfloat16, True),
):
    logits = network(lead).to(dtype)
    top = logits.softmax(1).max(1).values
    ones = int((top == 1).sum())
    ours = [measured(logits, bins) for bins in (15, 1)]
    want = [defined(logits, bins) for bins in (15, 1)]
    print(
        f"{lead:4.1f}  {str(dtype)[6:]:8s}  {float(top[0]):.8f}   {ones:9d}  {ours[0]:.4f} / {ours[1]:.4f}"
        f"               {want[0]:.4f} / {want[1]:.4f}"
    )
    if ones != (500 if extra else 0):
        failures.append(f"lead {lead}: {ones} confidences of 1")
    if max(want) > 0.025:
        failures.append(f"lead {lead}: the definition gives {want}")
    if (min(ours) < 0.075) if extra else (max(ours) > 0.025):
        failures.append(f"lead {lead}: torchmetrics gives {ours}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
