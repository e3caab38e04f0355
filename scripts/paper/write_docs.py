#!/usr/bin/env python
"""Write docs/reference/paper.md: the paper's tables beside what this code gives.

    python scripts/paper/write_docs.py

Parameters and multiply-adds are counted here from the configs. Accuracy comes from docs/results/: to record a run, copy
the report.json that eval.py wrote to docs/results/<path of the config with - for />.json, e.g.
docs/results/ablations-sigmoid.json, and run this again.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import torch

from ddfnet import DDF
from ddfnet.models.complexity import Complexity, model_complexity
from ddfnet.tasks import load_config
from ddfnet.tasks.config import Config
from scripts.paper.tables import TABLES, Row, Table
from scripts.paper.task_tables import table_6, table_7

IMAGENET_VAL = 50_000
HEAD = """# The paper, table by table

Written by `python scripts/paper/write_docs.py` from the configs and from `docs/results/`; do not edit by hand.

"Paper" columns are the figures printed by Zhou et al. (CVPR 2021) and its supplement; accuracy is top-1 / top-5 in % on
the ImageNet-1k validation set, at 224 pixels but for the last row of table C. The other columns are this project's:

- **parameters** and **multiply-adds** are counted from the config, and again by the tests. Multiply-adds come from
  PyTorch's `FlopCounterMode`, where a DDF costs one per tap and output. "As papers count" adds 2 per output of a batch
  normalization and 1 per output of a ReLU, as common counters do: the three-digit figures of table 3 come out within
  0.1 %, and the 4.1 B usually printed for ResNet50. The two-digit figures of tables 4 and 5 mix the conventions: each
  is met by one of the two ([`complexity.py`](../ddfnet/models/complexity.py)).
- **measured** is an accuracy reached by this code, with the number of images it was measured on, or "not measured".

Each row is one command: `torchrun --nproc-per-node 8 train.py --config configs/<config> data.root=/data/imagenet`.
"""
# What the paper shows besides the networks above.
TAIL = """
## Tables 2 and A: memory and latency of the operator

The paper's figures, one RTX 2080 Ti in float32. Table 2, for a feature of 2 x 256 x 200 x 300: memory 356.3 MB for a
convolution, 236.0 for a depthwise one, 3406.4 for PAC, 245.7 for DDF; latency 7.5, 1.0, 46.4 and 3.0 ms. Table A, batch
32 with 256 channels, ms:

| size | convolution | depthwise | DDF, the layer | DDF, the operator |
| --- | --- | --- | --- | --- |
| 7 | 0.21 | 0.05 | 0.93 | 0.12 |
| 14 | 0.40 | 0.09 | 0.96 | 0.15 |
| 28 | 2.31 | 0.22 | 1.29 | 0.48 |
| 56 | 4.09 | 0.79 | 2.60 | 1.80 |
| 112 | 16.04 | 3.08 | 9.07 | 7.30 |
| 224 | 82.57 | 11.97 | 37.11 | 28.62 |

`python scripts/benchmarks/op.py` measures ours beside depthwise and dense convolution; what was measured so far, on a
CPU, stands in [`docs/benchmarks/`](benchmarks/). On a GPU: not measured.

{tasks}
## Modern recipes

Not in the paper: recipes that have raised ResNet50 since. The reported figures are for plain ResNet50, by the authors
of the recipes.

{recipes}
## At small scale

