#!/usr/bin/env bash
# Finding (2026-11): torchmetrics gives a network that answers "no" to everything a Matthews correlation of 0.985 where one
# of 100 images is a "yes"; a network that finds the one, with a single false alarm, gets 0.704.
#
# Expected: MCC is used for unbalanced data because a constant answer has none: the numerator TP x TN - FP x FN is 0, and
#   0 is what scikit-learn returns, the average of guessing at any rate, and torchmetrics itself for three classes.
# Real: where the denominator is 0, the binary metric (and the multiclass one with two classes) puts a tiny number in place
#   of the empty row or column, and a difference of counts in place of the numerator. The tiny numbers cancel, and
#   (n0 - n1) / sqrt(n n0 n1) is left: about 1 / sqrt(n1) for n1 rare images. The answer "yes" gets the same with a minus
#   sign. One deviating answer more, and the true value near 0 is back. It is also so when the labels are constant and the
#   answers are not: 100 negative images with one false alarm have 0.985 as well.
# Why it matters: a network that has collapsed to the majority class, or has not begun to fire, is a usual state in the
#   first epochs of anomaly or defect detection. Early stopping and the choice of the best checkpoint by val_mcc keep
#   it; a threshold sweep ends at the threshold that nothing reaches. Values per batch, with one or two positives each, are
#   hit most. All values are plausible, and there is no warning.
# Way out, checked below: MulticlassMatthewsCorrCoef(num_classes=3) on binary labels, where the third class is empty.
#
# Versions: torchmetrics 1.9.0, torch 2.14.1, scikit-learn 1.9.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torchmetrics 1.9.0 torch 2.14.1 scikit-learn 1.9.1
#     answers               positives   binary  2 classes  3 classes  scikit-learn  definition
#     no to all               1 of  100   0.985      0.985      0.000         0.000       0.000
#     yes to all              1 of  100  -0.985     -0.985      0.000         0.000       0.000
#     one false alarm         1 of  100  -0.010     -0.010     -0.010        -0.010      -0.010
#     one hit, one alarm      1 of  100   0.704      0.704      0.704         0.704       0.704
#     no to all               4 of  100   0.469      0.469      0.000         0.000       0.000
#     yes to all              4 of  100  -0.469     -0.469      0.000         0.000       0.000
#     one false alarm         4 of  100  -0.021     -0.021     -0.021        -0.021      -0.021
#     one hit, one alarm      4 of  100   0.335      0.335      0.335         0.335       0.335
#     no to all              10 of 1000   0.311      0.311      0.000         0.000       0.000
#     yes to all             10 of 1000  -0.311     -0.311      0.000         0.000       0.000
#     one false alarm        10 of 1000  -0.003     -0.003     -0.003        -0.003      -0.003
#     one hit, one alarm     10 of 1000   0.220      0.220      0.220         0.220       0.220
#     no to all               2 of   32   0.639      0.639      0.000         0.000       0.000
#     yes to all              2 of   32  -0.639     -0.639      0.000         0.000       0.000
#     one false alarm         2 of   32  -0.046     -0.046     -0.046        -0.046      -0.046
#     one hit, one alarm      2 of   32   0.467      0.467      0.467         0.467       0.467
#     no to all              50 of  100   0.000      0.000      0.000         0.000       0.000
#     yes to all             50 of  100   0.000      0.000      0.000         0.000       0.000
#     one false alarm        50 of  100  -0.101     -0.101     -0.101        -0.101      -0.101
#     one hit, one alarm     50 of  100   0.000      0.000      0.000         0.000       0.000
#     no to all              99 of  100  -0.985     -0.985      0.000         0.000       0.000
#     yes to all             99 of  100   0.985      0.985      0.000         0.000       0.000
#     one false alarm        99 of  100  -1.000     -1.000     -1.000        -1.000      -1.000
#     one hit, one alarm     99 of  100  -0.704     -0.704     -0.704        -0.704      -0.704
#     no positive among 100, one false alarm: 0.985, scikit-learn 0.000
#     a weak detector, 4 of 1000: best 0.497 at threshold 0.8, which no image reaches, scikit-learn
#     0.000; the best of scikit-learn is 0.118 at 0.7, torchmetrics 0.118
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchmetrics==1.9.0 scikit-learn==1.9.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import math
import sys
import warnings

