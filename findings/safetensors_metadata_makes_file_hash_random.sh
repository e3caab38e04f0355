#!/usr/bin/env bash
# Finding (2026-11): with two or more metadata entries, every save of the same tensors by safetensors
# gives another file; with none or one it is the same to the byte.
#
# Expected: saving is a pure function of its input. The format is sold on simplicity, tensors are
#   sorted, no time stamp is stored, and the same dictionary in another order does give equal files.
# Real: the entries of "__metadata__" are written in the order of a hash table with a random seed, so
#   the order changes from call to call, inside one process too. Twenty saves of one dictionary with
#   eight entries give twenty different SHA-256 sums. The tensor bytes are equal; only the header
#   moves. Most people see stable hashes at first, because {"format": "pt"} alone is one entry.
# Why it matters: model zoos name and verify weights by their hash, build caches and data version
#   control compare files by content, and "export twice, compare the sums" is a usual test for
#   reproducible releases. As soon as the model name, accuracy or class names go into the metadata,
#   equal weights get unequal names, and uploads that should have been skipped are repeated. Compare
#   or hash the tensors instead, or keep one metadata entry that holds a JSON text (checked below).
#
# Versions: safetensors 0.8.0, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen (the count of the third line can differ):
#   safetensors 0.8.0 numpy 2.4.6
#   no metadata                : 1 file of 20 saves
#   1 entry                    : 1 file of 20 saves
#   2 entries                  : 2 different files of 20 saves
#   8 entries                  : 20 different files of 20 saves
#   8 entries as one JSON text : 1 file of 20 saves
#   tensors in another order   : equal files True
#   bytes after the header     : equal in all True
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import hashlib
import json
import sys

import numpy as np
import safetensors
from safetensors.numpy import save

print("safetensors", safetensors.__version__, "numpy", np.__version__)
weights = {"fc.weight": np.ones((3, 2), np.float32), "fc.bias": np.zeros(3, np.float32)}
entries = {f"field_{number}": str(number) for number in range(8)}


def files(metadata, repeats=20):
    return [save(weights, metadata=metadata) for _ in range(repeats)]


def body(blob):
    return blob[8 + int.from_bytes(blob[:8], "little") :]


counts = {}
for name, metadata in {
    "no metadata": None,
    "1 entry": {"format": "pt"},
    "2 entries": {"format": "pt", "model": "resnet18"},
    "8 entries": entries,
    "8 entries as one JSON text": {"info": json.dumps(entries, sort_keys=True)},
}.items():
    saved = files(metadata)
    counts[name] = len({hashlib.sha256(blob).hexdigest() for blob in saved})
    text = "1 file" if counts[name] == 1 else f"{counts[name]} different files"
    print(f"{name:27s}: {text} of 20 saves")
    if name == "8 entries":
        same_body = len({body(blob) for blob in saved}) == 1
swapped = save(dict(reversed(weights.items()))) == save(weights)
print(f"{'tensors in another order':27s}: equal files {swapped}")
print(f"{'bytes after the header':27s}: equal in all {same_body}")

stable = [counts["no metadata"], counts["1 entry"], counts["8 entries as one JSON text"]]
if stable != [1, 1, 1] or not swapped or not same_body:
    sys.exit("CHANGED: saves that were stable no longer are")
if counts["8 entries"] == 1:
    sys.exit("CHANGED: the order of the metadata is stable now")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
