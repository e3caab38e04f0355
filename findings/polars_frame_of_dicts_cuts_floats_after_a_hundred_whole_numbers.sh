#!/usr/bin/env bash
# Finding (2026-11): polars.DataFrame(list_of_dicts) cuts 0.75 down to 0 when the first hundred rows had whole numbers there,
# with strict=True as well as by default, and drops every key that comes first in row 101.
#
# Expected: a type that does not fit the one that was found in the first rows is an error. strict is on by default and says
#   so, the maintainers say so when asked, a list given as a column is refused, and so are text, NaN and infinity in
#   a column of whole numbers.
# Real: with dictionaries a fraction is not refused but cut toward zero, alone, in a list and in a nested dictionary; 5 in
#   a column of booleans becomes False (not True); a number in a column of text becomes text. A key that is not in the
#   first hundred dictionaries does not become a column. No warning. polars.from_dicts does the same, and read_ndjson, which
#   refuses the fraction, drops the key.
# Why it matters: records of an evaluation are such lists: one dictionary per image or per run, class by class. JSON
#   writes 1.0 as 1 where JavaScript, jq or a rounding made it; labels of several annotators are [0, 1] for the
#   easy images and [0.25, 0.75] for others. If the first hundred are easy, the mean below is 0.5 where 0.875 is right.
#   With 99 such rows everything is right, so a test on a sample does not show it.
# Way out, checked below: infer_schema_length=None, or a schema.
#
# Versions: polars 2.1.0, Python 3.11. Date: 2026-11.
# Output that was seen:
#   polars 2.1.0
#   last value of 100 rows of one kind and 100 of another
#     1, then 0.75                                 0
#     the same, strict=True                        0
#     the same, from_dicts                         0
#     the same, 99 and 100 rows                    0.75
#     the same, infer_schema_length=None           0.75
#     the same, schema                             0.75
#     the same as one column                       'TypeError'
#     [0, 1], then [0.25, 0.75]                    [0, 0]
#     {'top1': 1}, then {'top1': 0.75}             {'top1': 0}
#     True, then 5                                 False
#     'a', then 5                                  '5'
#     1, then 'a'                                  'ComputeError'
#     1, then NaN                                  'ComputeError'
#     key in row 101, DataFrame                    'no such column'
#     key in row 100, DataFrame                    3
#     key in row 101, read_ndjson                  'no such column'
#     1, then 0.75, read_ndjson                    'ComputeError'
#     mean of 100 times 1 and 100 times 0.75       0.5 (all rows read for the types: 0.875)
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check polars==2.1.0

cat > "$work/check.py" <<'PY'
import json
import os
import sys
import tempfile

import polars

print("polars", polars.__version__)
failures = []


def attempt(make):
    """The last value of the column "value", or the name of the error."""
    try:
        frame = make()
        return frame["value"].to_list()[-1] if "value" in frame.columns else "no such column"
    except Exception as error:
        return type(error).__name__


def row(name, seen, expected):
    print(f"  {name:44s} {seen!r}")
    if repr(seen) != repr(expected):
        failures.append(f"{name}: {seen!r}, not {expected!r}")


def records(early, late, number=100):
    return [{"value": early}] * number + [{"value": late}] * 100


print("last value of 100 rows of one kind and 100 of another")
row("1, then 0.75", attempt(lambda: polars.DataFrame(records(1, 0.75))), 0)
row("the same, strict=True", attempt(lambda: polars.DataFrame(records(1, 0.75), strict=True)), 0)
row("the same, from_dicts", attempt(lambda: polars.from_dicts(records(1, 0.75))), 0)
row("the same, 99 and 100 rows", attempt(lambda: polars.DataFrame(records(1, 0.75, 99))), 0.75)
row("the same, infer_schema_length=None", attempt(lambda: polars.DataFrame(records(1, 0.75), infer_schema_length=None)), 0.75)
row("the same, schema", attempt(lambda: polars.DataFrame(records(1, 0.75), schema={"value": polars.Float64})), 0.75)
row("the same as one column", attempt(lambda: polars.DataFrame({"value": [1] * 100 + [0.75] * 100})), "TypeError")
row("[0, 1], then [0.25, 0.75]", attempt(lambda: polars.DataFrame(records([0, 1], [0.25, 0.75]))), [0, 0])
row("{'top1': 1}, then {'top1': 0.75}", attempt(lambda: polars.DataFrame(records({"top1": 1}, {"top1": 0.75}))), {"top1": 0})
row("True, then 5", attempt(lambda: polars.DataFrame(records(True, 5))), False)
row("'a', then 5", attempt(lambda: polars.DataFrame(records("a", 5))), "5")
row("1, then 'a'", attempt(lambda: polars.DataFrame(records(1, "a"))), "ComputeError")
row("1, then NaN", attempt(lambda: polars.DataFrame(records(1, float("nan")))), "ComputeError")

late_key = [{"file": f"{number}.png"} for number in range(100)] + [{"file": "100.png", "value": 3}]
row("key in row 101, DataFrame", attempt(lambda: polars.DataFrame(late_key)), "no such column")
row("key in row 100, DataFrame", attempt(lambda: polars.DataFrame(late_key[1:])), 3)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "metadata.jsonl")
    for name, rows, expected in (("key in row 101", late_key, "no such column"), ("1, then 0.75", records(1, 0.75), "ComputeError")):
        with open(path, "w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in rows)
        row(f"{name}, read_ndjson", attempt(lambda: polars.read_ndjson(path)), expected)
means = [polars.DataFrame(records(1, 0.75), infer_schema_length=length)["value"].mean() for length in (100, None)]
print(f"  mean of 100 times 1 and 100 times 0.75       {means[0]} (all rows read for the types: {means[1]})")
if means != [0.5, 0.875]:
    failures.append(f"means {means}")
if failures:
    sys.exit("CHANGED: " + "; ".join(failures))
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py"
