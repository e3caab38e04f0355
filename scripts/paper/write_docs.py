#!/usr/bin/env python
"""Fill the tables of docs/reference/paper.md: what the paper prints beside what this code gives.

    python scripts/paper/write_docs.py

Parameters and multiply-adds are counted here from the configs. Accuracy comes from docs/results/: to record a run, copy
the report.json that eval.py wrote to docs/results/<path of the config with - for />.json, e.g.
docs/results/ablations-sigmoid.json, and run this again.
"""

import argparse
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddfnet import DDF
from ddfnet.config.reader import read_yaml
from ddfnet.models.complexity import Complexity, model_complexity
from ddfnet.tasks import load_config
from ddfnet.tasks.depth.network import DDFUpNet
from ddfnet.tasks.detection.pyramid import upsampler
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import write_text

PAGE, RESULTS = ROOT / "docs" / "reference" / "paper.md", ROOT / "docs" / "results"
IMAGENET_VAL = 50_000
METRICS = {
    "classification": ("top1", "top5"),
    "detection": ("map_small", "map_medium", "map_large", "map"),
    "depth": ("rmse",),
}
# The levels that the pyramid upsamples for an image of 1280 x 800 pixels, the size of table 6.
LOW_RESOLUTION = ((40, 25), (80, 50), (160, 100))


@dataclass(frozen=True)
class Row:
    """One row of a table, with the figures that the paper prints."""

    label: str
    config: str | None = None  # YAML below configs/; where this project has no such network, `note` says why
    parameters: str | None = None  # millions
    flops: str | None = None  # billions of multiply-adds
    top1: float | None = None  # %, ImageNet validation set at 224 pixels; so is top5
    top5: float | None = None
    retrained: float | None = None  # top-1 of a baseline with the authors' recipe, where `top1` is an older report
    note: str | None = None  # shown under the table


