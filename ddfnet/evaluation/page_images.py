"""Which images report.html shows, as thumbnails and with the filters of the network over them."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.data.batches import EvalBatchTransform
from ddfnet.data.decode import decode_error, open_image
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.statistics import worst_mistakes
from ddfnet.layers.inspection import LayerFilters, inspect_layers, spatial_layers
from ddfnet.pages.filters import viewer_image
from ddfnet.pages.pack import image_url
from ddfnet.utils.progress import ProgressBar, tracked
from ddfnet.utils.text import printable

WORST = 24  # mistakes of the highest confidence
MOST_THUMBNAILS = 480
PAIRS = 30  # of the most confused pairs of classes, at least PER_WAY images of each direction
PER_WAY = 3
EXAMPLES = 3  # correct images of each class, where there are few classes, or it is in a confused pair
FEW_CLASSES = 20
THUMBNAIL = 112  # pixels of the longest side
FILTER_IMAGES = 8
FILTER_BYTES = 8_000_000  # of the filters in the page
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Chosen:
    """Rows of the predictions: the mistakes of the page, examples of what was right, and those with a thumbnail."""

    mistakes: list[int]  # highest confidence first
    worst: list[int]
    of_pair: list[int]  # three that show how the two most confused classes are confused, mistakes first
    correct: list[int] = field(default_factory=list)
    thumbnails: list[int] = field(default_factory=list)  # the most wanted first


def choose(predictions: Predictions, both: Sequence[tuple[int, ...]], classes: int, most: int) -> Chosen:
    """Chooses the images; `both` of `confused_both_ways`, `most` mistakes at most."""
    mistakes = worst_mistakes(predictions, most)
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, target, predicted in zip(
        mistakes, predictions.target[mistakes].tolist(), predictions.predicted[mistakes].tolist(), strict=True
    ):
        cells[target, predicted].append(i)
    chosen = Chosen(mistakes, mistakes[:WORST], of_pair=[])
    wanted = list(chosen.worst)
    if both:
        a, b = both[0][:2]
        there, back = cells[a, b], cells[b, a]
        ones = 3 if not back else 2  # the other direction, too, where there is one
        chosen.of_pair = (there[:ones] + back[: 3 - min(ones, len(there))])[:3]
    for a, b, *_ in both[:PAIRS]:
        wanted += cells[a, b][:PER_WAY] + cells[b, a][:PER_WAY]
    shown = (
        range(classes) if classes <= FEW_CLASSES else dict.fromkeys(label for pair in both[:8] for label in pair[:2])
    )
    chosen.correct = _correct(predictions, set(shown))
    if both:  # few were confused: beside them, correct images of the two classes
        correct = [i for label in both[0][1::-1] for i in chosen.correct if predictions.target[i] == label]
        chosen.of_pair = (chosen.of_pair + correct)[:3]
    wanted = chosen.of_pair + wanted
    wanted += chosen.correct
    queues = [iter(cell) for cell in sorted(cells.values(), key=len, reverse=True)]
    wanted += in_turn(queues, MOST_THUMBNAILS)
    chosen.thumbnails = list(dict.fromkeys(wanted))[:MOST_THUMBNAILS]
    return chosen


def _correct(predictions: Predictions, labels: set[int]) -> list[int]:
    """For each class the correct images of the least confidence: those near to being mistaken."""
    rows = (predictions.correct & (predictions.predicted == predictions.target)).nonzero()[:, 0]
    kept: dict[int, list[int]] = defaultdict(list)
    for i in rows[predictions.confidence[rows].argsort(stable=True)].tolist():
        label = int(predictions.target[i])
        if label in labels and len(kept[label]) < EXAMPLES:
            kept[label].append(i)
    return [i for label in sorted(kept) for i in kept[label]]


def in_turn(queues: list[Iterator[int]], most: int) -> list[int]:
    """The first of each queue, then the second of each, ..."""
    taken: list[int] = []
    while queues and len(taken) < most:
        rows = [(queue, next(queue, None)) for queue in queues]
        taken += [row for _, row in rows if row is not None]
        queues = [queue for queue, row in rows if row is not None]
    return taken[:most]


def short_name(images: ImageSet, i: int) -> str:
    """The name of an image, below the folder of the set if it is a file there."""
    return printable(str(images.index.name(i)).removeprefix(f"{str(images.index.root).rstrip('/')}/"))


class Pixels:
    """Images as the network saw them, uint8 (C, H, W); what cannot be read any more is left out, and counted."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images, self.transform = images, eval_transform(preprocessing)
        self.problems: dict[int, str] = {}  # by row: an image may be asked for twice

    def read(self, i: int) -> Tensor | None:
        try:
            return self.transform(open_image(self.images.index.read(i), self.transform.channels, math.inf))
        except Exception as error:  # a file may be gone: the report is of when it was there
            self.problems[i] = f"image {printable(self.images.index.name(i))} ({decode_error(error)})"
            return None


def thumbnails(rows: Sequence[int], pixels: Pixels) -> dict[int, str]:
    """`data:` URLs of images by row."""
    urls = {}
    for i in tracked(rows, len(rows), ProgressBar("images of report.html")):
        if (image := pixels.read(i)) is not None:
            urls[i] = image_url(image.permute(1, 2, 0).numpy(), most=THUMBNAIL)
    return urls


def filter_images(
    rows: Sequence[int],
    pixels: Pixels,
    network: nn.Module,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    *,
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """The data of the viewer for a few images, `labels` say what else of each; empty for a network without dynamic
    filters for each pixel. `precision`: that of the evaluation, fp32, bf16 or fp16."""
    if not spatial_layers(network):
        return []
    device = next(network.parameters()).device
    transform = EvalBatchTransform(preprocessing, device=device)
    found: list[dict[str, Any]] = []
    kept: set[str] = set()
    size = 0
    bar = ProgressBar("filters of report.html")
    for i, label in tracked(list(zip(rows, labels, strict=True)), len(rows), bar):
        image = pixels.read(i)
        if image is None or len(found) == FILTER_IMAGES:
            continue
        batch = transform({"image": image[None].to(device)})
        with torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32"):
            layers = inspect_layers(network, partial(network, batch["image"]))
        if not found:  # of a network with huge filters, the first layers, which fit
            ends = accumulate(map(_bytes, layers))
            kept = {layer.name for layer, end in zip(layers, ends, strict=True) if end <= FILTER_BYTES}
        layers = [layer for layer in layers if layer.name in kept]
        size += sum(map(_bytes, layers))
        if not layers or (found and size > FILTER_BYTES):
            break
        name = short_name(pixels.images, i)
        shown = image.permute(1, 2, 0).numpy()
        found.append(viewer_image(name, shown, layers, label=label))
    return found


def _bytes(layer: LayerFilters) -> int:
    """Of its filters in the page: base64 of two bytes a number."""
    numbers = layer.spatial.numel() + (0 if layer.channel is None else layer.channel.numel())
    return 2 * numbers * 4 // 3
