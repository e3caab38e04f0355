"""Drawing of detections, for `python scripts/visualize detections`. Needs matplotlib."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ddfnet.data.decode import open_rgb
from ddfnet.pages.palette import SERIES, ink_on
from ddfnet.tasks.detection.network import load_detector


def draw_detections(images: list[Path], checkpoint: Path, *, threshold: float = 0.5) -> Figure:
    """Boxes, classes and scores of at least the threshold, one panel per image.

    CheckpointError where the checkpoint is of no detector, OSError where an image cannot be read.
    """
    detector, classes = load_detector(checkpoint)
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows), dpi=110, layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, path in zip(panels, images, strict=False):
        pixels = np.array(open_rgb(path.read_bytes()))
        with torch.inference_mode():
            detections = detector([torch.from_numpy(pixels).permute(2, 0, 1) / 255])[0]
        axes.imshow(pixels)
        _draw_boxes(axes, detections, classes, threshold)
        axes.set(xticks=[], yticks=[])
        axes.set_title(path.name, fontsize=8)
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    return figure


def _draw_boxes(axes: Axes, detections: dict[str, Tensor], classes: list[str], threshold: float) -> None:
    for box, label, score in zip(detections["boxes"], detections["labels"], detections["scores"], strict=True):
        if score < threshold:
            continue
        (left, top, right, bottom), color = box.tolist(), SERIES[int(label) % len(SERIES)]
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=1.6))
        text, bbox = f"{classes[int(label) - 1]} {score:.2f}", {"fc": color, "ec": "none", "pad": 1.2}
        axes.text(left, top, text, fontsize=7, color=ink_on(color), va="bottom", bbox=bbox)
