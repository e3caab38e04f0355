#!/usr/bin/env bash
# Finding (2026-11): torchdata's StatefulDataLoader resumes sampler=RandomSampler(...) in the order of another epoch, so
# that images of the interrupted epoch come twice and others never; in the first epoch it is exact.
#
# Expected: state_dict() in the middle of an epoch, load_state_dict() in a new process: the rest of the epoch holds the
#   images that had not been seen, with any sampler of torch.utils.data, as with shuffle=True.
# Real: the state of a sampler that has no state_dict is only how many it gave; on resume the loader draws a new order
#   and skips that many. The state of the sampler's generator is not in it. With a seeded generator the new order
#   is that of epoch 0: right when the run is interrupted in epoch 0, and in a later epoch the
#   second half of epoch 0 follows the first half of that epoch. It is the same with BatchSampler
#   and WeightedRandomSampler, which then repeats the draws of epoch 0 to the last, and with a sampler
#   without generator even when torch's own generator is saved and restored, there in epoch 0 too.
#   (2) torchdata's own StatefulDistributedSampler is exact in the middle of an epoch, but with num_workers=0
#   a checkpoint at the end of an epoch makes the next epoch empty: an epoch without a step.
# Why it matters: a test that interrupts the first epoch passes. In a job that is requeued a few times per epoch
#   hardly any epoch is one. Nothing is printed for map-style data sets.
# Way out, checked below: shuffle=True, or RandomSampler of torchdata.stateful_dataloader.sampler, which keeps the state
#   of its generator; torch's DistributedSampler with set_epoch. Not checked: a sampler with a state_dict, for weights.
#
# Checked by interrupting halfway and by the orders of an uninterrupted run. Distributed: rank 1 of 2.
#
# Versions: torchdata 0.11.0, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   torchdata 0.11.0 torch 2.14.1
#                                                  interrupted halfway in epoch 0 / 1: different    images of the epoch after
#   sampler                                workers  images, order of the uninterrupted run          a checkpoint at the end of 0
#   shuffle=True                                 0  240 of 240, True  / 240 of 240, True                                240 of 240
#   shuffle=True                                 2  240 of 240, True  / 240 of 240, True                                240 of 240
#   torchdata RandomSampler, generator           0  240 of 240, True  / 240 of 240, True                                240 of 240
#   torchdata RandomSampler, generator           2  240 of 240, True  / 240 of 240, True                                240 of 240
#   RandomSampler, generator                     0  240 of 240, True  / 177 of 240, False                               240 of 240
#   RandomSampler, generator                     2  240 of 240, True  / 177 of 240, False                               240 of 240
#   RandomSampler, torch's state restored        0  179 of 240, False / 178 of 240, False                               240 of 240
#   RandomSampler, torch's state restored        2  179 of 240, False / 178 of 240, False                               240 of 240
#   BatchSampler(RandomSampler, generator)       0  240 of 240, True  / 177 of 240, False                               240 of 240
#   BatchSampler(RandomSampler, generator)       2  240 of 240, True  / 177 of 240, False                               240 of 240
#   WeightedRandomSampler, generator             0  143 of 143, True  / 139 of 132, False                               240 of 240
#   WeightedRandomSampler, generator             2  143 of 143, True  / 139 of 132, False                               240 of 240
#   DistributedSampler                           0  120 of 120, True  / 120 of 120, True                                120 of 120
#   DistributedSampler                           2  120 of 120, True  / 120 of 120, True                                120 of 120
#   StatefulDistributedSampler                   0  120 of 120, True  / 120 of 120, True                                  0 of 120
#   StatefulDistributedSampler                   2  120 of 120, True  / 120 of 120, True                                120 of 120
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torchdata==0.11.0 torch==2.14.1 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys

import torch
import torchdata.stateful_dataloader.sampler as own
from torch.utils.data import BatchSampler, Dataset, DistributedSampler, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

IMAGES, BATCH, EPOCHS = 240, 8, 3


