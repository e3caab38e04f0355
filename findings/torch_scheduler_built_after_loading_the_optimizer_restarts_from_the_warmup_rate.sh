#!/usr/bin/env bash
# Finding (2026-11): a run that is resumed by loading the optimizer, then building the warmup + cosine schedule, then
# loading the schedule goes on from the first rate of the warmup, and is off by that factor to its end.
#
# Expected: both states are saved and both are loaded, so the order of loading does not matter, or at most for one step.
#   For CosineAnnealingLR, MultiStepLR and PolynomialLR alone it does not matter.
# Real: building a scheduler sets its first rate in the optimizer, over those just loaded: LinearLR and ConstantLR
#   multiply what is there by their first factor, SequentialLR goes back to the base rate first. Loading the scheduler's
#   state restores its counters, not the rates. LambdaLR and OneCycleLR compute the next rate from scratch, so one
#   epoch is wrong; LinearLR, ConstantLR, ExponentialLR and CosineAnnealingLR compute it from the current one, so the
#   error is never made good: nine times too small after an early stop, twice too large after a late one.
#   get_last_lr() of the loaded scheduler shows the right number until its first step.
# Why it matters: SequentialLR of LinearLR and CosineAnnealingLR is torchvision's own recipe for classification.
#   Nothing fails, the curve still has the shape of a cosine, and the loss even falls at the interruption, as it does
#   at each drop of the rate; the run just ends worse. A test that resumes with plain cosine or steps passes.
# Way out, checked below: build the scheduler first, then load both.
#
# Versions: torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torch 2.14.1
#     right; or optimizer loaded before the scheduler was built: rates in the next and in the last epoch
#     warmup + cosine (SequentialLR)  0.905, 0.0109; or 0.100, 0.0012   wrong epochs: 0 or 12 of 12
#     the same, interrupted later     0.043, 0.0109; or 0.100, 0.0253   wrong epochs: 0 or 2 of 2
#     warmup x exponential (Chained)  0.430, 0.1351; or 0.043, 0.0135   wrong epochs: 0 or 12 of 12
#     LinearLR                        1.000, 1.0000; or 0.100, 0.1000   wrong epochs: 0 or 12 of 12
#     LambdaLR                        0.600, 0.0500; or 0.200, 0.0500   wrong epochs: 0 or 1 of 12
#     OneCycleLR                      0.919, 0.0114; or 0.040, 0.0114   wrong epochs: 0 or 1 of 12
#     CosineAnnealingLR               0.655, 0.0062; or 0.655, 0.0062   wrong epochs: 0 or 0 of 12
#     MultiStepLR                     0.100, 0.0100; or 0.100, 0.0100   wrong epochs: 0 or 0 of 12
#     PolynomialLR                    0.600, 0.0500; or 0.600, 0.0500   wrong epochs: 0 or 0 of 12
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import copy
import sys
import warnings

import torch
from torch.optim import lr_scheduler as schedules

warnings.simplefilter("ignore")
print("torch", torch.__version__.split("+")[0])
EPOCHS = 20


def warmup_cosine(sgd):
    parts = [schedules.LinearLR(sgd, 0.1, total_iters=5), schedules.CosineAnnealingLR(sgd, EPOCHS - 5)]
    return schedules.SequentialLR(sgd, parts, milestones=[5])


def warmup_exponential(sgd):
    return schedules.ChainedScheduler([schedules.LinearLR(sgd, 0.1, total_iters=5), schedules.ExponentialLR(sgd, 0.9)])


# name: how it is made, epoch of the interruption, how many of the epochs after it have a wrong rate
cases = {
    "warmup + cosine (SequentialLR)": (warmup_cosine, 8, 12),
    "the same, interrupted later": (warmup_cosine, 18, 2),
    "warmup x exponential (Chained)": (warmup_exponential, 8, 12),
    "LinearLR": (lambda sgd: schedules.LinearLR(sgd, 0.1, total_iters=5), 8, 12),
    "LambdaLR": (lambda sgd: schedules.LambdaLR(sgd, lambda n: min(1, (n + 1) / 5) * (1 - n / EPOCHS)), 8, 1),
    "OneCycleLR": (lambda sgd: schedules.OneCycleLR(sgd, 1.0, total_steps=EPOCHS + 1), 8, 1),
    "CosineAnnealingLR": (lambda sgd: schedules.CosineAnnealingLR(sgd, EPOCHS), 8, 0),
    "MultiStepLR": (lambda sgd: schedules.MultiStepLR(sgd, [5, 12]), 8, 0),
    "PolynomialLR": (lambda sgd: schedules.PolynomialLR(sgd, EPOCHS), 8, 0),
}


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)


def rates(sgd, schedule, first, last):
    seen = []
    for _ in range(first, last):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return seen


changed = []
print("  right; or optimizer loaded before the scheduler was built: rates in the next and in the last epoch")
for name, (make, stop, wrong) in cases.items():
    sgd = optimizer()
    schedule = make(sgd)
    full = rates(sgd, schedule, 0, EPOCHS)
    sgd = optimizer()
    schedule = make(sgd)
    rates(sgd, schedule, 0, stop)
    saved = copy.deepcopy((sgd.state_dict(), schedule.state_dict()))

    sgd = optimizer()
    schedule = make(sgd)
    sgd.load_state_dict(copy.deepcopy(saved[0]))
    schedule.load_state_dict(copy.deepcopy(saved[1]))
    good = rates(sgd, schedule, stop, EPOCHS)

    sgd = optimizer()
    sgd.load_state_dict(copy.deepcopy(saved[0]))
    schedule = make(sgd)
    schedule.load_state_dict(copy.deepcopy(saved[1]))
    shown = schedule.get_last_lr()[0]
    bad = rates(sgd, schedule, stop, EPOCHS)

    counts = [sum(abs(a - b) > 1e-7 for a, b in zip(run, full[stop:], strict=True)) for run in (good, bad)]
    print(
        f"  {name:32s}{good[0]:.3f}, {good[-1]:.4f}; or {bad[0]:.3f}, {bad[-1]:.4f}"
        f"   wrong epochs: {counts[0]} or {counts[1]} of {EPOCHS - stop}"
    )
    if counts != [0, wrong] or abs(shown - full[stop]) > 1e-7:
        changed.append(f"{name}: {counts}")
    first = 0.1 if make is warmup_cosine else 0.1 * full[stop]  # SequentialLR starts over, the others multiply
    if wrong > 1 and (abs(bad[0] - first) > 1e-7 or abs(bad[-1] / full[-1] - bad[0] / full[stop]) > 1e-3):
        changed.append(f"{name}: {bad}")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
