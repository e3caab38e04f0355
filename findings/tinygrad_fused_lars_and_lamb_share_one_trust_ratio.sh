#!/usr/bin/env bash
# Finding (2026-11): tinygrad's LARS and LAMB with fused=True (or FUSE_OPTIM=1) are no longer layer-wise.
#
# Expected: fused is a matter of speed, as in PyTorch's optimizers: the same updates in fewer kernels.
# Real: fusing joins all parameters to one long vector before the update, and LARS and LAMB take the norms of weights
#   and updates from what they are given. So the whole network gets one trust ratio in place of one per layer, which
#   is what these optimizers are for. SGD, Adam and AdamW, which have no norms, are the same either way. Muon, which
#   needs the single matrices as well, refuses to be fused; LARS and LAMB do not, and nothing warns.
# Why it matters: LARS and LAMB are chosen for ImageNet with large batches, because layers differ in the ratio of
#   their norms by orders of magnitude. Fused, LARS is SGD with momentum under one common factor: below, one layer
#   hardly moves and the other goes a hundred times too far. FUSE_OPTIM=1 in the environment does it to a script that
#   does not mention it.
# Way out, checked below: fused=False for these two, which is the default while FUSE_OPTIM is not set.
#
# Versions: tinygrad 0.14.0 (its Python device, so that no compiler is needed), numpy 2.4.6, Python 3.11, x86-64.
# Date: 2026-11.
# Output that was seen:
#   tinygrad 0.14.0
#     way of each layer in 4 steps, as part of the way in the definition; large layer, small layer
#       SGD    fused=False      1.0016     1.0000
#       SGD    fused=True       1.0016     1.0000
#       AdamW  fused=False      1.0000     1.0000
#       AdamW  fused=True       1.0000     1.0000
#       LARS   fused=False      0.9999     0.9996
#       LARS   fused=True       0.0018   119.1182
#       LAMB   fused=False      1.0000     1.0000
#       LAMB   fused=True       0.7677    75.6141
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  tinygrad==0.14.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import numpy as np
from tinygrad import Tensor
from tinygrad.helpers import FUSE_OPTIM, Context
from tinygrad.nn.optim import LAMB, LARS, SGD, AdamW

print("tinygrad", importlib.metadata.version("tinygrad"))
random = np.random.default_rng(0)
# Two layers of the usual kind of difference: large weights with small gradients, small weights with large gradients.
WEIGHTS = [5 * random.normal(size=(8, 6)), 0.05 * random.normal(size=(6, 4))]
GRADIENTS = [[0.001 * random.normal(size=(8, 6)), 1.0 * random.normal(size=(6, 4))] for _ in range(4)]
RATE = 0.01


def lars(groups, steps):
    """LARS of its paper in float64, with a trust ratio for each group of layers (layer by layer, or all in one)."""
    weights = [w.copy() for w in WEIGHTS]
    momentum = [np.zeros_like(w) for w in weights]
    for step in range(steps):
        for group in groups:
            norm = np.sqrt(sum((weights[k] ** 2).sum() for k in group))
            slope = np.sqrt(sum((GRADIENTS[step][k] ** 2).sum() for k in group))
            ratio = 0.001 * norm / (slope + 1e-4 * norm)
            for k in group:
                momentum[k] = 0.9 * momentum[k] + RATE * ratio * (GRADIENTS[step][k] + 1e-4 * weights[k])
        weights = [w - m for w, m in zip(weights, momentum, strict=True)]
    return weights


def lamb(groups, steps, is_adam=False):
    weights = [w.copy() for w in WEIGHTS]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, steps + 1):
        updates = []
        for k, gradient in enumerate(GRADIENTS[step - 1]):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            eps = 1e-8 if is_adam else 1e-6
            updates.append(first[k] / (1 - 0.9**step) / (np.sqrt(second[k] / (1 - 0.999**step)) + eps) + 0.01 * weights[k])
        for group in groups:
            norm = np.sqrt(sum((weights[k] ** 2).sum() for k in group))
            length = np.sqrt(sum((updates[k] ** 2).sum() for k in group))
            for k in group:
                weights[k] = weights[k] - RATE * (1 if is_adam else norm / length) * updates[k]
    return weights


def sgd(_, steps):
    weights = [w.copy() for w in WEIGHTS]
    momentum = [np.zeros_like(w) for w in weights]
    for step in range(steps):
        for k, gradient in enumerate(GRADIENTS[step]):
            momentum[k] = 0.9 * momentum[k] + gradient
            weights[k] = weights[k] - RATE * momentum[k]
    return weights


def train(optimizer, steps, **options):
    weights = [Tensor(w.astype(np.float32)).is_param_() for w in WEIGHTS]
    chosen = optimizer(weights, lr=RATE, **options)
    with Context(TRAINING=1):
        for step in range(steps):
            for weight, gradient in zip(weights, GRADIENTS[step], strict=True):
                weight.grad = Tensor(gradient.astype(np.float32))
            chosen.step()
    return [w.numpy() for w in weights]


def main():
    changed = []
    if FUSE_OPTIM.value:
        changed.append("fused is the default")
    each, one = [[0], [1]], [[0, 1]]
    print("  way of each layer in 4 steps, as part of the way in the definition; large layer, small layer")
    for name, optimizer, options, reference, differs in (
        ("SGD", SGD, {"momentum": 0.9}, sgd, False),
        ("AdamW", AdamW, {"weight_decay": 0.01}, lambda groups, steps: lamb(groups, steps, True), False),
        ("LARS", LARS, {}, lars, True),
        ("LAMB", LAMB, {"weight_decay": 0.01}, lamb, True),
    ):
        truth, whole = reference(each, 4), reference(one, 4)
        for fused in (False, True):
            found = train(optimizer, 4, fused=fused, **options)
            parts = [np.linalg.norm(f - w) / np.linalg.norm(t - w) for f, w, t in zip(found, WEIGHTS, truth, strict=True)]
            expected = whole if fused and differs else truth
            print(f"    {name:6s} fused={fused!s:5s}  {parts[0]:10.4f} {parts[1]:10.4f}")
            for k in range(2):
                way = np.linalg.norm(expected[k] - WEIGHTS[k])
                if np.linalg.norm(found[k] - expected[k]) > 0.02 * way + 1e-5:  # the second term is float32
                    changed.append(f"{name} fused={fused} layer {k}: not the expected weights")
            if (max(abs(part - 1) for part in parts) > 0.5) != (fused and differs):
                changed.append(f"{name} fused={fused}: {parts}")
    if changed:
        sys.exit("CHANGED: " + "; ".join(changed))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
# FUSE_OPTIM is taken out of the environment so that the default is seen; no cache is left behind.
env -u FUSE_OPTIM DEV=PYTHON CACHELEVEL=0 "$work/venv/bin/python" "$work/check.py"
