#!/usr/bin/env bash
# Finding (2026-11): Hugging Face Dataset.select(mask) with a NumPy boolean mask returns rows 0 and 1 over
# and over, as many as the data set has.
#
# Expected: ds.select(confidence > 0.9) either keeps the rows where the mask is true, as NumPy, pandas
#   and PyTorch do, or refuses a mask: the very same mask as a Python list is refused with an error.
# Real: the array goes to Arrow as integers, false is row 0 and true is row 1. The result has the full
#   length and valid features, so a check of len() against the data set, or a glance at the columns,
#   shows nothing wrong. ds[mask] does the same. Both work as wished with np.flatnonzero(mask).
# Why it matters: keeping confident pseudo labels, dropping outliers or bad labels and taking one class
#   are written with masks everywhere else. Here the "filtered" training set is two pictures repeated
#   thousands of times, and the loss goes to zero; as a test set it yields an accuracy of 0, 100 or
#   the share of the mask.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   datasets 5.2.0 numpy 2.4.6 pandas 3.1.1
#   pandas, frame[mask]              : [2, 4, 6]
#   datasets, select(mask)           : [0, 0, 1, 0, 1, 0, 1, 0]
#   datasets, ds[mask]               : [0, 0, 1, 0, 1, 0, 1, 0]
#   datasets, select(mask.tolist())  : ArrowTypeError
#   datasets, select(flatnonzero)    : [2, 4, 6]
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

cat > "$work/check.py" <<'PY'
import sys

import datasets
import numpy as np
import pandas

print("datasets", datasets.__version__, "numpy", np.__version__, "pandas", pandas.__version__)
confidence = np.array([0.1, 0.2, 0.95, 0.3, 0.99, 0.4, 0.97, 0.5])
ds = datasets.Dataset.from_dict({"row": list(range(8)), "confidence": confidence.tolist()})
mask = confidence > 0.9

want = np.flatnonzero(mask).tolist()
by_pandas = ds.to_pandas()[mask]["row"].tolist()
by_select = list(ds.select(mask)["row"])
by_index = list(ds[mask]["row"])
by_number = list(ds.select(np.flatnonzero(mask))["row"])
try:
    by_list = str(list(ds.select(mask.tolist())["row"]))
except Exception as error:
    by_list = type(error).__name__
print("pandas, frame[mask]              :", by_pandas)
print("datasets, select(mask)           :", by_select)
print("datasets, ds[mask]               :", by_index)
print("datasets, select(mask.tolist())  :", by_list)
print("datasets, select(flatnonzero)    :", by_number)

as_numbers = mask.astype(int).tolist()
if by_pandas != want or by_number != want:
    sys.exit("CHANGED: pandas or row numbers give other rows")
if by_select != as_numbers or by_index != as_numbers:
    sys.exit("CHANGED: a NumPy mask is no longer taken as row numbers")
if by_list.startswith("["):
    sys.exit("CHANGED: a list of bool is accepted now")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