import numpy as np
import torch
from sklearn.metrics import matthews_corrcoef
from torchmetrics.classification import BinaryMatthewsCorrCoef, MulticlassMatthewsCorrCoef


def labels(positives, total):
    target = torch.zeros(total, dtype=torch.long)
    target[:positives] = 1
    return target


def definition(answers, target):
    """From the four counts; a numerator of 0 is a correlation of 0."""
    pairs = list(zip(answers.tolist(), target.tolist(), strict=True))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1)))
    top = tp * tn - fp * fn
    return top / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) if top else 0.0


def main():
    warnings.simplefilter("ignore")
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchmetrics", "torch", "scikit-learn")))
    changed = []
    print("  answers               positives   binary  2 classes  3 classes  scikit-learn  definition")
    for positives, total in ((1, 100), (4, 100), (10, 1000), (2, 32), (50, 100), (99, 100)):
        target = labels(positives, total)
        formula = (total - 2 * positives) / math.sqrt(total * positives * (total - positives))
        one_hit, both = torch.zeros_like(target), torch.zeros_like(target)
        one_hit[0] = 1  # one positive found
        both[[0, -1]] = 1  # one positive found, one false alarm
        alarm = torch.zeros_like(target)
        alarm[-1] = 1
        for name, answers, expected in (
            ("no to all", torch.zeros_like(target), formula),
            ("yes to all", torch.ones_like(target), -formula),
            ("one false alarm", alarm, None),
            ("one hit, one alarm", both, None),
        ):
            binary = BinaryMatthewsCorrCoef()(answers, target).item()
            two = MulticlassMatthewsCorrCoef(num_classes=2)(answers, target).item()
            three = MulticlassMatthewsCorrCoef(num_classes=3)(answers, target).item()
            truth, written = matthews_corrcoef(target, answers), definition(answers, target)
            print(
                f"  {name:20s} {positives:4d} of {total:4d}  {binary:6.3f}  {two:9.3f}  {three:9.3f}"
                f"  {truth:12.3f}  {written:10.3f}"
            )
            seen = written if expected is None else expected
            right = abs(three - written) < 1e-3 and abs(truth - written) < 1e-6
            if not right or abs(binary - seen) > 1e-3 or abs(two - seen) > 1e-3:
                changed.append(f"{name} {positives}/{total}: {binary} {two} {three} {truth} {written}")

    target, answers = labels(0, 100), labels(1, 100)
    binary, truth = BinaryMatthewsCorrCoef()(answers, target).item(), matthews_corrcoef(target, answers)
    print(f"  no positive among 100, one false alarm: {binary:.3f}, scikit-learn {truth:.3f}")
    if abs(binary - 98 / math.sqrt(9900)) > 1e-3 or truth != 0:
        changed.append(f"constant labels: {binary}")

    # A sweep over thresholds: a weak detector, 1000 images, 4 positives.
    generator = np.random.default_rng(0)
    scores, target = torch.from_numpy(generator.uniform(0, 0.8, 1000)), labels(4, 1000)
    scores[target == 1] = torch.tensor([0.5, 0.72, 0.76, 0.79], dtype=scores.dtype)
    thresholds = [round(0.05 * step, 2) for step in range(20)]
    ours = {t: BinaryMatthewsCorrCoef(threshold=t)(scores, target).item() for t in thresholds}
    theirs = {t: matthews_corrcoef(target, scores > t) for t in thresholds}
    best = max(ours, key=ours.get)
    real = max(theirs, key=theirs.get)
    print(f"  a weak detector, 4 of 1000: best {ours[best]:.3f} at threshold {best}, which no image reaches, scikit-learn")
    print(f"  {theirs[best]:.3f}; the best of scikit-learn is {theirs[real]:.3f} at {real}, torchmetrics {ours[real]:.3f}")
    if (scores > best).any() or ours[best] < 0.45 or real == best or abs(ours[real] - theirs[real]) > 1e-3:
        changed.append(f"sweep {best} {real} {ours} {theirs}")
    if changed:
        sys.exit("CHANGED: " + "; ".join(changed))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py"
