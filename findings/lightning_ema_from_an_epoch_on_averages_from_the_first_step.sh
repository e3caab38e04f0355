#!/usr/bin/env bash
# Finding (2026-11): Lightning's EMAWeightAveraging(update_starting_at_epoch=N) averages from the first step on, and
# update_starting_at_step=N validates, saves and ends with the initial weights until step N.
#
# Expected: both options delay the average: up to there the raw weights are validated, saved and kept; from there on
#   the average starts as a copy of the weights and follows every step.
# Real: the two conditions are joined by "or", and without update_starting_at_step the one on the step always holds. So
#   update_starting_at_epoch=3 delays nothing, and from epoch 3 on the last step of each epoch enters twice.
#   With update_starting_at_step the average does start late, as a copy; until then the "average" that is swapped
#   in for validation, for the state_dict of checkpoints and at the end of training is a copy made
#   before the first step. The validation loss is constant, so EarlyStopping stops, and fit() then
#   writes the initial weights over the trained ones (a checkpoint still has these, under
#   current_model_state). No message in any of these cases.
# Why it matters: a late start keeps the noisy weights of the warmup out. Whoever asks for it by epoch gets the plain
#   EMA, and compares two runs that hardly differ; whoever asks for it by step can lose the whole training.
# Way out for the start by epoch, checked below: a should_update of one's own, or update_starting_at_step. With a late
#   start use neither early stopping nor checkpoints chosen by a validation metric before it.
#
# Checked with one weight, 8 steps per epoch, decay 0.9, against the average computed from the list of raw weights.
#
# Versions: lightning 2.6.6, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   lightning 2.6.6 torch 2.14.1
#   last raw weight 8.7149; average of all steps 7.6987, of those from epoch 3 on 8.0723,
#   of all with the last ones of epochs 3 and 4 twice 7.8552
#   no start given: validated 1.4845 3.3980 5.2100 6.6457 7.6987; checkpoint of epoch 1 3.3980; at the end 7.6987
#   update_starting_at_epoch=3: validated 1.4845 3.3980 5.2100 6.6457 7.7597; checkpoint of epoch 1 3.3980; at the end 7.8552
#   update_starting_at_step=24: validated 0.0000 0.0000 0.0000 7.5136 8.0723; checkpoint of epoch 1 0.0000; at the end 8.0723
#   should_update of one's own: validated 0.0000 0.0000 0.0000 7.5136 8.0723; checkpoint of epoch 1 0.0000; at the end 8.0723
#   update_starting_at_step=24 and EarlyStopping(patience=2): 24 steps, last raw weight 7.0801, at the end 0.0000
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check lightning==2.6.6 torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import logging
import sys
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 8  # per epoch
DECAY = 0.9


class OneWeight(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.raw, self.validated = [], []

    def training_step(self, batch, number):
        return (self.weight - 10).square().sum() / 2

    def on_train_batch_end(self, *arguments):
        self.raw.append(self.weight.item())

    def validation_step(self, batch, number):
        self.validated.append(self.weight.item())
        self.log("val_loss", (self.weight - 10).square().sum() / 2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class FromEpoch(EMAWeightAveraging):
    def __init__(self, epoch):
        super().__init__(decay=DECAY)
        self.first_step = epoch * STEPS

    def should_update(self, step_idx=None, epoch_idx=None):
        return step_idx is not None and step_idx >= self.first_step


def fit(average, folder, *more, epochs=5):
    network = OneWeight()
    keep = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[average, keep, *more], logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(network, *(DataLoader(TensorDataset(torch.zeros(n, 1))) for n in (STEPS, 1)))
    return network


def average_of(raw, steps):
    value = None
    for step in steps:
        value = raw[step] if value is None else DECAY * value + (1 - DECAY) * raw[step]
    return value


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("lightning", "torch")))
    work, start, failures = sys.argv[1], 3, []

    def close(name, got, expected):
        if abs(got - expected) > 1e-4:
            failures.append(f"{name}: {got}, expected {expected}")

    raw = fit(EMAWeightAveraging(decay=DECAY), f"{work}/plain").raw
    everything = average_of(raw, range(5 * STEPS))
    late = average_of(raw, range(start * STEPS, 5 * STEPS))
    twice = []
    for epoch in range(5):
        steps = list(range(epoch * STEPS, (epoch + 1) * STEPS))
        twice += steps + steps[-1:] * (epoch >= start)
    print(f"last raw weight {raw[-1]:.4f}; average of all steps {everything:.4f}, of those from epoch 3 on {late:.4f},")
    print(f"of all with the last ones of epochs 3 and 4 twice {average_of(raw, twice):.4f}")
    by_epoch = EMAWeightAveraging(decay=DECAY, update_starting_at_epoch=start)
    by_step = EMAWeightAveraging(decay=DECAY, update_starting_at_step=start * STEPS)
    for name, average, expected, delayed in (
        ("no start given", EMAWeightAveraging(decay=DECAY), everything, False),
        ("update_starting_at_epoch=3", by_epoch, average_of(raw, twice), False),
        ("update_starting_at_step=24", by_step, late, True),
        ("should_update of one's own", FromEpoch(start), late, True),
    ):
        network = fit(average, f"{work}/{name}")
        close(name, network.weight.item(), expected)
        first = torch.load(f"{work}/{name}/epoch=1.ckpt", weights_only=True)["state_dict"]["weight"].item()
        close(name + ", checkpoint of epoch 1", first, 0 if delayed else average_of(raw, range(2 * STEPS)))
        shown = " ".join(f"{value:.4f}" for value in network.validated)
        print(f"{name}: validated {shown}; checkpoint of epoch 1 {first:.4f}; at the end {network.weight.item():.4f}")
        if delayed:
            for value in network.validated[:start]:
                close(name + ", validated", value, 0)
    stopped = fit(
        EMAWeightAveraging(decay=DECAY, update_starting_at_step=24), f"{work}/stop",
        EarlyStopping("val_loss", patience=2, check_on_train_epoch_end=False),
    )  # fmt: skip
    seen = f"{len(stopped.raw)} steps, last raw weight {stopped.raw[-1]:.4f}, at the end {stopped.weight.item():.4f}"
    print(f"update_starting_at_step=24 and EarlyStopping(patience=2): {seen}")
    close("stopped early", stopped.weight.item(), 0)
    close("steps of the run that stopped early", len(stopped.raw), 3 * STEPS)
    close("last raw weight", stopped.raw[-1], raw[3 * STEPS - 1])
    if failures:
        sys.exit("CHANGED: " + "; ".join(failures))
    print("OK: behavior is as described")


main()
PY
"$work/venv/bin/python" "$work/check.py" "$work" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
