"""What the pages of all reports have in common: their sections, their images, and the filters of the network."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page_images import Pixels, filter_images, thumbnails
from ddfnet.evaluation.statistics import Calibration
from ddfnet.layers.inspection import spatial_layers
from ddfnet.pages.pack import SMALL_IMAGE
from ddfnet.pages.render import render
from ddfnet.utils.text import plural


@dataclass(frozen=True)
class Section:
    """A part of the page; a script of the page draws into its element `<id>-body`."""

    id: str
    name: str  # in the list of parts
    heading: str
    text: str


@dataclass(frozen=True)
class Top:
    """The first part: what is worst, in words, with images, beside a list."""

    id: str
    name: str
    heading: str
    text: str
    list: str  # heading of the list


@dataclass(frozen=True, kw_only=True)
class About:
    """A model, what it was evaluated on, and how; the same for both kinds of reports.

    Args:
        images: of the evaluation, in the order of its predictions.
        names: readable ones of the classes, in label order.
        preprocessing: `Preprocessing.to_dict`.
        network: that was evaluated; its filters are shown if it predicts any for each pixel. None: not shown.
        precision: of the evaluation, fp32, bf16 or fp16; the filters are computed in it, too.
        results: `PredictionReport.results`, or those of `MultiLabelReport`.
        heading, subject, facts: the model, what it was evaluated on, and how, as text.
    """

    images: ImageSet
    names: list[str]
    preprocessing: dict[str, Any]
    network: nn.Module | None
    precision: str
    results: dict[str, Any]
    heading: str
    subject: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """Images of the page: `data:` URLs of thumbnails by row, and the data of the viewer of filters."""

    urls: dict[int, str]
    viewer: list[dict[str, Any]]
    small: bool  # the images have so few pixels that each is to be seen


def shown_images(about: About, wanted: Sequence[int], viewed: Sequence[int], label: Callable[[int], str]) -> Shown:
    """Thumbnails of the rows `wanted`, and filters over `viewed`, which `label` describes.

    Images that cannot be read any more are missing, with one line on stderr.
    """
    how = Preprocessing.from_dict(about.preprocessing)
    pixels = Pixels(about.images, how)
    urls = thumbnails(wanted, pixels)
    viewed = list(dict.fromkeys(viewed))
    labels = [label(i) for i in viewed]
    viewer = (
        []
        if about.network is None
        else filter_images(viewed, pixels, about.network, how, labels, precision=about.precision)
    )
    if pixels.problems:
        count = len(pixels.problems)
        print(
            f"report.html lacks {plural(count, 'image')}: {next(iter(pixels.problems.values()))}",
            file=sys.stderr,
            flush=True,
        )
    return Shown(urls, viewer, min(how.input_size[1:]) <= SMALL_IMAGE)


def page(
    about: About,
    shown: Shown,
    *,
    script: str,
    data: dict[str, Any],
    lead: str,
    tiles: list[dict[str, str]],
    top: Top | None,
    sections: Sequence[Section],
) -> str:
    """The text of the page; `data`: what `script` shows besides the names of the classes and the images."""
    filters = _filters(shown.viewer, about)
    sections = [*sections, *filters]
    named = [*([(top.id, top.name)] if top else []), *((section.id, section.name) for section in sections)]
    return render(
        "report.html.j2",
        scripts=("filters.js", "report_parts.js", script),
        data={"names": about.names, "small": shown.small, "filters": shown.viewer, **data},
        title=f"{about.heading} on {about.subject}",
        kicker="Evaluation report",
        heading=about.heading,
        lead=lead,
        note=about.results.get("note") or "",
        parts=[*named, ("how", "How it was measured")],
        tiles=tiles,
        top=top,
        sections=sections,
        facts=about.facts,
        footer="This file holds everything it shows: no network, no server.",
    )


def calibration_data(curve: Calibration) -> dict[str, Any]:
    """The bins, for the script."""
    return {"counts": curve.counts, "accuracy": curve.accuracy, "confidence": curve.confidence}


def left_out(counts: Sequence[int], most: int) -> str:
    """A sentence on cells of a matrix that the page has no room for; "" where all have. `counts`: the images of the
    cells, the most frequent first; `most`: cells that there is room for."""
    rest = counts[most:]
    if not rest:
        return ""
    return f" Left out, and empty here: {plural(len(rest), 'cell')} of at most {plural(rest[0], 'image')}."


def _filters(viewer: list[dict[str, Any]], about: About) -> list[Section]:
    if not viewer or about.network is None:
        return []
    shown, there, size = len(viewer[0]["layers"]), len(spatial_layers(about.network)), len(viewer)
    layers = plural(shown, "layer") if shown >= there else f"the first {shown} of {there} layers"
    text = (
        f"The filters that this network predicts for each pixel: {layers}, n = {plural(size, 'image')}, computed in "
        f"{about.precision} as the evaluation. Move the "
        "pointer over the image, touch it, or use the arrow keys. More of any image: python scripts/visualize explore."
    )
    return [Section("filters", "Filters", "Filters", text)]
