"""The numbers of an explorer page, checked against what it says of itself: filters times input is output."""

import numpy as np

from tests.browser import page_data, unpacked


def taps(layer, y, x, slot):
    """Combined filter and window of the input, k * k each, of an output pixel and the `slot`-th channel with maps."""
    channel, k, s = layer["channels"][slot], layer["k"], layer["scale"]
    spatial = unpacked(layer["spatial"])
    phase, row, column = (y % s) * s + x % s, y // s, x // s
    taps = spatial[phase, channel // (layer["count"] // spatial.shape[1]), :, row, column]
    if layer["channel"] is not None:
        own = unpacked(layer["channel"])[phase, channel]
        taps = taps * own if layer["combine"] == "mul" else taps + own
    margin = layer["dilation"] * (k // 2)
    padded = np.pad(unpacked(layer["x"])[slot], margin)
    rows, columns = (at * layer["stride"] + layer["dilation"] * np.arange(k) for at in (row, column))
    return taps, padded[np.ix_(rows, columns)].ravel()


def check_layers(html):
    """Checks a few pixels of all layers of all images; returns the images of the page."""
    images = page_data(html)["images"]
    for image in images:
        for layer in image["layers"]:
            y = unpacked(layer["y"])
            scale = np.abs(y).max()
            assert y.shape[1:] == tuple(layer["scale"] * side for side in layer["spatial"]["shape"][3:])
            for slot in {0, len(layer["channels"]) - 1}:
                for row, column in ((0, 0), (y.shape[1] - 1, y.shape[2] - 1), (y.shape[1] // 2, y.shape[2] // 3)):
                    filters, window = taps(layer, row, column, slot)
                    tolerance = 2e-3 * (np.abs(filters * window).sum() + 1e-3 * scale)
                    assert abs(filters @ window - y[slot, row, column]) <= tolerance, (layer["name"], row, column)
    return images
