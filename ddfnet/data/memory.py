"""Small sets in memory: every image decoded once."""

import logging
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ddfnet.data.decode import Decoder, decode_error
from ddfnet.data.sources import ImageSource
from ddfnet.utils.progress import ProgressBar, tracked
from ddfnet.utils.text import plural

LIMIT = 512 * 2**20  # bytes of pixels up to which `data.cache: auto` keeps a set, in each process that trains

_SAMPLE = 32  # images that tell how large the set is
_log = logging.getLogger("ddfnet")


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """Decoded images one after another in one block, which forked workers share."""

    blob: np.ndarray  # uint8, rows of pixels
    offsets: np.ndarray  # int64 (N,), where each image begins
    sizes: np.ndarray  # int32 (N, 2), height and width; 0 where an image is corrupt
    channels: int = 3
    faults: tuple[tuple[int, str], ...] = ()  # (index, reason) of the images that are corrupt or too large

    def pixels(self, i: int) -> np.ndarray | None:
        """Image i, uint8 (H, W, C), not to be written to; None where it was corrupt."""
        height, width = self.sizes[i].tolist()
        if not height:
            return None
        start = int(self.offsets[i])
        return self.blob[start : start + self.channels * height * width].reshape(height, width, self.channels)

    @cached_property
    def equal_sized(self) -> bool:
        """Whether all images have one size and none is corrupt."""
        return bool(len(self.sizes) and self.sizes[0, 0] and (self.sizes == self.sizes[0]).all())

    def stacked(self) -> np.ndarray:
        """All images, which must be of one size, in their order: uint8 (N, H, W, C), not to be written to."""
        height, width = self.sizes[0].tolist()
        images = self.blob.reshape(-1, height, width, self.channels)
        order = self.offsets // (self.channels * height * width)
        # Most sources are stored in their own order: no copy, which would be as large as the set.
        return images if (order == np.arange(len(order))).all() else images[order]


def cached_images(source: ImageSource, decoder: Decoder, cache: str) -> DecodedImages | None:
    """The images of a set as `data.cache` has it: memory, none, or auto."""
    if cache == "none":
        return None
    return decode_all(source, decoder, limit=LIMIT if cache == "auto" else float("inf"))


def decode_all(source: ImageSource, decoder: Decoder, *, limit: float = float("inf")) -> DecodedImages | None:
    """Decodes a whole set; None where its pixels take more than `limit` bytes."""
    if estimated_bytes(source, decoder) > limit:
        return None
    start, blob = time.monotonic(), bytearray()
    offsets, sizes = np.zeros(len(source), np.int64), np.zeros((len(source), 2), np.int32)
    faults = []
    for i in tracked(source.disk_order().tolist(), len(source), ProgressBar("decoding into memory")):
        try:
            pixels = decoder(source.read(i))
        except Exception as error:  # left out: whoever asks for it reads it, and meets the error
            faults.append((i, decode_error(error)))
            continue
        offsets[i], sizes[i] = len(blob), pixels.shape[:2]
        blob += pixels.tobytes()
        if len(blob) > limit:
            return None
    seconds, total, read = time.monotonic() - start, len(source), len(source) - len(faults)
    count = f"{read} of {plural(total, 'image')}" if faults else plural(total, "image")
    _log.info("%s: %s decoded into memory, %.0f MB, %.1f s", source.root, count, len(blob) / 1e6, seconds)
    return DecodedImages(np.frombuffer(blob, np.uint8), offsets, sizes, decoder.channels, tuple(sorted(faults)))


def estimated_bytes(source: ImageSource, decoder: Decoder) -> float:
    """Bytes that the pixels of a set take, by the headers of some of its images."""
    areas = []
    for i in np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int).tolist():
        try:
            width, height = decoder.size(source.read(i))
            areas.append(width * height)
        except Exception:  # corrupt
            continue
    return decoder.channels * len(source) * float(np.mean(areas)) if areas else 0.0
