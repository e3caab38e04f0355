"""The paper's tables 6 (detection) and 7 (joint depth upsampling) as data, and as Markdown beside what this code gives.

Source of every printed figure: Zhou et al., CVPR 2021, tables 6 and 7.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddfnet.tasks.depth.network import DDFUpNet
from ddfnet.tasks.detection.pyramid import upsampler

# The levels that the pyramid upsamples for a image of 1280 x 800 pixels, the size of table 6.
LOW_RESOLUTION = ((40, 25), (80, 50), (160, 100))


@dataclass(frozen=True)
class DetectionRow:
    """Upsampling by name (see `upsampler`), B FLOPs as printed, COCO mAP of small, medium, large and all objects, %."""

    upsampling: str
    flops: str
    small: float
    medium: float
    large: float
    all: float

    @property
    def config(self) -> str:
        return f"detection/faster_rcnn_r50_fpn_{self.upsampling}.yaml"


TABLE_6 = (
    DetectionRow("nearest", "0.00", 21.2, 41.0, 48.1, 37.4),
    DetectionRow("bilinear", "0.02", 22.1, 41.2, 48.4, 37.6),
    DetectionRow("deconv", "12.57", 21.0, 41.1, 48.5, 37.3),
    DetectionRow("pixelshuffle", "50.18", 21.4, 41.5, 48.6, 37.7),
    DetectionRow("carafe", "2.14", 22.6, 42.0, 49.8, 38.5),
    DetectionRow("ddfup", "0.58", 22.1, 42.4, 49.9, 38.6),
)
# Method -> RMSE x 1e-2 m on NYU Depth V2, upsampled 4, 8 and 16 times.
TABLE_7 = {
    "bicubic": (8.16, 14.22, 22.32),
    "MRF": (7.84, 13.98, 22.20),
    "guided filter": (7.32, 13.62, 22.03),
    "Ham": (5.27, 12.31, 19.24),
    "FBS": (4.29, 8.94, 14.59),
    "JBU": (4.07, 8.29, 13.35),
    "DMSG": (3.78, 6.37, 11.16),
    "DJF": (3.54, 6.20, 10.21),
    "DJF+": (3.38, 5.86, 10.11),
    "PAC-Net": (2.39, 4.59, 8.09),
    "DDF-Up-Net": (2.16, 4.40, 7.72),
}
FACTORS = (4, 8, 16)


def upsampling_cost(name: str, channels: int = 256) -> int:
    """Multiply-adds of the pyramid's upsampling for a image of 1280 x 800 pixels."""
    with torch.device("meta"):
        module = upsampler(name, channels)
        levels = [torch.empty(1, channels, *size) for size in LOW_RESOLUTION]
    with FlopCounterMode(display=False) as counter:
        for level in levels:
            module(level)
    return counter.get_total_flops() // 2


def table_6(results: Path) -> str:
    """Table 6; a recorded `report.json` of eval.py fills its last column."""
    lines = [
        "\n## Table 6: detection, upsampling in the feature pyramid\n",
        "Faster R-CNN, ResNet50, COCO minival. DDF-Up's channel branch, once per image, is not in the printed FLOPs; "
        "interpolation is not counted by `FlopCounterMode`.\n",
        "| upsampling | config | paper: B FLOPs | B multiply-adds | paper: mAP, S / M / L / all | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in TABLE_6:
        link = f"[{row.config.removesuffix('.yaml')}](../configs/{row.config})"
        cost = f"{upsampling_cost(row.upsampling) / 1e9:.3f}"
        printed = f"{row.small} / {row.medium} / {row.large} / {row.all}"
        keys = ("map_small", "map_medium", "map_large", "map")
        lines.append(
            f"| {row.upsampling} | {link} | {row.flops} | {cost} | {printed} | {_measured(row.config, keys, results)} |"
        )
    extra = "detection/faster_rcnn_ddf50_fpn_ddfup.yaml"
    link = f"[{extra.removesuffix('.yaml')}](../configs/{extra})"
    lines.append(f"| ddfup, with DDF-ResNet50 | {link} | - | - | - | {_measured(extra, keys, results)} |")
    return "\n".join(lines) + "\n"


def table_7(results: Path) -> str:
    """Table 7; a recorded `report.json` of eval.py fills its measured columns."""
    configs = [f"depth/ddf_up_net_x{factor}.yaml" for factor in FACTORS]
    lines = [
        "\n## Table 7: joint depth upsampling, NYU Depth V2\n",
        "RMSE in centimeters, 449 test pairs, by the paper:\n",
        "| method | " + " | ".join(f"x{factor}" for factor in FACTORS) + " |",
        "| --- | --- | --- | --- |",
        *(f"| {method} | {' | '.join(f'{value:.2f}' for value in values)} |" for method, values in TABLE_7.items()),
        "",
        "| ours | config | parameters | measured |",
        "| --- | --- | --- | --- |",
    ]
    for factor, config in zip(FACTORS, configs, strict=True):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in DDFUpNet(factor).parameters())
        link = f"[{config.removesuffix('.yaml')}](../configs/{config})"
        lines.append(f"| x{factor} | {link} | {parameters:,} | {_measured(config, ('rmse',), results)} |")
    lines += ["\nWhich details are our reading: [`joint_upsampler.py`](../ddfnet/models/joint_upsampler.py)."]
    return "\n".join(lines) + "\n"


def _measured(config: str, keys: tuple[str, ...], results: Path) -> str:
    path = results / f"{config.removesuffix('.yaml').replace('/', '-')}.json"
    if not path.is_file():
        return "not measured"
    report = json.loads(path.read_text())
    if report["task"] != config.partition("/")[0]:
        raise ValueError(f"{path} reports the task {report['task']}, but configs/{config} is another")
    values = " / ".join(f"{report[key]:.2f}" for key in keys)
    device = ", ".join(sorted(set(report["environment"]["gpus"]))) or "CPU"
    return f"{values}, n = {report['n']:,} ({device}, {report['date'][:10]}, [report](results/{path.name}))"