class Numbers(Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return index


def seeded():
    return torch.Generator().manual_seed(3)


DATA = Numbers()
LOADERS = {
    "shuffle=True": lambda: dict(shuffle=True, batch_size=BATCH),
    "torchdata RandomSampler, generator": lambda: dict(
        sampler=own.RandomSampler(DATA, generator=seeded()), batch_size=BATCH
    ),
    "RandomSampler, generator": lambda: dict(sampler=RandomSampler(DATA, generator=seeded()), batch_size=BATCH),
    "RandomSampler, torch's state restored": lambda: dict(sampler=RandomSampler(DATA), batch_size=BATCH),
    "BatchSampler(RandomSampler, generator)": lambda: dict(
        batch_sampler=BatchSampler(RandomSampler(DATA, generator=seeded()), BATCH, False)
    ),
    "WeightedRandomSampler, generator": lambda: dict(
        sampler=WeightedRandomSampler(torch.arange(1.0, IMAGES + 1), IMAGES, generator=seeded()), batch_size=BATCH
    ),
    "DistributedSampler": lambda: dict(sampler=DistributedSampler(DATA, num_replicas=2, rank=1), batch_size=BATCH),
    "StatefulDistributedSampler": lambda: dict(
        sampler=own.StatefulDistributedSampler(DATA, num_replicas=2, rank=1), batch_size=BATCH
    ),
}


def loader(name, workers):
    torch.manual_seed(7)
    return StatefulDataLoader(DATA, num_workers=workers, **LOADERS[name]())


def epoch(load, number, batches=None):
    if hasattr(load.sampler, "set_epoch"):
        load.sampler.set_epoch(number)
    seen = []
    for count, batch in enumerate(load, 1):
        seen += batch.tolist()
        if count == batches:
            break
    return seen


def resumed(name, workers, interrupted, batches):
    """The interrupted epoch, as it was seen before and after, and the one that follows."""
    load = loader(name, workers)
    for number in range(interrupted):
        epoch(load, number)
    before = epoch(load, interrupted, batches)
    state, generator = load.state_dict(), torch.get_rng_state()
    load = loader(name, workers)
    torch.set_rng_state(generator)
    load.load_state_dict(state)
    after = epoch(load, interrupted) if batches else []
    return before + after, epoch(load, interrupted + 1)


def main():
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchdata", "torch")))
    print("                                               interrupted halfway in epoch 0 / 1: different", end="")
    print("    images of the epoch after")
    print("sampler                                workers  images, order of the uninterrupted run", end="")
    print("          a checkpoint at the end of 0")
    failures = []
    for name in LOADERS:
        for workers in (0, 2):
            load = loader(name, workers)
            whole = [epoch(load, number) for number in range(EPOCHS)]
            size = len(whole[0])
            cells, halves = [], []
            for number in (0, 1):
                got, _ = resumed(name, workers, number, size // BATCH // 2)
                cells.append(f"{len(set(got)):3d} of {len(set(whole[number])):3d}, {got == whole[number]!s:5s}")
                halves.append(got)
            _, following = resumed(name, workers, 0, None)
            print(f"{name:38s} {workers:7d}  {' / '.join(cells)}{len(following):34d} of {size}")
            exact = [got == order for got, order in zip(halves, whole, strict=False)]
            half = size // 2
            seeded_sampler = "generator" in name and not name.startswith("torchdata")
            expected = [not name.endswith("restored"), not (seeded_sampler or name.endswith("restored"))]
            if exact != expected:
                failures.append(f"{name}, {workers} workers: {exact}, expected {expected}")
            if seeded_sampler and halves[1] != whole[1][:half] + whole[0][half:]:
                failures.append(f"{name}, {workers} workers: not the order of epoch 0")
            lost = name == "StatefulDistributedSampler" and workers == 0
            if len(following) != (0 if lost else size):
                failures.append(f"{name}, {workers} workers: {len(following)} images in the next epoch")
    if failures:
        sys.exit("CHANGED: " + "; ".join(failures))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py" 2> "$work/err" || { cat "$work/err" >&2; exit 1; }
