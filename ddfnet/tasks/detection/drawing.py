"""Drawing of detections, for `python scripts/visualize detections`. Needs matplotlib."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from ddfnet.data.decode import open_rgb
from ddfnet.pages.palette import SERIES, ink_on
from ddfnet.tasks.detection.network import load_detector
from ddfnet.utils.text import plural

_FONT = 7.5  # points
_CHARACTER, _LINE = 0.0175, 0.046  # width of a character and height of a line, as parts of a panel


def draw_detections(images: list[Path], checkpoint: Path, *, threshold: float = 0.5) -> Figure:
    """Boxes, classes and scores of at least the threshold, one panel per image.

    CheckpointError where the checkpoint is of no detector, OSError where an image cannot be read.
    """
    detector, classes = load_detector(checkpoint)
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows + 0.3), dpi=110, layout="constrained")
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, path in zip(panels, images, strict=False):
        pixels = np.array(open_rgb(path.read_bytes()))
        with torch.inference_mode():
            detections = detector([torch.from_numpy(pixels).permute(2, 0, 1) / 255])[0]
        axes.imshow(pixels)
        _draw_boxes(axes, detections, classes, threshold, pixels.shape[1], pixels.shape[0])
        axes.set(xticks=[], yticks=[])
        axes.set_title(path.name, fontsize=8)
    for axes in panels[len(images) :]:
        axes.set_axis_off()
    count = plural(len(images), "image")
    figure.suptitle(f"boxes with a score of at least {threshold:g}, n = {count}", fontsize=10)
    return figure


def _draw_boxes(
    axes: Axes, detections: dict[str, Tensor], classes: list[str], threshold: float, width: int, height: int
) -> None:
    """Boxes in an image of this size in pixels, the highest score in front, each with its text at a free corner."""
    taken: list[tuple[float, float, float, float]] = []
    side = max(width, height)  # the panel is as large
    rows = zip(detections["boxes"].tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    shown = sorted((row for row in rows if row[2] >= threshold), key=lambda row: -row[2])
    for order, ((left, top, right, bottom), label, score) in enumerate(shown):
        color, text = SERIES[label % len(SERIES)], f"{classes[label - 1]} {score:.2f}"
        layer = 3 + len(shown) - order
        box = Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=1.8, zorder=layer)
        box.set_path_effects([Stroke(linewidth=3.4, foreground="white"), Normal()])  # seen on any ground
        axes.add_patch(box)
        size = len(text) * _CHARACTER * side, _LINE * side
        x, y = _corner((left, top, right, bottom), size, (width, height), taken)
        style = {"fc": color, "ec": "none", "pad": 1.2}
        axes.text(x, y, text, fontsize=_FONT, color=ink_on(color), va="top", bbox=style, zorder=layer + len(shown))


def _corner(
    box: tuple[float, float, float, float], size: tuple[float, float], image: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:  # fmt: skip
    """Where the text of a box begins, left and top: at the first of its corners where no other text is. `size` of the
    text and of the `image`: width, height."""
    (left, top, right, bottom), (width, height) = box, size
    outside = [(left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom)]
    inside = [(left, top), (left, bottom - height), (right - width, top), (right - width, bottom - height)]
    most_x, most_y = max(image[0] - width, 0), max(image[1] - height, 0)  # what is wider begins at the left
    places = [(min(max(x, 0), most_x), min(max(y, 0), most_y)) for x, y in (*outside, *inside)]
    free = [
        (x, y) for x, y in places
        if not any(x < r and a < x + width and y < b and t < y + height for a, t, r, b in taken)
    ]  # fmt: skip
    x, y = (free or places)[0]
    taken.append((x, y, x + width, y + height))
    return x, y
