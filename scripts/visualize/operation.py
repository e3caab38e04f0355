"""Figure of `python scripts/visualize operation`: the decoupled dynamic filter operation, for the README.

Every map and number in it comes from a small `ddfnet.DDF` layer applied to a smooth feature map. The same image each
time.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ddfnet import DDF
from ddfnet.pages.palette import CHANNEL as CHANNEL_COLOR
from ddfnet.pages.palette import COMBINED, SPATIAL

# Both come with matplotlib: the figure does not depend on the machine or on anybody's matplotlibrc.
matplotlib.rcParams.update({"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"})

WIDTH, HEIGHT, DPI = 18.0, 9.3, 100  # inches, which are also the units of the drawing, and pixels per inch
CHANNELS, SIZE = 5, 6
CHANNEL, ROW, COLUMN = 0, 2, 3  # the highlighted channel c and pixel i

INK, MUTED, LINE = "#1F2933", "#52606D", "#8794A1"
NEGATIVE = "#6B7886"  # one gray under every hue: the hue says whose filter it is, gray which taps are below zero

SPATIAL_ROW, CHANNEL_ROW, PATCH_ROW = 7.15, 4.15, 1.95  # heights of the three paths from left to right
COMBINED_ROW = (SPATIAL_ROW + CHANNEL_ROW) / 2
OUTPUT_ROW = 3.6
BOXES = ((3.25, 1.5), (5.1, 1.65), (7.1, 1.05))  # left edges and widths
FILTERS, PICKED, MEETING = 8.55, 11.35, 13.55  # left edges: all filters, the two picked ones, their combination
MAP = 1.65  # side of a 3x3 map with numbers
SLICE, SHIFT = 1.5, 0.15  # a feature map's channel, and how far it peeps out behind the one before it


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


def compute_example(seed: int = 9) -> Example:
    """Runs a freshly initialized layer on a smooth, positive feature map."""
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


def draw_operation() -> Figure:
    """The whole figure: input and branches, filters, combination, formula."""
    example = compute_example()
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    # A white panel with round corners: readable on a dark page too.
    style = "round,pad=0,rounding_size=0.25"
    axes.add_patch(FancyBboxPatch((0.04, 0.04), WIDTH - 0.08, HEIGHT - 0.08, style, fc="white", ec="#D8DEE4"))
    _draw_branches(axes, example)
    _draw_filters(axes, example)
    _draw_combination(axes, example)
    _draw_formula(axes)
    return figure


def _draw_branches(axes: Axes, example: Example) -> None:
    _draw_feature_map(axes, 0.45, CHANNEL_ROW, example.x, window=True)
    middle = 0.45 + SLICE / 2 + 2 * SHIFT
    _text(axes, middle, CHANNEL_ROW + 1.6, "input $x$", size=21)
    _text(axes, middle, CHANNEL_ROW - 1.4, "$C\\times H\\times W$", color=MUTED)

    trunk = 2.95
    axes.plot([2.65, trunk], [CHANNEL_ROW, CHANNEL_ROW], color=LINE, lw=2)
    axes.plot([trunk, trunk], [PATCH_ROW, SPATIAL_ROW], color=LINE, lw=2, solid_capstyle="projecting")
    convolutions = "1×1 conv\nReLU\n1×1 conv"
    for row, color, texts in (
        (SPATIAL_ROW, SPATIAL, (None, "1×1 conv", "filter\nnorm")),
        (CHANNEL_ROW, CHANNEL_COLOR, ("global\navg pool", convolutions, "filter\nnorm")),
    ):
        end = trunk
        for (left, width), text in zip(BOXES, texts, strict=True):
            if text:
                _arrow(axes, (end, row), (left, row), color)
                _box(axes, left, row, width, text, color)
                end = left + width
        _arrow(axes, (end, row), (FILTERS, row), color)
    _text(axes, 3.25, SPATIAL_ROW + 0.75, "spatial branch", color=SPATIAL, size=21, ha="left")
    _text(axes, 3.25, CHANNEL_ROW + 1.1, "channel branch", color=CHANNEL_COLOR, size=21, ha="left")
    _arrow(axes, (trunk, PATCH_ROW), (MEETING, PATCH_ROW), LINE)
    _text(axes, 8.2, PATCH_ROW + 0.28, "the 3×3 neighborhood of pixel $i$ in channel $c$", color=MUTED)


def _draw_filters(axes: Axes, example: Example) -> None:
    """All spatial filters (a plane) and all channel filters (a line), and the two that are picked from them."""
    side = 2.1
    pitch = side / SIZE
    top = SPATIAL_ROW + side / 2
    for row, column in np.ndindex(SIZE, SIZE):
        corner = (FILTERS + column * pitch, top - (row + 1) * pitch)
        _heat_map(axes, corner, pitch * 0.86, example.spatial[row, column], SPATIAL)
    pixel = (FILTERS + COLUMN * pitch, top - (ROW + 1) * pitch)
    _text(axes, FILTERS + side / 2, top + 0.28, "one filter per pixel", color=SPATIAL)
    _text(axes, FILTERS + side / 2, top - side - 0.22, "shared by channels", color=MUTED)

    pitch_line = side / CHANNELS
    for index in range(CHANNELS):
        corner = (FILTERS + index * pitch_line, CHANNEL_ROW - pitch_line / 2)
        _heat_map(axes, corner, pitch_line * 0.88, example.channel[index], CHANNEL_COLOR)
    channel = (FILTERS + CHANNEL * pitch_line, CHANNEL_ROW - pitch_line / 2)
    _text(axes, FILTERS + side / 2, CHANNEL_ROW + 1.02, "one filter per channel", color=CHANNEL_COLOR)
    _text(axes, FILTERS + side / 2, CHANNEL_ROW - 1.0, "shared by pixels", color=MUTED)

    for (left, bottom), size, row, color, values in (
        (pixel, pitch * 0.86, SPATIAL_ROW, SPATIAL, example.spatial[ROW, COLUMN]),
        (channel, pitch_line * 0.88, CHANNEL_ROW, CHANNEL_COLOR, example.channel[CHANNEL]),
    ):
        axes.add_patch(Rectangle((left, bottom), size, size, fill=False, ec=color, lw=3.5, zorder=5))
        for start, end in ((bottom + size, row + MAP / 2), (bottom, row - MAP / 2)):
            axes.plot([left + size, PICKED], [start, end], color=color, lw=1.4, ls=(0, (3, 2)), zorder=4)
        _heat_map(axes, (PICKED, row - MAP / 2), MAP, values, color, numbers=True)
    _text(axes, PICKED + MAP / 2, SPATIAL_ROW + MAP / 2 + 0.28, "$D^{sp}_i$  of pixel $i$", color=SPATIAL)
    _text(axes, PICKED + MAP / 2, CHANNEL_ROW - MAP / 2 - 0.28, "$D^{ch}_c$  of channel $c$", color=CHANNEL_COLOR)


def _draw_combination(axes: Axes, example: Example) -> None:
    node, center = PICKED + MAP / 2, MEETING + MAP / 2
    _arrow(axes, (node, SPATIAL_ROW - MAP / 2), (node, COMBINED_ROW + 0.27), SPATIAL)
    _arrow(axes, (node, CHANNEL_ROW + MAP / 2), (node, COMBINED_ROW - 0.27), CHANNEL_COLOR)
    _arrow(axes, (node + 0.65, COMBINED_ROW), (MEETING, COMBINED_ROW), COMBINED)
    _pill(axes, node, COMBINED_ROW, 1.3, "× or +")
    _heat_map(axes, (MEETING, COMBINED_ROW - MAP / 2), MAP, example.combined, COMBINED, numbers=True)
    _text(axes, center, COMBINED_ROW + MAP / 2 + 0.62, "filter of pixel $i$", color=COMBINED)
    _text(axes, center, COMBINED_ROW + MAP / 2 + 0.27, "and channel $c$", color=COMBINED)

    _heat_map(axes, (MEETING, PATCH_ROW - MAP / 2), MAP, example.patch, INK, numbers=True)
    _arrow(axes, (center, COMBINED_ROW - MAP / 2), (center, OUTPUT_ROW + 0.27), COMBINED)
    _arrow(axes, (center, PATCH_ROW + MAP / 2), (center, OUTPUT_ROW - 0.27), LINE)
    _pill(axes, center, OUTPUT_ROW, 1.75, "dot product")
    _arrow(axes, (center + 0.88, OUTPUT_ROW), (15.6, OUTPUT_ROW), INK)
    _draw_feature_map(axes, 15.6, OUTPUT_ROW, example.y, window=False)
    middle = 15.6 + SLICE / 2 + 2 * SHIFT
    _text(axes, middle, OUTPUT_ROW + 1.6, "output $y$", size=21)
    _text(axes, middle, OUTPUT_ROW - 1.4, f"$y(c,i)=${_number(example.y[CHANNEL, ROW, COLUMN])}")


def _draw_formula(axes: Axes) -> None:
    pieces = (
        ("$y(c,i)\\;=\\;\\sum_{j}$", INK),
        ("$D^{sp}_i[\\,j-i\\,]$", SPATIAL),
        ("×", COMBINED),
        ("$D^{ch}_c[\\,j-i\\,]$", CHANNEL_COLOR),
        ("$x(c,j)$", INK),
    )
    areas = [TextArea(text, textprops={"color": color, "size": 24}) for text, color in pieces]
    line = HPacker(children=areas, align="baseline", pad=0, sep=8)
    axes.add_artist(AnnotationBbox(line, (6.4, 0.7), frameon=False, box_alignment=(0.5, 0.5)))


def _draw_feature_map(axes: Axes, left: float, middle: float, values: np.ndarray, *, window: bool) -> None:
    """Channels one behind the other, the highlighted one in front; `window` frames the pixel's neighborhood."""
    bottom = middle - (SLICE + (CHANNELS - 1) * SHIFT) / 2
    span = np.abs(values).max()
    for index in reversed(range(CHANNELS)):
        corner = (left + index * SHIFT, bottom + index * SHIFT)
        _heat_map(axes, corner, SLICE, values[index], INK, span=span, zorder=3 - 0.1 * index)
    axes.add_patch(Rectangle((left, bottom), SLICE, SLICE, fill=False, ec=CHANNEL_COLOR, lw=3.5, zorder=4))
    cell = SLICE / SIZE
    x, y = left + COLUMN * cell, bottom + SLICE - (ROW + 1) * cell
    if window:
        axes.add_patch(Rectangle((x - cell, y - cell), 3 * cell, 3 * cell, fill=False, ec=INK, lw=2, zorder=4))
    axes.add_patch(Rectangle((x, y), cell, cell, fill=False, ec=SPATIAL, lw=3.5, zorder=5))


