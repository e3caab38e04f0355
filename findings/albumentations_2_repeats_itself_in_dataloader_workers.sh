#!/usr/bin/env bash
# Finding (2026-11): with albumentations 2.0.8 in PyTorch DataLoader workers, every worker draws the same
# random augmentations, and every epoch draws those of the first epoch again.
#
# Expected: with num_workers=2 each worker has its own random stream, and a new epoch has new crops and
#   flips. PyTorch reseeds torch's, Python's and NumPy's global generators in each worker and each
#   epoch, and transforms built on those (torchvision's, albumentations 1 with Python's random) follow.
# Real: version 2 draws from generators of its own that belong to the Compose object. They are created
#   with the object, in the parent process, and each worker gets a copy in the same state; PyTorch
#   knows nothing of them. So the n-th sample of worker 0 and of worker 1 are cropped alike, and as
#   workers are started again for each epoch, epoch 2 repeats epoch 1 to the pixel, and so on to the
#   last. It is so without a seed (the default) as well as with seed=137, under fork and under spawn.
#   persistent_workers=True gives new draws per epoch, but the workers still draw alike.
# Why it matters: nothing looks wrong in a picture grid, and the loss falls faster, but for each sample
#   the augmentation hardly varies: with shuffle off or a repeatable order it is frozen for the whole
#   training, and with shuffle on an epoch still has only 1/workers as many different draws. That is
#   lost regularization, with no message. 2.0.8 is the newest release of this package.
# Way out, checked below: a worker_init_fn that calls set_random_seed with torch's worker seed.
#
# Versions: albumentations 2.0.8, torch 2.14.1, opencv-python-headless 4.14.0.94, numpy 2.4.6,
# Python 3.11. Date: 2026-11.
# Output that was seen:
#   albumentations 2.0.8 torch 2.14.1
#   crops of                      workers alike  epochs alike  torch's own: workers, epochs alike
#   no seed, fork                 True           True          False, False
#   no seed, spawn                True           True          False, False
#   seed=137, fork                True           True          False, False
#   persistent workers, fork      True           False         False, False
#   worker_init_fn, fork          False          False         False, False
#   seed=137, epoch 0, batches of workers 0 1 0 1: [[281, 3854, 1394], [281, 3854, 1394], [3487, 3763, 2056], [3487, 3763, 2056]]
#   seed=137, epoch 1, batches of workers 0 1 0 1: [[281, 3854, 1394], [281, 3854, 1394], [3487, 3763, 2056], [3487, 3763, 2056]]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 albumentations==2.0.8 opencv-python-headless==4.14.0.94 numpy==2.4.6
export NO_ALBUMENTATIONS_UPDATE=1

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import albumentations
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

# Each pixel holds its own number, so that the first pixel of a 4x4 crop tells where it was cut.
PICTURE = np.arange(64 * 64, dtype=np.float32).reshape(64, 64, 1)


class Crops(Dataset):
    def __init__(self, seed=None):
        self.transform = albumentations.Compose([albumentations.RandomCrop(4, 4)], seed=seed)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        place = int(self.transform(image=PICTURE)["image"][0, 0, 0])
        return place, int(torch.randint(4096, ()))  # the second is a control: PyTorch's own stream


def reseed(worker):
    info = torch.utils.data.get_worker_info()
    info.dataset.transform.set_random_seed(info.seed % 2**32)


def draws(seed=None, **options):
    torch.manual_seed(0)
    loader = DataLoader(Crops(seed), batch_size=3, num_workers=2, **options)
    # Batches 0 and 2 come from worker 0, batches 1 and 3 from worker 1.
    epochs = [[[column.tolist() for column in batch] for batch in loader] for _ in range(2)]
    crops = [[batch[0] for batch in epoch] for epoch in epochs]
    control = [[batch[1] for batch in epoch] for epoch in epochs]
    return crops, control


def alike(epochs):
    workers = all(epoch[0] == epoch[1] and epoch[2] == epoch[3] for epoch in epochs)
    return workers, epochs[0] == epochs[1]


def main():
    warnings.simplefilter("ignore")
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("albumentations", "torch")))
    failures = []
    print("crops of                      workers alike  epochs alike  torch's own: workers, epochs alike")
    for name, options, expected in (
        ("no seed, fork", {"multiprocessing_context": "fork"}, (True, True)),
        ("no seed, spawn", {"multiprocessing_context": "spawn"}, (True, True)),
        ("seed=137, fork", {"seed": 137, "multiprocessing_context": "fork"}, (True, True)),
        ("persistent workers, fork", {"persistent_workers": True, "multiprocessing_context": "fork"}, (True, False)),
        ("worker_init_fn, fork", {"worker_init_fn": reseed, "multiprocessing_context": "fork"}, (False, False)),
    ):
        crops, control = draws(**options)
        found = alike(crops)
        own = alike(control)
        print(f"{name:29s} {found[0]!s:13s}  {found[1]!s:12s}  {own[0]}, {own[1]}")
        if name == "seed=137, fork":
            shown = crops
        if found != expected:
            failures.append(f"{name}: {found}, expected {expected}")
        if own != (False, False):
            failures.append(f"{name}: the control repeats")
    for number, epoch in enumerate(shown):
        print(f"seed=137, epoch {number}, batches of workers 0 1 0 1: {epoch}")
    if failures:
        sys.exit("CHANGED: " + "; ".join(failures))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py"
