#!/usr/bin/env bash
# Finding (2026-11): stream.take(200) and stream.skip(200) of a Hugging Face IterableDataset overlap as soon as
# the two DataLoaders have different numbers of workers: half of the validation set is trained on.
#
# Expected: take(n) is the first n rows and skip(n) all others, which is why the pair is the usual way to
#   split a stream. How many processes read it is a matter of speed and does not change which rows they are;
#   without take and skip, any number of workers gives the same rows.
# Real: the shards are dealt out to the workers first, and n is then divided among the workers. With 4 workers
#   and 8 shards, skip(200) is the stream without the first 50 rows of each worker's shards, take(200) with no
#   workers is the first 200 rows, all in the first two shards. Half of the one is inside the other, and as many
#   rows are in neither. With shuffle(seed=0) before the split one shard is enough, since each worker shuffles
#   with another seed. Both parts have the right number of rows, and nothing is said. With equal
#   numbers of workers the parts do not overlap, but another number of workers is another validation set.
# Why it matters: a validation loader with fewer workers than the training loader is common (0 in notebooks and
#   for a short set), and the only sign is an accuracy that is too good. Runs with different worker counts are
#   also not validated on the same images.
# Way out, checked below: give whole shards to each side with stream.shard().
#
# Versions: datasets 5.2.0, torch 2.14.1, pyarrow 26.0.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0 torch 2.14.1
#   shards  shuffle  workers val/train  rows val/train  in both  in neither
#        8  False    0 / 0              200 / 800             0           0
#        8  False    2 / 2              200 / 800             0           0
#        8  False    0 / 4              200 / 800           100         100
#        8  False    2 / 4              200 / 800           100         100
#        8  True     2 / 4              200 / 800            89          89
#        1  False    0 / 4              200 / 800             0           0
#        1  True     0 / 4              200 / 800            28          28
#   whole shards held out: 125 / 875, in both 0
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 torch==2.14.1 pyarrow==26.0.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import importlib.metadata
import logging
import sys
import warnings

import datasets
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
datasets.logging.set_verbosity(logging.ERROR)
ROWS, HELD = 1000, 200
source = datasets.Dataset.from_dict({"row": list(range(ROWS))})


def rows(part, workers):
    return {int(row) for batch in DataLoader(part, batch_size=50, num_workers=workers) for row in batch["row"]}


def main():
    print(*(f"{name} {importlib.metadata.version(name)}" for name in ("datasets", "torch")))
    failures = []
    print("shards  shuffle  workers val/train  rows val/train  in both  in neither")
    for shards, shuffle, val_workers, train_workers, leaks in (
        (8, False, 0, 0, False),
        (8, False, 2, 2, False),
        (8, False, 0, 4, True),
        (8, False, 2, 4, True),
        (8, True, 2, 4, True),
        (1, False, 0, 4, False),
        (1, True, 0, 4, True),
    ):
        stream = source.to_iterable_dataset(num_shards=shards)
        if shuffle:
            stream = stream.shuffle(seed=0, buffer_size=100)
        val, train = rows(stream.take(HELD), val_workers), rows(stream.skip(HELD), train_workers)
        both, neither = len(val & train), ROWS - len(val | train)
        print(
            f"{shards:6d}  {shuffle!s:7s}  {val_workers} / {train_workers}              "
            f"{len(val)} / {len(train)}       {both:7d}  {neither:10d}"
        )
        if len(val) != HELD or len(train) != ROWS - HELD or (both >= 20) != leaks or both != neither:
            failures.append(f"{shards} shards, workers {val_workers} / {train_workers}: {both} in both")
    # The way out: give whole shards to each side.
    stream = source.to_iterable_dataset(num_shards=8)
    val = rows(stream.shard(num_shards=8, index=0), 1)
    train = set().union(*(rows(stream.shard(num_shards=8, index=index), 1) for index in range(1, 8)))
    print(f"whole shards held out: {len(val)} / {len(train)}, in both {len(val & train)}")
    if val & train or len(val | train) != ROWS:
        failures.append("whole shards overlap")
    if failures:
        sys.exit("CHANGED: " + "; ".join(failures))
    print("OK: behavior is as described")


if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/check.py"
