"""Random crops of which only the region is decoded, where the source can give that."""

from collections.abc import Callable
from random import choice
from typing import Any

from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import Compose
from torchvision.transforms import functional as F

from ddfnet.data.decode import open_rgb
from ddfnet.data.sources import ImageSource
from ddfnet.data.sources.store import Store


class RegionCrop:
    """The random resized crop that a training transform begins with, for images of a prepared store.

    It draws what timm's crop draws, and gives its pixels: about half of an image is decoded for the same result.

    Attributes:
        rest: what the transform does after the crop.
    """

    def __init__(self, store: Store, transform: Compose) -> None:
        self.store, self.crop = store, transform.transforms[0]
        self.rest = Compose(transform.transforms[1:])

    @classmethod
    def of(cls, source: ImageSource, transform: Callable) -> "RegionCrop | None":
        """None where the source has no regions, or the transform does not begin with such a crop."""
        first: Any = transform.transforms[0] if isinstance(transform, Compose) else None
        fits = isinstance(source, Store) and isinstance(first, RandomResizedCropAndInterpolation)
        return cls(source, transform) if fits else None  # type: ignore[arg-type]

    def applies(self, i: int) -> bool:
        """Whether regions of image `i` can be read."""
        return bool(self.store.intervals[i])

    def __call__(self, i: int) -> Image.Image:
        """A crop of image `i`, resized, drawn from the global generator of `random`; what Pillow raises where the image
        is damaged."""
        blank = Image.new("1", tuple(self.store.sizes[i].tolist()))  # timm asks an image for its size
        top, left, height, width = self.crop.get_params(blank, self.crop.scale, self.crop.ratio)
        modes = self.crop.interpolation
        mode = choice(modes) if isinstance(modes, tuple | list) else modes
        data, x, y = self.store.read_region(i, (left, top, left + width, top + height))
        return F.resized_crop(open_rgb(data), top - y, left - x, height, width, self.crop.size, mode)
