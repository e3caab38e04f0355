"""Figure of `python scripts/visualize filters`: the filters that a DDF layer predicts."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from ddfnet import DDF
from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.decode import open_image
from ddfnet.data.preprocessing import eval_transform
from ddfnet.layers.inspection import inspect_layers
from ddfnet.models.classifier import load_classifier
from ddfnet.pages.pack import shown_as_rgb
from ddfnet.pages.palette import BLUE, SERIES, VERMILLION
from ddfnet.utils.errors import UserError

_GRID = 3


def draw_filters(
    image: Path, checkpoint: str, model: str | None, layer: str | None, points: list[tuple[int, int]] | None
) -> Figure:
    """The image with marked points, the filter at each, and maps of each tap.

    The image goes through the evaluation's preprocessing; points are pixels (x, y) of the network's input. UserError
    where there is no such layer or point, or the checkpoint cannot be used; OSError for the image.
    """
    loaded = load_classifier(checkpoint, model=model)
    channels, high, wide = loaded.preprocessing.input_size
    pixels = eval_transform(loaded.preprocessing)(open_image(image.read_bytes(), channels))
    if points is None:
        across, down = ([side * (2 * i + 1) // (2 * _GRID) for i in range(_GRID)] for side in (wide, high))
        points = [(x, y) for y in down for x in across]
    for x, y in points:
        if not (0 <= x < wide and 0 <= y < high):
            raise UserError(f"--points {x},{y} is outside the {high} x {wide} pixels of the input")
    name, ddf = _find(loaded.network, layer)
    batch = EvalBatchTransform(loaded.preprocessing, device="cpu", channels_last=True)({"image": pixels[None]})
    k = ddf.kernel_size
    (seen,) = inspect_layers(loaded.network, partial(loaded.network, batch["image"]), [name])
    filters = seen.spatial[0].unflatten(1, (k, k))
    height, width = filters.shape[-2:]
    title = f"{name}: filters of {k} x {k} taps at {height} x {width} positions"
    return _draw(pixels, filters, points, title)


def _find(network: nn.Module, name: str | None) -> tuple[str, DDF]:
    layers = {n: m for n, m in network.named_modules() if isinstance(m, DDF) and m.spatial_branch is not None}
    if not layers:
        raise UserError(f"this {type(network).__name__} has no DDF with spatial filters: choose another checkpoint")
    if name is None:
        name = next((n for n, m in layers.items() if m.stride == 1), next(iter(layers)))
    if name not in layers:
        raise UserError(f"--layer {name}: there are {', '.join(layers)}")
    return name, layers[name]


def _draw(pixels: Tensor, filters: Tensor, points: list[tuple[int, int]], title: str) -> Figure:
    heads, k, _, height, width = filters.shape
    values = filters[0].numpy()  # the first head: the others are of the same kind
    limit = float(np.abs(values).max()) or 1.0
    cmap = LinearSegmentedColormap.from_list("filters", [BLUE, "white", VERMILLION])  # as in the pages
    colors = {"cmap": cmap, "vmin": -limit, "vmax": limit}
    high, wide = pixels.shape[-2:]

    columns = max(3, int(np.ceil(np.sqrt(len(points)))))
    figure = Figure(figsize=(13, 4.6), dpi=110, layout="constrained")
    left, at_points, over_image = figure.subfigures(1, 3, width_ratios=(1, 1, 1.12))
    figure.suptitle(f"{title}{f', the first of {heads} heads' if heads > 1 else ''}", fontsize=11)

    axes = left.subplots()
    axes.imshow(shown_as_rgb(pixels.permute(1, 2, 0).numpy()))
    left.suptitle("network's input", fontsize=10)
    axes.set(xticks=[], yticks=[])
    at_points.suptitle("filter at each point", fontsize=10)
    grid = np.ravel(at_points.subplots(-(-len(points) // columns), columns))
    for own in grid[len(points) :]:
        own.set_axis_off()
    for number, ((x, y), own) in enumerate(zip(points, grid, strict=False)):
        color = SERIES[number % len(SERIES)]
        axes.plot(x, y, "o", ms=13, color="white", mec=color, mew=2)
        axes.text(x, y, str(number + 1), ha="center", va="center", fontsize=8, color="black")
        own.imshow(values[:, :, y * height // high, x * width // wide], **colors)
        own.set_title(str(number + 1), fontsize=8, color=color, pad=2)
        own.set(xticks=[], yticks=[])

    over_image.suptitle("each tap over the image", fontsize=10)
    panels = over_image.subplots(k, k)
    for at in np.ndindex(k, k):
        shown = panels[at].imshow(values[at], **colors)
        panels[at].set(xticks=[], yticks=[])
    over_image.colorbar(shown, ax=panels, shrink=0.8)
    return figure
