#!/usr/bin/env bash
# Finding (2026-11): in PyTorch-Ignite a NaN score counts as an improvement: EarlyStopping never stops a run that has
# diverged, and Checkpoint keeps a first NaN as the best model for good.
#
# Expected: NaN is no better than anything. A run whose score is NaN from some epoch on is stopped after
#   `patience` epochs, and the best checkpoint is the one with the highest number.
# Real: EarlyStopping asks whether the score is less than or equal to the best one. That is false for NaN, so
#   NaN becomes the best score and the count of bad epochs starts at 0. Each later NaN does so again, and a run
#   that diverged runs to its last epoch. If the score recovers, the first number after the NaN is taken for an
#   improvement too, however bad. Checkpoint asks whether a score is greater than the lowest kept one. That is
#   false for every number against NaN: if the first score is NaN, its file stays and no other is ever written
#   (n_saved=1). A NaN that comes later does not get in.
# Why it matters: a first NaN needs no divergence. The F1 score of precision and recall, 2PR / (P + R), is 0 / 0 for a
#   class that is not found yet, and its mean over the classes is NaN in the first epochs of most runs with many
#   or rare classes. The weights of epoch 1 then are the "best model" of the whole run. And the run that diverges at
#   night, for which early stopping was put there, spends its hours to the end.
# Way out, checked below: a score function that turns NaN into -infinity; ignite's own Fbeta, which adds 1e-15.
#
# Versions: pytorch-ignite 0.5.5, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   pytorch-ignite 0.5.5 torch 2.14.1
#   scores of the epochs (patience 2)               guard  epochs run  best kept
#    0.1  0.5  0.4  0.3  0.2  0.1  0.1  0.1         False           4  epoch 2
#    0.1  0.5  0.4  0.3  0.2  0.1  0.1  0.1         True            4  epoch 2
#    0.1  0.5  nan  nan  nan  nan  nan  nan         False           8  epoch 2
#    0.1  0.5  nan  nan  nan  nan  nan  nan         True            4  epoch 2
#    0.1  0.5  0.4  nan  0.2  0.1  0.1  0.1         False           7  epoch 2
#    0.1  0.5  0.4  nan  0.2  0.1  0.1  0.1         True            4  epoch 2
#    nan  0.1  0.3  0.5  0.6  0.7  0.8  0.9         False           8  epoch 1
#    nan  0.1  0.3  0.5  0.6  0.7  0.8  0.9         True            8  epoch 8
#   F1 of a network that finds two of three classes, 2PR / (P + R), mean: nan
#   F1 of a network that finds two of three classes, Fbeta: 0.357
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 pytorch-ignite==0.5.5 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import logging
import math
import os
import sys
import tempfile

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from ignite.metrics import Fbeta, Precision, Recall

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pytorch-ignite", "torch")))
NAN = math.nan
logging.disable(logging.INFO)


def guarded(score):
    return -math.inf if math.isnan(score) else score


def run(scores, score_function=lambda score: score):
    """Trains for as many epochs as there are scores; returns the epochs run and the epoch of the best checkpoint."""
    model = torch.nn.Linear(1, 1)
    trainer = Engine(lambda engine, batch: None)
    evaluator = Engine(lambda engine, batch: None)

    def score(engine):
        return score_function(scores[trainer.state.epoch - 1])

    with tempfile.TemporaryDirectory() as folder:
        best = Checkpoint(
            {"model": model},
            DiskSaver(folder),
            n_saved=1,
            score_function=score,
            filename_pattern="{global_step}.{ext}",
            global_step_transform=lambda engine, event: trainer.state.epoch,
        )
        evaluator.add_event_handler(Events.COMPLETED, EarlyStopping(2, score, trainer))
        evaluator.add_event_handler(Events.COMPLETED, best)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run([0]))
        trainer.run([0], max_epochs=len(scores))
        (name,) = os.listdir(folder)
        return trainer.state.epoch, int(name.split(".")[0])


failures = []
print("scores of the epochs (patience 2)               guard  epochs run  best kept")
for scores, expected, expected_guarded in (
    ([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1], (4, 2), (4, 2)),
    ([0.1, 0.5, NAN, NAN, NAN, NAN, NAN, NAN], (8, 2), (4, 2)),
    ([0.1, 0.5, 0.4, NAN, 0.2, 0.1, 0.1, 0.1], (7, 2), (4, 2)),
    ([NAN, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9], (8, 1), (8, 8)),
):
    for guard, want in ((False, expected), (True, expected_guarded)):
        seen = run(scores, guarded) if guard else run(scores)
        print(f"{' '.join(f'{score:4.1f}' for score in scores):47s} {str(guard):5s}  {seen[0]:10d}  epoch {seen[1]}")
        if seen != want:
            failures.append(f"{scores}, guard {guard}: {seen}")

# Where a first NaN comes from: three classes, of which the third is not predicted yet.
precision, recall = Precision(average=False), Recall(average=False)
metrics = {
    "2PR / (P + R), mean": (2 * precision * recall / (precision + recall)).mean(),
    "Fbeta": Fbeta(1.0, precision=precision, recall=recall),
}
evaluator = Engine(lambda engine, batch: batch)
for name, metric in metrics.items():
    metric.attach(evaluator, name)
labels = torch.tensor([0, 0, 0, 1, 1, 2])
evaluator.run([(torch.eye(3)[[0, 0, 1, 1, 0, 0]], labels)])
for name in metrics:
    print(f"F1 of a network that finds two of three classes, {name}: {float(evaluator.state.metrics[name]):.3f}")
if not math.isnan(evaluator.state.metrics["2PR / (P + R), mean"]) or math.isnan(evaluator.state.metrics["Fbeta"]):
    failures.append(f"F1: {evaluator.state.metrics}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