def _rows(values: list[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(Row(**row | ({"note": _values["notes"][row["note"]]} if "note" in row else {})) for row in values)


_values, _ = read_yaml(Path(__file__).with_name("tables.yaml"))
TABLES = {part: _rows(rows) for part, rows in _values["tables"].items()}
MODERN = _rows(_values["recipes"])
DETECTION: dict[str, tuple[str, str]] = _values["detection"]


@functools.cache
def config_complexity(path: Path) -> Complexity:
    """Complexity of a config's model at its evaluation size, with ImageNet's 1000 classes."""
    config = load_config(path, ["data.root=unused"]).config
    return model_complexity(config.model.name, config.data.input.input_size, num_classes=1000, **config.model.kwargs)


def result_path(config: str, folder: Path) -> Path:
    """Where the report of a config is recorded."""
    return folder / f"{config.removesuffix('.yaml').replace('/', '-')}.json"


def measured(config: str, folder: Path) -> str:
    """Metrics of a recorded run of this config, or "not measured"; ValueError if its task, network or input differ."""
    path = result_path(config, folder)
    if not path.is_file():
        return "not measured"
    report = json.loads(path.read_text())
    expected = load_config(ROOT / "configs" / config, ["data.root=unused"]).config
    pairs = {"task": (report.get("task", "classification"), expected.task)}
    images = f", n = {report['n']:,}"
    if expected.task == "classification":
        given, size = report["preprocessing"], expected.data.input
        pairs["model"] = report["model"], expected.model.name
        pairs["model arguments"] = report["model_kwargs"], expected.model.kwargs
        pairs["input size"] = given["input_size"], size.size
        pairs["crop"] = given["crop_pct"], size.crop_pct
        pairs["test-time augmentation"] = report.get("tta", False), False
        whole = report["n"] == IMAGENET_VAL
        images = "" if whole else f" of {report['n']:,} images, not ImageNet's {IMAGENET_VAL:,}"
    for what, (reported, wanted) in pairs.items():
        if reported != wanted:
            raise ValueError(f"{path} reports the {what} {reported}, but configs/{config} has {wanted}")
    values = " / ".join(f"{report[key]:.2f}" for key in METRICS[expected.task])
    device = ", ".join(sorted(set(report["environment"]["gpus"]))) or "CPU"
    return f"{values}{images} ({device}, {report['date'][:10]}, [report](../results/{path.name}))"


def link(config: str) -> str:
    """A link to a config."""
    return f"[{config.removesuffix('.yaml')}](../../configs/{config})"


def table_1() -> str:
    """Parameters of one layer, the paper's formula beside the layer's own."""
    rows = []
    for c in (64, 256, 512):
        layer = sum(p.numel() for p in DDF(c, device="meta").parameters())
        rows.append([c, *(f"{count:,}" for count in (9 * c**2, 9 * c, round(9 * c + 0.2 * c**2 * 10), layer))])
    layers = ("convolution c^2 k^2", "depthwise c k^2", "DDF, by the formula", "the layer")
    return markdown.table(("channels c, k = 3, sigma = 0.2", *layers), rows)


def classification_table(rows: tuple[Row, ...], results: Path) -> str:
    """One of `TABLES`, with its notes below."""
    head = (
        *("network", "config", "paper: M parameters, B FLOPs", "parameters"),
        *("B multiply-adds (as papers count)", "paper: top-1 / top-5", "measured"),
    )
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    lines = []
    for row in rows:
        label = f"{row.label} [{notes.index(row.note) + 1}]" if row.note else row.label
        printed = f"{row.parameters or '-'}, {row.flops or '-'}"
        accuracy = "-" if row.top1 is None else f"{row.top1}"
        accuracy += f" (retrained {row.retrained})" if row.retrained is not None else ""
        accuracy += f" / {row.top5}" if row.top5 is not None else ""
        config, parameters, counted, result = "none", "-", "-", "-"
        if row.config is not None:
            cost = config_complexity(ROOT / "configs" / row.config)
            config, parameters, result = link(row.config), f"{cost.parameters:,}", measured(row.config, results)
            counted = f"{cost.multiply_adds / 1e9:.3f} ({cost.printed / 1e9:.3f})"
        lines.append((label, config, printed, parameters, counted, accuracy, result))
    below = "\n".join(f"[{number}] {note}.  " for number, note in enumerate(notes, 1))
    return f"{markdown.table(head, lines)}\n{below}"


def table_6(results: Path) -> str:
    """Detection, by the upsampling of the feature pyramid."""
    rows = []
    for name, (flops, accuracy) in DETECTION.items():
        config = f"detection/faster_rcnn_r50_fpn_{name}.yaml"
        cost = f"{upsampling_cost(name) / 1e9:.3f}"
        rows.append((name, link(config), flops, cost, accuracy, measured(config, results)))
    extra = "detection/faster_rcnn_ddf50_fpn_ddfup.yaml"
    rows.append(("ddfup, with DDF-ResNet50", link(extra), "-", "-", "-", measured(extra, results)))
    head = ("upsampling", "config", "paper: B FLOPs", "B multiply-adds", "paper: mAP, S / M / L / all", "measured")
    return markdown.table(head, rows)


def upsampling_cost(name: str, channels: int = 256) -> int:
    """Multiply-adds of the pyramid's upsampling for an image of 1280 x 800 pixels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module = upsampler(name, channels)
        for size in LOW_RESOLUTION:
            module(torch.empty(1, channels, *size))
    return counter.get_total_flops() // 2


def table_7(results: Path) -> str:
    """The networks of joint depth upsampling."""
    rows = []
    for factor in (4, 8, 16):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in DDFUpNet(factor).parameters())
        config = f"depth/ddf_up_net_x{factor}.yaml"
        rows.append((f"x{factor}", link(config), f"{parameters:,}", measured(config, results)))
    return markdown.table(("upscale factor", "config", "parameters", "measured"), rows)


def page(results: Path = RESULTS) -> str:
    """docs/reference/paper.md."""
    parts = {name: classification_table(rows, results) for name, rows in TABLES.items()}
    parts |= {"table 1": table_1(), "table 6": table_6(results), "table 7": table_7(results)}
    modern = [(link(row.config), row.label, row.top1 or "-", measured(row.config, results)) for row in MODERN]
    parts["recipes"] = markdown.table(("config", "recipe", "reported for ResNet50", "measured"), modern)
    return markdown.fill(PAGE.read_text(), parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    torch.set_num_threads(1)
    write_text(PAGE, page())
    print("wrote docs/reference/paper.md")
