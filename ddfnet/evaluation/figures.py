"""The figures of a report. They need matplotlib, an optional dependency, and leave the global state of pyplot alone."""

import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ddfnet.data.decode import decode_error, open_image
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.multilabel import ClassScore
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.statistics import BINS, Calibration, ClassRow, Confusion, class_rows, confusions, worst_mistakes
from ddfnet.evaluation.statistics import calibration as calibration_of
from ddfnet.pages.pack import shown_as_rgb
from ddfnet.pages.palette import CORRECT, GRAY, SERIES, WRONG
from ddfnet.utils.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_FIGURES = "no figures: matplotlib is missing (pip install matplotlib)"
_MOST_MISTAKES = 20
_MOST_NAMED = 40  # classes whose names fit on an axis
_MOST_NUMBERED = 15  # classes whose cells have room for a number
_MOST_CELLS = 250  # cells a side that stay visible
_LONGEST = 30  # characters of a class name; the longest short name of ImageNet

_PLAIN = {"parse_math": False}  # a dollar in a class name is a dollar


@dataclass(frozen=True)
class Mistake:
    """An image, uint8 (H, W, 3), its class, and the predicted one with its confidence in [0, 1]."""

    image: np.ndarray
    target: str
    predicted: str
    confidence: float


def figures_available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_figures(
    images: ImageSet, predictions: Predictions, names: Sequence[str], preprocessing: dict[str, Any]
) -> dict[str, bytes]:
    """The PNG files of a report by name, with readable names of the classes in label order, of images prepared by a
    `Preprocessing.to_dict`; see `drawn`."""
    total = int((~predictions.correct).sum())
    draws = {
        "calibration.png": lambda: draw_calibration(calibration_of(predictions)),
        "confusion.png": lambda: draw_confusion(class_rows(predictions), confusions(predictions), names),
        "mistakes.png": lambda: draw_mistakes(_mistakes(images, predictions, names, preprocessing), total),
    }
    if not total:
        del draws["mistakes.png"]
    return drawn(draws, images)


def draw_multilabel_figures(
    images: ImageSet, calibration: Calibration, scores: Sequence[ClassScore], names: Sequence[str]
) -> dict[str, bytes]:
    """The same of images with any number of labels: `calibration` over all decisions, `scores` in label order."""
    weakest = sorted((row.f1, i) for i, row in enumerate(scores) if row.positives)[: len(SERIES)]
    curves = [(names[i], scores[i]) for _, i in weakest]
    present = sum(row.positives > 0 for row in scores)
    draws: dict[str, Callable[[], Figure]] = {
        "calibration.png": lambda: draw_calibration(
            calibration, x="probability", y="fraction present", things="decisions"
        ),
        "precision_recall.png": lambda: draw_precision_recall(curves, present),
    }
    if not curves:
        del draws["precision_recall.png"]
    return drawn(draws, images)


def drawn(draws: Mapping[str, Callable[[], "Figure"]], images: ImageSet) -> dict[str, bytes]:
    """PNG files by name; those that cannot be drawn are missing, and a line on stderr says why."""
    files = {}
    for name, draw in draws.items() if figures_available() else ():
        file = io.BytesIO()
        try:
            draw().savefig(file, format="png")
        except Exception as error:  # hours of evaluation must not end without a report for the sake of a figure
            of_set = f" of set {images.name}" if images.name else ""
            print(f"no {name}{of_set}: {decode_error(error)}", file=sys.stderr, flush=True)
        else:
            files[name] = file.getvalue()
    return files


def _mistakes(
    images: ImageSet, predictions: Predictions, names: Sequence[str], preprocessing: dict[str, Any]
) -> list[Mistake]:
    """The worst mistakes as the network saw them; DataError where an image cannot be read any more."""
    transform, mistakes = eval_transform(Preprocessing.from_dict(preprocessing)), []
    for i in worst_mistakes(predictions, _MOST_MISTAKES):
        try:
            image = open_image(images.index.read(i), transform.channels, math.inf)
        except Exception as error:
            raise DataError(f"image {images.index.name(i)} cannot be read ({decode_error(error)})") from None
        pixels = shown_as_rgb(transform(image).permute(1, 2, 0).numpy())
        labels = names[predictions.target[i]], names[predictions.predicted[i]]
        mistakes.append(Mistake(pixels, *labels, float(predictions.confidence[i])))
    return mistakes


