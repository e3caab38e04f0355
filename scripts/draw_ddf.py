#!/usr/bin/env python
"""Draw the decoupled dynamic filter operation: the figure of the README.

    python scripts/draw_ddf.py --output docs/images/ddf.png

Every map and number in it comes from a small `ddfnet.DDF` layer applied to a smooth feature map. The same picture each
time. Exit code 2 if matplotlib is missing.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
except ImportError:
    print("draw_ddf: matplotlib is missing: pip install matplotlib", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch

from ddfnet import DDF

WIDTH, HEIGHT, DPI = 18.0, 9.3, 100  # inches, which are also the units of the drawing, and pixels per inch
CHANNELS, SIZE = 5, 6
CHANNEL, ROW, COLUMN = 0, 2, 3  # the highlighted channel c and pixel i

INK, MUTED, LINE = "#1F2933", "#5F6C7B", "#9AA5B1"
SPATIAL, CHANNELWISE, COMBINED = "#D9730D", "#1F6FB5", "#7A3E9D"
NEGATIVE = "#7B8794"  # the same grey under each hue: colour says whose filter it is, grey which taps are below zero
FONT = {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"}  # both come with matplotlib


@dataclass(frozen=True)
class Example:
    """One DDF layer at work, as float32 arrays.

    x: (C, H, W) input; spatial: (H, W, k, k), one filter per pixel; channel: (C, k, k), one per channel; y: (C, H, W).
    """

    x: np.ndarray
    spatial: np.ndarray
    channel: np.ndarray
    y: np.ndarray

    @property
    def combined(self) -> np.ndarray:
        """(k, k): the filter of the highlighted pixel and channel."""
        return self.spatial[ROW, COLUMN] * self.channel[CHANNEL]

    @property
    def patch(self) -> np.ndarray:
        """(k, k): what that filter is applied to."""
        return self.x[CHANNEL, ROW - 1 : ROW + 2, COLUMN - 1 : COLUMN + 2]


def compute_example(seed: int = 0) -> Example:
    """Runs a freshly initialised layer on a smooth, positive feature map."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / (SIZE - 1)
    phases = np.arange(CHANNELS)[:, None, None]
    x = 0.5 + 0.5 * np.sin(2.6 * columns + 1.9 * phases + 1.0) * np.cos(3.1 * rows - 1.3 * phases - 0.4)
    x = torch.from_numpy(x.astype(np.float32))[None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        layer = DDF(CHANNELS, squeeze_ratio=1.0)
        spatial = layer.spatial_branch(x).view(3, 3, SIZE, SIZE).permute(2, 3, 0, 1)
        channel = layer.channel_branch(x).view(CHANNELS, 3, 3)
        return Example(x[0].numpy(), spatial.numpy(), channel.numpy(), layer(x)[0].numpy())


def draw(example: Example) -> Figure:
    """The whole figure."""
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")
        panel = FancyBboxPatch(
            (0.06, 0.06),
            WIDTH - 0.12,
            HEIGHT - 0.12,
            boxstyle="round,pad=0,rounding_size=0.25",
            fc="white",
            ec="#D8DEE4",
        )
        axes.add_patch(panel)
        _draw_input_and_branches(axes, example)
        _draw_combination(axes, example)
        _draw_formula(axes)
    return figure


def _draw_input_and_branches(axes: Axes, example: Example) -> None:
    _stack(axes, 0.45, 3.75, 1.75, example.x, window=True)
    _text(axes, 1.5, 7.0, "input  $x$", size=21, weight="bold")
    _text(axes, 1.5, 6.6, "$C \\times H \\times W$", color=MUTED)
    _text(axes, 1.55, 3.3, "channel $c$", color=CHANNELWISE)
    _text(axes, 1.55, 2.92, "pixel $i$", color=SPATIAL)

    # Spatial branch.
    _elbow(axes, (2.95, 5.3), (3.55, 7.35), SPATIAL)
    _box(axes, 3.55, 7.35, 1.6, "1×1 conv", SPATIAL)
    _arrow(axes, (5.15, 7.35), (5.6, 7.35), SPATIAL)
    _box(axes, 5.6, 7.35, 1.6, "filter norm", SPATIAL)
    _arrow(axes, (7.2, 7.35), (7.75, 7.35), SPATIAL)


def _draw_combination(axes: Axes, example: Example) -> None:
    pass


def _draw_formula(axes: Axes) -> None:
    pass
