#!/usr/bin/env bash
# Finding (2026-11): timm's ModelEmaV3(use_warmup=True) has no warmup unless update() is given the step, and weights
# that two layers share are averaged as many times per step as they have names.
#
# Expected: the options of the constructor hold for update(model), the only call that ModelEmaV2 has;
#   and a tied weight is averaged once per step, like any other.
# Real: (1) the step is an optional second argument, and without it use_warmup, update_after_step and min_decay are not
#   looked at: the decay is the full one from the first step. (2) the update goes through state_dict(), where
#   a tied weight stands under each of its names: with two names its decay is the square of the one that
#   was set. ModelEmaV2 does it too. With exclude_buffers=True it goes through parameters(), and is right.
# Why it matters: with the decay 0.9999 that is usual for ImageNet an average without warmup consists of the random
#   initial weights to more than a third after 10,000 steps, and the EMA accuracy of the first epochs is that
#   of noise, as if the option had not been given. A tied weight has another horizon than the rest of the
#   network: the average is of weights that never belonged together.
# Way out, checked below: update(model, step=...), counted from 1; exclude_buffers=True or torch's AveragedModel
#   for networks with tied weights.
#
# Checked against the average of the list of weights, with timm's own formula for the warmup (gamma 1, power 2/3).
#
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   timm 1.0.31 torch 2.14.1
#   weight after 200 steps 1.0000; its average with decay 0.99 0.8526, with warmup 1.0000, with the decay squared 0.9780
#   V3                               0.8526
#   V3, use_warmup=True              0.8526
#   V3, update_after_step=1000       0.8526
#   V3, use_warmup=True, step given  1.0000
#   V3, tied                         0.9780
#   V3, tied, foreach=False          0.9780
#   V3, tied, exclude_buffers=True   0.8526
#   V2, tied                         0.9780
#   torch AveragedModel, tied        0.8526
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS, DECAY = 200, 0.99


class Network(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.first = nn.Linear(1, 1, bias=False)
        self.second = nn.Linear(1, 1, bias=False)
        if tied:
            self.second.weight = self.first.weight
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.second.weight)


def weight_at(step):  # the weight starts at 0 and is near 1 soon
    return 1 - 0.9**step


def slow(decays):
    average = 0.0
    for step, decay in enumerate(decays, 1):
        average = decay * average + (1 - decay) * weight_at(step)
    return average


def run(make, update, tied=False):
    network = Network(tied).double()
    average = make(network)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(weight_at(step))
        update(average, network, step)
    return average.module.second.weight.item()


def plain(average, network, step):
    average.update(network)


def with_step(average, network, step):
    average.update(network, step=step)


def of_torch(average, network, step):
    average.update_parameters(network)


def averaged_model(network):
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    average.n_averaged += 1  # so that the initial weights count, as in timm
    return average


def main():
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("timm", "torch")))
    full = slow([DECAY] * STEPS)
    squared = slow([DECAY**2] * STEPS)
    warm = slow([0.0 if n == 1 else min(DECAY, 1 - n ** (-2 / 3)) for n in range(1, STEPS + 1)])
    print(f"weight after {STEPS} steps {weight_at(STEPS):.4f}; its average with decay {DECAY} {full:.4f},", end=" ")
    print(f"with warmup {warm:.4f}, with the decay squared {squared:.4f}")
    failures = []
    for name, make, update, tied, expected in (
        ("V3", lambda n: ModelEmaV3(n, DECAY), plain, False, full),
        ("V3, use_warmup=True", lambda n: ModelEmaV3(n, DECAY, use_warmup=True), plain, False, full),
        ("V3, update_after_step=1000", lambda n: ModelEmaV3(n, DECAY, update_after_step=1000), plain, False, full),
        ("V3, use_warmup=True, step given", lambda n: ModelEmaV3(n, DECAY, use_warmup=True), with_step, False, warm),
        ("V3, tied", lambda n: ModelEmaV3(n, DECAY), plain, True, squared),
        ("V3, tied, foreach=False", lambda n: ModelEmaV3(n, DECAY, foreach=False), plain, True, squared),
        ("V3, tied, exclude_buffers=True", lambda n: ModelEmaV3(n, DECAY, exclude_buffers=True), plain, True, full),
        ("V2, tied", lambda n: ModelEmaV2(n, DECAY), plain, True, squared),
        ("torch AveragedModel, tied", averaged_model, of_torch, True, full),
    ):
        got = run(make, update, tied)
        print(f"{name:32s} {got:.4f}")
        if abs(got - expected) > 1e-9:
            failures.append(f"{name}: {got}, expected {expected}")
    if failures:
        sys.exit("CHANGED: " + "; ".join(failures))
    print("OK: behavior is as described")


main()
PY
"$work/venv/bin/python" "$work/check.py"
