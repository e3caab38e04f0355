"""Page of `python scripts/visualize explore`: the dynamic filters of a network, pixel by pixel."""

from pathlib import Path

import torch

import ddfnet
from ddfnet.layers.inspection import inspect_layers, spatial_layers
from ddfnet.pages.filters import viewer_image
from ddfnet.pages.render import render
from ddfnet.utils.errors import UserError
from ddfnet.utils.text import plural, with_weights
from scripts.visualize.explore_images import open_subject


def explore(
    checkpoint: str,
    images: list[str],
    *,
    model: str | None = None,
    data: Path | None = None,
    layers: list[str] | None = None,
    channels: int = 16,
    size: int = 320,
) -> str:
    """The text of the page. UserError where the checkpoint, a layer or an image cannot be used.

    Args:
        checkpoint: a file of any task, or zoo:NAME.
        images: files; for a depth network the numbers of held-out pairs.
        model: its name, for a classifier's file that does not say it.
        data: `data.root` of a depth network, where it is not that of training.
        layers: names of those to show; None: all that predict filters for each pixel.
        channels: how many of a layer's have their input and output in the page.
        size: longest side in pixels of what a detector or depth network gets; a classifier has its own size.
    """
    for option, value, least in (("--channels", channels, 1), ("--size", size, 32)):
        if value < least:
            raise UserError(f"{option} must be at least {least}, got {value}")
    subject = open_subject(checkpoint, images, model=model, data=data, size=size)
    there = list(spatial_layers(subject.network))
    if not there:
        kind = type(subject.network).__name__
        raise UserError(f"this {kind} has no layer with filters for each pixel: choose another checkpoint")
    for name in layers or ():
        if name not in there:
            raise UserError(f"--layers {name}: there are {', '.join(there)}")
    shown, heading = [], with_weights(subject.model, str(checkpoint))
    for image in subject.images:
        results: list[object] = []
        seen = inspect_layers(subject.network, lambda run=image.run, to=results: to.append(run()), layers)
        shown.append(viewer_image(image.name, image.pixels, seen, label=image.label(results[0]), maps=channels))
    facts = [
        ("model", subject.model),
        ("checkpoint", str(checkpoint)),
        *subject.facts,
        ("layers", ", ".join(layers or there)),
        ("channels", f"of each layer, {channels} at most have their input and output in this page (--channels)"),
        ("images", f"n = {len(shown)}"),
        ("precision", "float32, on the CPU"),
        ("versions", f"ddfnet {ddfnet.__version__}, torch {torch.__version__}"),
    ]
    return render(
        "explore.html.j2",
        scripts=("filters.js", "explore.js"),
        data={"images": shown},
        title=f"Filters of {heading}",
        kicker="Dynamic filters, pixel by pixel",
        heading=heading,
        lead=f"{plural(len(layers or there), 'layer')}, n = {plural(len(shown), 'image')}. Each pixel of each has a "
        "filter of its own.",
        note="Numbers are stored with about three significant digits.",
        facts=facts,
    )
