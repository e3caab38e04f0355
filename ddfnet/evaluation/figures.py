"""The figures of a report. This module alone needs matplotlib; it draws with Agg and leaves pyplot alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ddfnet.evaluation.statistics import BINS, Calibration, ClassRow, Confusion

_MOST_NAMED = 40  # classes whose names fit on an axis
_MOST_NUMBERED = 15  # classes whose cells have room for a number
_MOST_CELLS = 250  # cells a side that stay visible
_LONGEST = 30  # characters of a class name; the longest short name of ImageNet

_BLUE, _ORANGE, _GREY = "#1F6FB5", "#D9690D", "#5B6770"
_PLAIN = {"parse_math": False}  # a dollar in a class name is a dollar


@dataclass(frozen=True)
class Mistake:
    """A image, uint8 (H, W, 3), what it is, and what it was taken for with which confidence in [0, 1]."""

    image: np.ndarray
    target: str
    predicted: str
    confidence: float


def draw_confusion(rows: Sequence[ClassRow], pairs: Sequence[Confusion], names: Sequence[str]) -> Figure:
    """Row-normalized confusion matrix; with many classes a cell stands for several and shows the highest share of them.

    Args:
        rows: see `class_rows`.
        pairs: see `confusions`.
        names: readable names in label order.
    """
    size = len(names)
    step = -(-size // _MOST_CELLS)
    shares = np.zeros((-(-size // step),) * 2)
    counts = {row.label: row.n for row in rows}
    cells = [(row.label, row.label, row.top1) for row in rows] + [(p.target, p.predicted, p.count) for p in pairs]
    for target, predicted, count in cells:
        place = target // step, predicted // step
        shares[place] = max(shares[place], count / counts[target])

    side = min(10.5, max(5.0, 0.28 * size + 2.2))
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    # The power makes room for what is rare: in ImageNet a single image is 2 % of its class.
    extent = (-0.5, len(shares) * step - 0.5, len(shares) * step - 0.5, -0.5)
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.35, 0, 1), interpolation="nearest", extent=extent)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.75, ticks=[0, 0.02, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "2 %", "10 %", "25 %", "50 %", "100 %"])
    title = "row: true class; column: predicted class\ncolor: share of the row"
    if size <= _MOST_NUMBERED:
        title += "; number: images"
    if step > 1:
        title += f"; {size:,} classes, a cell shows the highest share among {step} x {step} of them"
    figure.suptitle(title, fontsize=10)
    axes.set_xlabel("predicted" if size <= _MOST_NAMED else "predicted, by position in the list of classes")
    axes.set_ylabel("true" if size <= _MOST_NAMED else "true, by position in the list of classes")
    if size <= _MOST_NAMED:
        labels = [_short(name) for name in names]
        upright = max(map(len, labels)) > 3
        axes.set_xticks(range(size), labels, rotation=90 if upright else 0, fontsize=9, **_PLAIN)
        axes.set_yticks(range(size), labels, fontsize=9, **_PLAIN)
    if size <= _MOST_NUMBERED:
        for target, predicted, count in cells:
            if count:
                share = count / counts[target]
                axes.text(predicted, target, count, ha="center", va="center", fontsize=9,
                          color="white" if share > 0.2 else "black")  # fmt: skip
    return figure


def draw_calibration(calibration: Calibration) -> Figure:
    """Accuracy against confidence by bin, above the number of images in each bin."""
    figure = _figure(6.4, 6.8)
    reliability, population = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    middles = (np.arange(len(calibration.counts)) + 0.5) / len(calibration.counts)
    width = 0.92 / len(calibration.counts)
    filled = np.array(calibration.counts) > 0
    accuracy, confidence = np.array(calibration.accuracy)[filled], np.array(calibration.confidence)[filled]

    reliability.bar(middles[filled], accuracy, width, color=_BLUE, label="accuracy of the bin")
    reliability.plot(confidence, confidence, "_", color=_ORANGE, ms=15, mew=2.5, label="confidence, mean of the bin")
    reliability.plot([0, 1], [0, 1], "--", color=_GREY, lw=1, label="perfect calibration")
    reliability.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    figure.suptitle(f"expected calibration error {calibration.ece:.2f} % ({BINS} bins)", fontsize=11)
    # Above the axes: inside, it would cover bars.
    reliability.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8.5, frameon=False)

    bars = population.bar(middles, calibration.counts, width, color=_GREY)
    labels = [_count(count) for count in calibration.counts]
    population.bar_label(bars, labels, fontsize=7.5, padding=1)
    population.set(xlabel="confidence", ylabel="images", ylim=(0, 1.18 * max(calibration.counts)))
    for axes in (reliability, population):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_mistakes(mistakes: Sequence[Mistake], total: int) -> Figure:
    """A grid of wrongly recognized images as the network saw them; `total` of them there are in all."""
    columns = min(5, max(3, len(mistakes)))
    lines = -(-len(mistakes) // columns)
    figure = _figure(2.3 * columns, 2.75 * lines + 0.5)
    title = f"{len(mistakes)} of {total:,} mistakes, the highest confidence first"
    figure.suptitle(f"{title}\nabove: what it is; below: what it was taken for", fontsize=10)
    figure.get_layout_engine().set(hspace=0.07)
    panels: list[Axes] = list(np.ravel(figure.subplots(lines, columns)))
    for axes in panels[len(mistakes) :]:
        axes.set_axis_off()
    for axes, mistake in zip(panels, mistakes, strict=False):
        axes.imshow(mistake.image, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(_short(mistake.target), fontsize=9, pad=4, **_PLAIN)
        said = f"{_short(mistake.predicted)}\n{100 * mistake.confidence:.1f} %"
        axes.set_xlabel(said, fontsize=9, color=_ORANGE, **_PLAIN)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _count(count: int) -> str:
    if count < 10_000:
        return str(count) if count else ""
    return f"{count / 1000:.1f}k" if count < 100_000 else f"{count / 1000:.0f}k"
