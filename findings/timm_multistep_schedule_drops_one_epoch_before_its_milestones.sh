#!/usr/bin/env bash
# Finding (2026-11): timm's multistep schedule drops the rate one epoch before each milestone; its step schedule and PyTorch's
# MultiStepLR drop it at the milestone.
#
# Expected: milestones 30, 60 and a step of 30 epochs are the same schedule: 30 epochs at the first rate, as the step schedule
#   of the same library and PyTorch's MultiStepLR([30, 60]) have it.
# Real: the number of passed milestones is taken at t + 1, so epoch 29 already has the lower rate. A run that
#   is resumed there does the same.
# Why it matters: step recipes are short (COCO's 1x: 12 epochs, drops at 8 and 11; CIFAR: 100 and 150), and the drop is where
#   most of the last gain in accuracy comes from. A recipe moved from PyTorch or detectron loses one epoch of its last
#   high-rate stage: with milestones 8 and 11 of 12 the stage between has its 3 epochs at another place, and the last has
#   2 epochs in place of 1. The two runs that should show that the trainer is reproduced differ from the first drop on.
# Way out, checked below: milestones one larger.
#
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   timm 1.0.31 torch 2.14.1
#     first epoch (from 0) with a lower rate, and the rate of each of 12 epochs
#     torch MultiStepLR([4, 8])        [4, 8]   1 1 1 1 0.1 0.1 0.1 0.1 0.01 0.01 0.01 0.01
#     timm step, decay_epochs=4        [4, 8]   1 1 1 1 0.1 0.1 0.1 0.1 0.01 0.01 0.01 0.01
#     timm multistep, milestones 4, 8  [3, 7]   1 1 1 0.1 0.1 0.1 0.1 0.01 0.01 0.01 0.01 0.01
#     timm multistep, milestones 5, 9  [4, 8]   1 1 1 1 0.1 0.1 0.1 0.1 0.01 0.01 0.01 0.01
#     torch MultiStepLR([8, 11])       [8, 11]  1 1 1 1 1 1 1 1 0.1 0.1 0.1 0.01
#     timm multistep, milestones 8, 11 [7, 10]  1 1 1 1 1 1 1 0.1 0.1 0.1 0.01 0.01
#     resumed at epoch 3: timm multistep, milestones 4, 8: 0.1
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import sys
import warnings

import timm
import torch
from timm.scheduler import create_scheduler_v2

warnings.simplefilter("ignore")
print("timm", timm.__version__, "torch", torch.__version__.split("+")[0])
EPOCHS = 12


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates_of_timm(**arguments):
    sgd = optimizer()
    schedule, epochs = create_scheduler_v2(sgd, num_epochs=EPOCHS, decay_rate=0.1, warmup_epochs=0, min_lr=0, **arguments)
    seen = []
    for epoch in range(EPOCHS):
        seen.append(sgd.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    return seen


def rates_of_torch(milestones):
    sgd = optimizer()
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.1)
    seen = []
    for _ in range(EPOCHS):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return seen


def drops(rates):
    return [epoch for epoch in range(1, EPOCHS) if rates[epoch] < 0.5 * rates[epoch - 1]]


changed = []
rows = {
    "torch MultiStepLR([4, 8])": (rates_of_torch([4, 8]), [4, 8]),
    "timm step, decay_epochs=4": (rates_of_timm(sched="step", decay_epochs=4), [4, 8]),
    "timm multistep, milestones 4, 8": (rates_of_timm(sched="multistep", decay_milestones=[4, 8]), [3, 7]),
    "timm multistep, milestones 5, 9": (rates_of_timm(sched="multistep", decay_milestones=[5, 9]), [4, 8]),
    "torch MultiStepLR([8, 11])": (rates_of_torch([8, 11]), [8, 11]),
    "timm multistep, milestones 8, 11": (rates_of_timm(sched="multistep", decay_milestones=[8, 11]), [7, 10]),
}
print("  first epoch (from 0) with a lower rate, and the rate of each of 12 epochs")
for name, (rates, expected) in rows.items():
    print(f"  {name:33s}{drops(rates)!s:8s} " + " ".join(f"{rate:g}" for rate in rates))
    if drops(rates) != expected:
        changed.append(f"{name}: {drops(rates)}")

# Resumed at epoch 3, the last one at the first rate, as timm's own train.py does it.
sgd = optimizer()
schedule, _ = create_scheduler_v2(sgd, sched="multistep", num_epochs=EPOCHS, decay_milestones=[4, 8], decay_rate=0.1, warmup_epochs=0)
schedule.step(3)
print(f"  resumed at epoch 3: timm multistep, milestones 4, 8: {sgd.param_groups[0]['lr']:g}")
if abs(sgd.param_groups[0]["lr"] - 0.1) > 1e-9:
    changed.append("resumed")
if changed:
    sys.exit("CHANGED: " + "; ".join(changed))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
