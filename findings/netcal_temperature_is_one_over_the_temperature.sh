#!/usr/bin/env bash
# Finding (2026-11): the attribute temperature of netcal's TemperatureScaling is not T but 1 / T.
#
# Expected: the class describes its map as softmax(s / T), with the temperature T, as the literature does. So
#   TemperatureScaling().fit(p, labels).temperature is the T to divide the logits by.
# Real: fit and transform are right, but the number that the attribute holds is the weight they multiply with. Dividing
#   the logits by it, in an exported network for instance, makes an overconfident network still more
#   confident: they end up off by the square of T.
# Why it matters: nothing else tells. Top-1 and the ranking do not change, the number looks like a temperature (0.3 for
#   an underconfident network is nothing odd), and the calibration that was reported with transform() is
#   not the one that is deployed. Check the sign of the change: T > 1 for an overconfident network.
# Way out: divide by 1 / temperature, and measure the calibration error of the deployed outputs.
#
# Checked against the minimum of the negative log-likelihood over T that SciPy finds, and the expected calibration error
# (15 bins) in a loop. The second half of the images is not used for fitting.
#
# Versions: netcal 1.4.0, numpy 2.4.6, scipy 1.17.1, torch 2.14.1, Python 3.11. Date: 2026-11.
# Output that was seen:
#   netcal 1.4.0 numpy 2.4.6 scipy 1.17.1 torch 2.14.1
#   network         T of SciPy  .temperature  error: before  transform()  logits / .temperature  logits * .temperature
#   overconfident        3.041         0.329          14.9%         2.8%                  18.4%                   2.8%
#   underconfident       0.304         3.289          38.1%         2.8%                  62.6%                   2.8%
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  netcal==1.4.0 numpy==2.4.6 scipy==1.17.1 torch==2.14.1

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import numpy as np
from scipy.optimize import minimize_scalar

warnings.simplefilter("ignore")
from netcal.scaling import TemperatureScaling  # noqa: E402

CLASSES, IMAGES = 10, 4000


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def likelihood(logits, labels):
    return -np.log(np.maximum(softmax(logits)[np.arange(len(labels)), labels], 1e-300)).mean()


def calibration_error(probabilities, labels):
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return error


print(*(f"{name} {importlib.metadata.version(name)}" for name in ("netcal", "numpy", "scipy", "torch")))
head = "network         T of SciPy  .temperature  error: before  transform()"
print(head + "  logits / .temperature  logits * .temperature")
failures = []
for name, factor in (("overconfident", 8.0), ("underconfident", 0.8)):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES)
    logits = rng.normal(size=(IMAGES, CLASSES))
    logits[np.arange(IMAGES), labels] += 2.5
    logits *= factor
    fit, test = slice(0, IMAGES // 2), slice(IMAGES // 2, IMAGES)
    best = minimize_scalar(lambda t: likelihood(logits[fit] / t, labels[fit]), bounds=(0.05, 20), method="bounded").x
    scaling = TemperatureScaling()
    scaling.fit(softmax(logits[fit]), labels[fit])
    held = float(np.squeeze(scaling.temperature))
    before, moved, divided, multiplied = (
        calibration_error(p, labels[test])
        for p in (
            softmax(logits[test]),
            scaling.transform(softmax(logits[test])),
            softmax(logits[test] / held),
            softmax(logits[test] * held),
        )
    )
    print(f"{name:14s}  {best:10.3f}  {held:12.3f}  {before:13.1%}  {moved:11.1%}  {divided:21.1%}  {multiplied:21.1%}")
    if abs(held * best - 1) > 0.02:
        failures.append(f"{name}: temperature {held}, T {best}")
    if not max(moved, multiplied) < before / 2 or not divided > before * 1.1:
        failures.append(f"{name}: errors {before} {moved} {divided} {multiplied}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