def draw_confusion(rows: Sequence[ClassRow], pairs: Sequence[Confusion], names: Sequence[str]) -> "Figure":
    """Row-normalized confusion matrix; with many classes a cell stands for several and shows the highest of them.
    `names` are readable ones in label order."""
    from matplotlib.colors import PowerNorm

    size = len(names)
    step = -(-size // _MOST_CELLS)
    fractions = np.zeros((-(-size // step),) * 2)
    counts = {row.label: row.n for row in rows}
    cells = [(row.label, row.label, row.top1) for row in rows] + [(p.target, p.predicted, p.count) for p in pairs]
    for target, predicted, count in cells:
        cell = target // step, predicted // step
        fractions[cell] = max(fractions[cell], count / counts[target])

    side = min(10.5, max(5.0, 0.28 * size + 2.2))
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    # The power makes room for what is rare: in ImageNet a single image is 2 % of its class.
    end = len(fractions) * step - 0.5
    norm, extent = PowerNorm(0.35, 0, 1), (-0.5, end, end, -0.5)
    colors = axes.imshow(fractions, cmap="Blues", norm=norm, interpolation="nearest", extent=extent)
    bar = figure.colorbar(colors, ax=axes, shrink=0.75, ticks=[0, 0.02, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "2 %", "10 %", "25 %", "50 %", "100 %"])
    title = f"row: true class; column: predicted class; n = {sum(counts.values()):,} images\ncolor: fraction of the row"
    if size <= _MOST_NUMBERED:
        title += "; number: images"
        for target, predicted, count in cells:
            if count:
                color = "white" if count / counts[target] > 0.2 else "black"
                axes.text(predicted, target, str(count), ha="center", va="center", fontsize=9, color=color)
    if step > 1:
        title += f"; {size:,} classes, a cell shows the highest fraction among {step} x {step} of them"
    figure.suptitle(title, fontsize=10)
    if size <= _MOST_NAMED:
        labels = [_short(name) for name in names]
        upright = max(map(len, labels)) > 3
        axes.set_xticks(range(size), labels, rotation=90 if upright else 0, fontsize=9, **_PLAIN)
        axes.set_yticks(range(size), labels, fontsize=9, **_PLAIN)
        axes.set(xlabel="predicted", ylabel="true")
    else:
        position = "by position in the list of classes"
        axes.set(xlabel=f"predicted, {position}", ylabel=f"true, {position}")
    return figure


def draw_calibration(
    calibration: Calibration, *, x: str = "confidence", y: str = "accuracy", things: str = "images"
) -> "Figure":
    """`y` against `x` by bin, above the number of `things` in each bin."""
    figure = _figure(6.4, 6.8)
    reliability, population = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    middles = (np.arange(len(calibration.counts)) + 0.5) / len(calibration.counts)
    width = 0.92 / len(calibration.counts)
    filled = np.array(calibration.counts) > 0
    accuracy, confidence = np.array(calibration.accuracy)[filled], np.array(calibration.confidence)[filled]

    reliability.bar(middles[filled], accuracy, width, color=CORRECT, label=f"{y} in the bin")
    reliability.plot(confidence, confidence, "_", color=WRONG, ms=15, mew=2.5, label=f"{x}, mean of the bin")
    reliability.plot([0, 1], [0, 1], "--", color=GRAY, lw=1, label="perfect calibration")
    reliability.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=y)
    n = sum(calibration.counts)
    title = f"expected calibration error {calibration.ece:.2f} % ({BINS} bins), n = {n:,} {things}"
    figure.suptitle(title, fontsize=11)

    # Above the axes: inside, it would cover bars.
    reliability.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8.5, frameon=False)

    bars = population.bar(middles, calibration.counts, width, color=GRAY)
    population.bar_label(bars, map(_count, calibration.counts), fontsize=7.5, padding=1)
    population.set(xlabel=x, ylabel=things, ylim=(0, 1.18 * max(calibration.counts)))
    for axes in (reliability, population):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_precision_recall(curves: Sequence[tuple[str, ClassScore]], present: int) -> "Figure":
    """Precision against recall of some labels, at most as many as `SERIES` has colors, of `present` in all that some
    image has; a square is the threshold of the evaluation."""
    figure = _figure(6.4, 6.0)
    axes = figure.subplots()
    for color, (name, row) in zip(SERIES, curves, strict=False):
        _, precision, recall = row.curve.T
        # A name that begins with an underscore would be left out of the legend.
        label = f"AP {100 * row.average_precision:.1f} %, n = {row.positives:,}: {_short(name)}"
        # A step curve: the area below it is the average precision.
        axes.step([0, *recall], [precision[0], *precision], where="pre", color=color, label=label)
        if row.predicted:
            axes.plot(row.recall, row.precision, "s", color=color)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    which = f"all {present:,} labels" if len(curves) == present else f"{len(curves)} of {present:,} labels, lowest F1"
    figure.suptitle(f"precision and recall: {which}; square: at the threshold", fontsize=11)
    columns = 2 if all(len(name) <= _LONGEST - 8 for name, _ in curves) else 1
    legend = axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set(**_PLAIN)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_mistakes(mistakes: Sequence[Mistake], total: int) -> "Figure":
    """A grid of wrongly classified images as the network saw them, of `total` in all."""
    columns = min(5, max(3, len(mistakes)))
    lines = -(-len(mistakes) // columns)
    figure = _figure(2.3 * columns, 2.75 * lines + 0.5)
    title = f"{len(mistakes)} of {total:,} mistakes, the highest confidence first"
    figure.suptitle(f"{title}\nabove: true class; below: predicted class", fontsize=10)
    figure.set_layout_engine("constrained", hspace=0.07)
    panels = list(np.ravel(figure.subplots(lines, columns)))
    for axes in panels[len(mistakes) :]:
        axes.set_axis_off()
    for axes, mistake in zip(panels, mistakes, strict=False):
        axes.imshow(mistake.image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(_short(mistake.target), fontsize=9, pad=4, **_PLAIN)
        label = f"{_short(mistake.predicted)}\n{100 * mistake.confidence:.1f} %"
        axes.set_xlabel(label, fontsize=9, color=WRONG, **_PLAIN)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _count(count: int) -> str:
    if count < 10_000:
        return str(count) if count else ""
    return f"{count / 1000:.1f}k" if count < 100_000 else f"{count / 1000:.0f}k"
