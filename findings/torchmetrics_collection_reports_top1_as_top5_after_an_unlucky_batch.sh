#!/usr/bin/env bash
# Finding (2026-11): in a torchmetrics MetricCollection of top-1 and top-5 accuracy, top-5 is top-1 for good if
# no label of the first batch it ever saw was at rank 2 to 5.
#
# Expected: MetricCollection({"top1": MulticlassAccuracy(1000), "top5": MulticlassAccuracy(1000, top_k=5)}) gives
#   what the two metrics give by themselves. Metrics that share their work ("compute groups") are those that
#   count the same things, such as precision and recall.
# Real: after the first update() the collection compares the counters of its members by value and merges those
#   that are equal at that moment; arguments such as top_k or ignore_index are not compared. With the default
#   average ("macro") the counters of top-1 and top-5 are equal exactly if no label was at rank 2 to 5. From then on
#   only the first member is updated and the others show its counters. reset() and clone() keep the merger.
#   Calling the collection as a function, mc(logits, labels), does not merge; average="micro" counts
#   differently and is safe; with compute_groups=False all is right.
# Why it matters: the first batch is usually that of an untrained network (a check of the validation loop, an
#   evaluation at epoch 0): over 1000 classes all 32 images miss ranks 2 to 5 in 88 % of the cases, all 256 in 36 %.
#   A good network does it with small batches: in about 1 of 4 runs with 8 images, in 4 of 5 with one. The run
#   then reports top-5 = top-1 until its end, chooses its "best top-5" by top-1, and an evaluation of the same
#   weights with another batch size or in a new process gives another number. Likewise two metrics that differ in
#   ignore_index are one if the first batch has nothing to ignore.
#
# Versions: torchmetrics 1.9.0, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torchmetrics 1.9.0 torch 2.14.1
#   counted by topk                     : top-1  60.0 %, top-5  90.0 %
#   fresh collection                    : top-1  60.0 %, top-5  90.0 %
#   after the unlucky batch and reset() : top-1  60.0 %, top-5  60.0 %
#   its clone for the test set          : top-1  60.0 %, top-5  60.0 %
#   the same, average='micro'           : top-1  60.0 %, top-5  90.0 %
#   the same, called as a function      : top-1  60.0 %, top-5  90.0 %
#   the same, compute_groups=False      : top-1  60.0 %, top-5  90.0 %
#   untrained network, first batch of  32: 82 of 100 collections merged
#   untrained network, first batch of 256: 46 of 100 collections merged
#   good      network, first batch of   1: 86 of 100 collections merged
#   good      network, first batch of   8: 21 of 100 collections merged
#   good      network, first batch of  64: 0 of 100 collections merged
#   ignore_index=9 in a collection: 80.0 %, by itself: 100.0 %
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
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchmetrics", "torch")))
CLASSES = 1000
generator = torch.Generator().manual_seed(0)


def collection(groups=True, **options):
    members = {f"top{k}": MulticlassAccuracy(CLASSES, top_k=k, **options) for k in (1, 5)}
    return MetricCollection(members, compute_groups=groups)


def batch(images, top1, top5):
    """Random logits, with labels at rank 1 and at ranks 1 to 5 with these probabilities."""
    logits = torch.randn(images, CLASSES, generator=generator)
    ranks = torch.randint(5, CLASSES, (images,), generator=generator)
    chance = torch.rand(images, generator=generator)
    ranks = torch.where(chance < top5, torch.randint(1, 5, (images,), generator=generator), ranks)
    ranks = torch.where(chance < top1, 0, ranks)
    return logits, logits.argsort(1, descending=True).gather(1, ranks[:, None])[:, 0]


UNTRAINED, GOOD = (0.001, 0.005), (0.76, 0.93)
logits, labels = batch(32, 0.0, 0.0)  # the first batch: no label is among the five best classes
# A trained network, one image of each class: right in 60 %, second best in another 30 %.
truth = torch.arange(CLASSES)
trained = torch.zeros(CLASSES, CLASSES)
trained[truth, truth] = 5.0
trained[truth[600:900], (truth[600:900] + 1) % CLASSES] = 9.0
trained[900:] = trained[900:].roll(CLASSES // 2, 1)
trained += 0.01 * torch.rand(trained.shape, generator=generator)


def percent(values):
    return [round(100 * float(value), 1) for value in values]


def topk(k):
    return (trained.topk(k).indices == truth[:, None]).any(1).double().mean()


def after_first_batch(metrics, call=False):
    if call:
        metrics(logits, labels)
    else:
        metrics.update(logits, labels)
    metrics.reset()
    if call:
        metrics(trained, truth)
    else:
        metrics.update(trained, truth)
    return percent(metrics.compute().values())


alone = collection()
alone.update(trained, truth)
merged = collection()
seen = {
    "counted by topk": percent((topk(1), topk(5))),
    "fresh collection": percent(alone.compute().values()),
    "after the unlucky batch and reset()": after_first_batch(merged),
}
copy = merged.clone(prefix="test_")
copy.reset()
copy.update(trained, truth)
seen["its clone for the test set"] = percent(copy.compute().values())
seen["the same, average='micro'"] = after_first_batch(collection(average="micro"))
seen["the same, called as a function"] = after_first_batch(collection(), call=True)
seen["the same, compute_groups=False"] = after_first_batch(collection(groups=False))
for name, (top1, top5) in seen.items():
    print(f"{name:36s}: top-1 {top1:5.1f} %, top-5 {top5:5.1f} %")

shares = {}
for name, quality, images in (
    ("untrained", UNTRAINED, 32),
    ("untrained", UNTRAINED, 256),
    ("good", GOOD, 1),
    ("good", GOOD, 8),
    ("good", GOOD, 64),
):
    tried = [collection(validate_args=False) for _ in range(100)]
    for metrics in tried:
        metrics.update(*batch(images, *quality))
    shares[name, images] = sum(len(metrics.compute_groups) == 1 for metrics in tried) / len(tried)
    print(f"{name:9s} network, first batch of {images:3d}: {100 * shares[name, images]:.0f} of 100 collections merged")

pair = MetricCollection({"all": MulticlassAccuracy(10), "not 9": MulticlassAccuracy(10, ignore_index=9)})
pair.update(torch.eye(10)[:4], torch.arange(4))
pair.reset()
pair.update(torch.eye(10)[[0, 1, 2, 3, 0, 0]], torch.tensor([0, 1, 2, 3, 9, 9]))
ignoring = percent(pair.compute().values())
single = MulticlassAccuracy(10, ignore_index=9)
single.update(torch.eye(10)[[0, 1, 2, 3, 0, 0]], torch.tensor([0, 1, 2, 3, 9, 9]))
print(f"ignore_index=9 in a collection: {ignoring[1]} %, by itself: {percent([single.compute()])[0]} %")

right = seen["counted by topk"]
wrong = ("after the unlucky batch and reset()", "its clone for the test set")
ok = (
    right[0] == 60.0
    and right[1] > 85
    and all(seen[name] == [right[0], right[0]] for name in wrong)
    and all(values == right for name, values in seen.items() if name not in wrong)
    and shares["untrained", 32] > 0.7
    and 0.2 < shares["untrained", 256] < 0.6
    and shares["good", 1] > 0.6
    and 0.1 < shares["good", 8] < 0.5
    and shares["good", 64] < 0.05
    and ignoring[0] == ignoring[1] != percent([single.compute()])[0]
)
if not ok:
    sys.exit("CHANGED: the collection no longer merges metrics whose first counters are equal")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