def _heat_map(
    axes: Axes, corner: tuple[float, float], side: float, values: np.ndarray, color: str,
    *, numbers: bool = False, span: float | None = None, zorder: float = 3,
) -> None:  # fmt: skip
    """A square map from gray (negative) over white (zero) to `color`; a filter's own largest tap sets the scale."""
    span = span or np.abs(values).max()
    cell = side / len(values)
    left, top = corner[0], corner[1] + side
    for (row, column), value in np.ndenumerate(values):
        strength = 0.8 * abs(value) / span
        shade = np.array(to_rgb(color if value > 0 else NEGATIVE)) * strength + 1 - strength
        at = (left + column * cell, top - (row + 1) * cell)
        axes.add_patch(Rectangle(at, cell, cell, fc=shade, ec="white" if numbers else shade, lw=1, zorder=zorder))
        if numbers:
            ink = "white" if shade @ (0.299, 0.587, 0.114) < 0.55 else INK
            _text(axes, at[0] + cell / 2, at[1] + cell / 2, _number(value), color=ink, size=15)
    outline = color if numbers else LINE
    axes.add_patch(Rectangle(corner, side, side, fill=False, ec=outline, lw=3 if numbers else 0.8, zorder=zorder))


def _number(value: float) -> str:
    """Two decimals, short: .71, –.08; an en dash, a minus sign would not fit a cell."""
    text = f"{abs(value):.2f}".removeprefix("0")
    return f"–{text}" if value < 0 and text != ".00" else text


def _text(axes: Axes, x: float, y: float, text: str, *, color: str = INK, size: float = 17, ha: str = "center") -> None:
    axes.text(x, y, text, color=color, size=size, ha=ha, va="center", zorder=6)


def _box(axes: Axes, left: float, middle: float, width: float, text: str, color: str) -> None:
    height = 0.42 + 0.33 * (text.count("\n") + 1)
    tint = 1 - 0.09 * (1 - np.array(to_rgb(color)))
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((left, middle - height / 2), width, height, style, fc=tint, ec=color, lw=1.8))
    axes.text(left + width / 2, middle, text, color=INK, size=17, ha="center", va="center", linespacing=1.25)


def _pill(axes: Axes, x: float, y: float, width: float, text: str) -> None:
    style = "round,pad=0,rounding_size=0.27"
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.27), width, 0.54, style, fc="white", ec=INK, lw=1.8, zorder=5))
    _text(axes, x, y, text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = "-|>,head_length=0.5,head_width=0.28"
    arrow = FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=20, color=color, lw=2, shrinkA=0, shrinkB=2)
    axes.add_patch(arrow)