[The study](small_study.md) trains the variants of table 3 on small real images, with several seeds, and holds each of
the paper's comparisons against what came out. Small networks and a short training are not the paper's setting; the page
says what came out all the same.
"""


@dataclass(frozen=True)
class Modern:
    config: str
    recipe: str
    reported: str


MODERN = (
    Modern("modern/ddf_resnet50_a2.yaml", "ResNet strikes back A2, 300 epochs", "79.8"),
    Modern("modern/ddf_resnet50_a3.yaml", "ResNet strikes back A3, 100 epochs at 160 px", "78.1"),
    Modern("modern/resnet50_a3.yaml", "the same with ResNet50", "78.1"),
    Modern("modern/ddf_resnet50_v2.yaml", "torchvision V2, 600 epochs at 176 px, EMA", "80.86"),
    Modern("modern/ddf_resnet50_long.yaml", "the paper's, 300 epochs, mixup, CutMix, EMA: our guess", "-"),
    Modern("modern/ddf_resnet50_160_224.yaml", "the paper's, trained at 160 px, tested at 224", "-"),
)


def config_complexity(path: Path) -> Complexity:
    """Complexity of a config's model at its evaluation size, with ImageNet's 1000 classes."""
    config: Config = load_config(path, ["data.root=unused"]).config
    size = config.data.input.size
    return model_complexity(config.model.name, (3, size, size), num_classes=1000, **config.model.kwargs)


def result_path(config: str, folder: Path) -> Path:
    return folder / f"{config.removesuffix('.yaml').replace('/', '-')}.json"


def measured(config: str, folder: Path) -> str:
    """Accuracy of a recorded run of this config, or "not measured".

    Raises:
        ValueError: the recorded report is of another network, or of another input.
    """
    path = result_path(config, folder)
    if not path.is_file():
        return "not measured"
    report = json.loads(path.read_text())
    expected = load_config(ROOT / "configs" / config, ["data.root=unused"]).config
    given = report["preprocessing"]
    for what, found, wanted in (
        ("model", report["model"], expected.model.name),
        ("model arguments", report["model_kwargs"], expected.model.kwargs),
        ("input size", given["input_size"], expected.data.input.size),
        ("crop", given["crop_pct"], expected.data.input.crop_pct),
        ("test-time augmentation", report.get("tta", False), False),
    ):
        if found != wanted:
            raise ValueError(f"{path} reports the {what} {found}, but configs/{config} has {wanted}")
    device = ", ".join(sorted(set(report["environment"]["gpus"]))) or "CPU"
    where = "" if report["n"] == IMAGENET_VAL else f" of {report['n']:,} images, not ImageNet's {IMAGENET_VAL:,}"
    accuracy = f"{report['top1']:.2f} / {report['top5']:.2f}{where}"
    return f"{accuracy} ({device}, {report['date'][:10]}, [report](results/{path.name}))"


def table_markdown(table: Table, costs: dict[str, Complexity], results: Path) -> str:
    lines = [f"\n## {table.title}\n"]
    if table.text:
        lines.append(f"{table.text}\n")
    lines += [
        "| network | config | paper: M parameters, B FLOPs | parameters | B multiply-adds (as papers count) "
        "| paper: top-1 / top-5 | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for row in table.rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" [{notes.index(row.note) + 1}]"
        lines.append(f"| {row.label}{mark} | {_ours(row, costs, results)} |")
    lines += ["", *(f"[{number}] {note}.  " for number, note in enumerate(notes, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _ours(row: Row, costs: dict[str, Complexity], results: Path) -> str:
    printed = f"{row.parameters or '-'}, {row.flops or '-'}"
    accuracy = "-" if row.top1 is None else f"{row.top1}"
    if row.retrained is not None:
        accuracy += f" (retrained {row.retrained})"
    if row.top5 is not None:
        accuracy += f" / {row.top5}"
    if row.config is None:
        return f"none | {printed} | - | - | {accuracy} | -"
    cost = costs[row.config]
    link = f"[{row.config.removesuffix('.yaml')}](../configs/{row.config})"
    counted = f"{cost.multiply_adds / 1e9:.3f} ({cost.printed / 1e9:.3f})"
    return f"{link} | {printed} | {cost.parameters:,} | {counted} | {accuracy} | {measured(row.config, results)}"


def layer_table() -> str:
    """Table 1: parameters of one layer, the paper's formula beside the layer's own."""
    lines = [
        "\n## Table 1: parameters of one layer\n",
        "The paper's formula is c k^2 + sigma c^2 (1 + k^2); ours adds the biases and the learned scale of the channel",
        "filters' normalization, and rounds sigma c down as the released code does.\n",
        "| channels c, k = 3, sigma = 0.2 | convolution c^2 k^2 | depthwise c k^2 | DDF, by the formula | the layer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for c in (64, 256, 512):
        layer = DDF(c, device="meta")
        counts = (9 * c**2, 9 * c, round(9 * c + 0.2 * c**2 * 10), sum(p.numel() for p in layer.parameters()))
        lines.append(f"| {c} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return "\n".join(lines) + "\n"


def modern_table(results: Path) -> str:
    lines = ["| config | recipe | reported for ResNet50 | measured |", "| --- | --- | --- | --- |"]
    for row in MODERN:
        link = f"[{row.config.removesuffix('.yaml')}](../configs/{row.config})"
        lines.append(f"| {link} | {row.recipe} | {row.reported} | {measured(row.config, results)} |")
    return "\n".join(lines) + "\n"


def markdown(results: Path = ROOT / "docs" / "results") -> str:
    configs = sorted({row.config for table in TABLES for row in table.rows if row.config})
    costs: dict[str, Any] = {config: config_complexity(ROOT / "configs" / config) for config in configs}
    tables = "".join(table_markdown(table, costs, results) for table in TABLES)
    tail = TAIL.format(tasks=table_6(results) + table_7(results), recipes=modern_table(results))
    return HEAD + layer_table() + tables + tail


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    (ROOT / "docs" / "paper.md").write_text(markdown())
    print("wrote docs/reference/paper.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
