#!/usr/bin/env bash
# Finding (2026-11): in webdataset 1.0.2, WebDataset(..., shardshuffle=N) draws the order of the shards
# once; every further epoch of that object replays it. Version 0.2.86 drew anew each epoch.
#
# Expected: shardshuffle shuffles the shards in each epoch, as before; seed= makes the sequence of
#   epochs repeatable, as it does for PyTorch's samplers, without making the epochs equal.
# Real: the object picks one seed when it is made, the one given or a random one, and starts a fresh
#   generator from it each time it is iterated. So all epochs have the same shard order, with and
#   without a seed. .shuffle(buffer, seed=3) is built the same way: with seeds at both places, which
#   is what reproducible training asks for, the samples come in exactly the same order in every
#   epoch. Only .shuffle() without a seed still moves samples, but inside its buffer, so shards that
#   are far apart never meet. And with resampled=True, seed= does nothing: two objects with one seed
#   give different samples. detshuffle=True is the mode that is random by epoch and repeatable.
# Why it matters: nothing warns and the loss looks normal, but batches are made of the same neighbors
#   for the whole training, which costs accuracy just where webdataset is used: many shards, small
#   buffers, data written class by class.
#
# Versions: webdataset 0.2.86 and 1.0.2, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen (orders without a seed differ from run to run):
#   webdataset 0.2.86
#     shardshuffle=6                     6 different of 6 epochs, shards ['134025', '430251', '503412']
#   webdataset 1.0.2
#     shardshuffle=6                     1 different of 6 epochs, shards ['150342', '150342', '150342']
#     shardshuffle=6, seed=7             1 different of 6 epochs, same in a second object: True, shards ['213504', '213504', '213504']
#     the same and .shuffle(20, seed=3)  1 different of 6 epochs, same in a second object: True
#     detshuffle=True, seed=7            6 different of 6 epochs, same in a second object: True
#     resampled=True, seed=7             6 different of 6 epochs, same in a second object: False
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cat > "$work/check.py" <<'PY'
import importlib.metadata
import io
import os
import sys
import tarfile
import warnings

import webdataset

warnings.simplefilter("ignore")
VERSION = importlib.metadata.version("webdataset")
OLD = VERSION == "0.2.86"
print("webdataset", VERSION)
base, SHARDS, EACH = sys.argv[1], 6, 10
if not os.path.exists(f"{base}/0.tar"):
    for shard in range(SHARDS):
        with tarfile.open(f"{base}/{shard}.tar", "w") as archive:
            for number in range(EACH):
                content = f"{shard}{number}".encode()
                entry = tarfile.TarInfo(f"{shard}_{number}.txt")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
URL = f"{base}/{{0..{SHARDS - 1}}}.tar"


def epochs(make, count=6):
    source = make()
    return [[sample["txt"].decode() for sample in source] for _ in range(count)]


def shards(epoch):
    return "".join(name[0] for name in epoch[::EACH])


def plain():
    return webdataset.WebDataset(URL, shardshuffle=SHARDS)


def seeded():
    return webdataset.WebDataset(URL, shardshuffle=SHARDS, seed=7)


def seeded_twice():
    return webdataset.WebDataset(URL, shardshuffle=SHARDS, seed=7).shuffle(20, seed=3)


def deterministic():
    return webdataset.WebDataset(URL, shardshuffle=SHARDS, detshuffle=True, seed=7)


def resampled():
    return webdataset.WebDataset(URL, resampled=True, shardshuffle=False, seed=7).with_epoch(SHARDS * EACH)


failures = []
cases = [("shardshuffle=6", plain, 6 if OLD else 1, None)]
if not OLD:
    cases += [
        ("shardshuffle=6, seed=7", seeded, 1, True),
        ("the same and .shuffle(20, seed=3)", seeded_twice, 1, True),
        ("detshuffle=True, seed=7", deterministic, 6, True),
        ("resampled=True, seed=7", resampled, 6, False),
    ]
for name, make, expected, repeatable in cases:
    first, second = epochs(make), epochs(make)
    different = len({tuple(epoch) for epoch in first})
    text = f"  {name:34s} {different} different of 6 epochs"
    if repeatable is not None:
        text += f", same in a second object: {first == second}"
        if (first == second) != repeatable:
            failures.append(f"{name}: repeatable {first == second}")
    if make is plain or make is seeded:
        text += f", shards {[shards(epoch) for epoch in first[:3]]}"
    print(text)
    # Six draws of one of 720 orders: five or six differ, unless the order is frozen.
    if (different != 1) if expected == 1 else (different < 4):
        failures.append(f"{name}: {different} different epochs")
if failures:
    sys.exit(f"CHANGED in webdataset {VERSION}: " + "; ".join(failures))
PY

mkdir "$work/data"
for version in 0.2.86 1.0.2; do
  python3 -m venv "$work/venv-$version"
  "$work/venv-$version/bin/python" -m pip install --quiet --disable-pip-version-check \
    "webdataset==$version" numpy==2.4.6
  "$work/venv-$version/bin/python" "$work/check.py" "$work/data"
done
echo "OK: behavior is as described"
