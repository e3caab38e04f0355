"""The data of the viewer of filters, filters.js: an image and what each layer did with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddfnet.layers.inspection import LayerFilters
from ddfnet.pages.pack import image_url, pack


def viewer_image(
    name: str, pixels: np.ndarray, layers: Sequence[LayerFilters], *, label: str = "", maps: int = 0
) -> dict[str, Any]:
    """One image of the viewer.

    Args:
        name, label: what it is, and what else to say about it, such as the prediction.
        pixels: what the network saw, uint8 (H, W, 3).
        layers: of `inspect_layers`, all of the same image.
        maps: channels, evenly spread, whose input and output are kept; 0: none, all channels have their filter alone.
    """
    height, width = pixels.shape[:2]
    seen: dict[str, int] = {}
    entries = []
    for layer in layers:
        seen[layer.name] = seen.get(layer.name, 0) + 1
        call = f" (call {seen[layer.name]})" if seen[layer.name] > 1 else ""
        entries.append(layer_data(layer, maps=maps) | {"name": layer.name + call})
    return {
        "name": name,
        "label": label,
        "url": image_url(pixels, quality=88),
        "width": width,
        "height": height,
        "layers": entries,
    }


def layer_data(layer: LayerFilters, *, maps: int) -> dict[str, Any]:
    """One layer of an image; `channels` are those that have maps, in the order of `x` and `y`."""
    count = layer.x.shape[0]
    data = {
        "name": layer.name,
        "kind": layer.kind,
        "k": layer.kernel_size,
        "stride": layer.stride,
        "dilation": layer.dilation,
        "scale": layer.scale,
        "combine": layer.combine,
        "count": count,
        "spatial": pack(layer.spatial),
        "channel": None if layer.channel is None else pack(layer.channel),
    }
    if maps:
        channels = channels_shown(count, maps)
        data |= {"channels": channels, "x": pack(layer.x[channels]), "y": pack(layer.y[channels])}
    return data


def channels_shown(count: int, most: int) -> list[int]:
    """At most `most` of the channels 0 to count - 1, evenly spread."""
    return sorted({i * count // min(most, count) for i in range(min(most, count))})
