#!/usr/bin/env bash
# Finding (2026-11): timm's optimizer with layer_decay has one and the same learning rate for all layers, unless a
# scheduler of timm is put on it.
#
# Expected: create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.75) returns an optimizer whose groups have
#   falling learning rates, the first layers the smallest, as the recipes of BEiT, MAE and DINO ask for. Any scheduler then
#   multiplies those rates, as PyTorch's schedulers do with groups of different rates.
# Real: each group has the full lr, and the factor as an extra entry "lr_scale", which no PyTorch optimizer
#   reads. Only timm's own schedulers multiply with it, when they are built. With PyTorch's schedulers (so under
#   Lightning, Accelerate, Hugging Face or a loop of one's own), or with no scheduler, layer decay does nothing: the patch
#   embedding of a ViT-Tiny moves 8000 times faster than asked with layer_decay=0.5, 40 times with 0.75.
# Why it matters: the groups are there, by layer and with the right factors, so a print of the optimizer looks as
#   wished. Fine-tuning at the rate of the head then overwrites the pretrained early layers: the loss falls and only the
#   accuracy is a few points short of the paper. Sweeps over layer_decay find no effect and drop it.
# Way out, checked below: group["lr"] *= group["lr_scale"] before the scheduler is built (not with timm's schedulers).
#
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   timm 1.0.31 torch 2.14.1
#     no scheduler                 step of the patch embedding 1.0e-03, of the head 1.0e-03, ratio 1.0000
#     torch CosineAnnealingLR      step of the patch embedding 1.0e-03, of the head 1.0e-03, ratio 1.0000
#     torch OneCycleLR             step of the patch embedding 4.0e-05, of the head 4.0e-05, ratio 1.0000
#     timm cosine                  step of the patch embedding 2.4e-05, of the head 1.0e-03, ratio 0.0238
#     scaled by hand, then torch   step of the patch embedding 2.4e-05, of the head 1.0e-03, ratio 0.0238
#     smallest of 14 factors in the groups: 0.0238
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("timm", "torch")))
RATE, DECAY = 1e-3, 0.75
FIRST, LAST = "patch_embed.proj.weight", "head.weight"


def moved(schedule):
    """How far the first and the last layer go in the first step of AdamW, whose steps are as long as the rate."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=0.0, layer_decay=DECAY)
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    schedule(optimizer)
    weights = dict(model.named_parameters())
    before = {name: weights[name].detach().clone() for name in (FIRST, LAST)}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [float((weights[name].detach() - before[name]).abs().mean()) for name in (FIRST, LAST)], scales


def by_hand(optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)


ways = {
    "no scheduler": lambda optimizer: None,
    "torch CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "torch OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=10),
    "timm cosine": lambda optimizer: create_scheduler_v2(optimizer, sched="cosine", num_epochs=10, warmup_epochs=0),
    "scaled by hand, then torch": by_hand,
}
kept = {}
for name, schedule in ways.items():
    (first, last), scales = moved(schedule)
    kept[name] = first / last
    print(f"  {name:28s} step of the patch embedding {first:.1e}, of the head {last:.1e}, ratio {first / last:.4f}")
wished = min(scales)
print(f"  smallest of {len(scales)} factors in the groups: {wished:.4f}")
ignored = {name for name, ratio in kept.items() if abs(ratio - 1) < 0.01}
right = {name for name, ratio in kept.items() if abs(ratio / wished - 1) < 0.01}
if ignored != set(list(ways)[:3]) or right != set(list(ways)[3:]):
    sys.exit(f"CHANGED: {kept}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
