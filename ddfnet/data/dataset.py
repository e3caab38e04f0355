"""Reading one image: decode, augment, and what happens when a file is broken."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset, get_worker_info

from ddfnet.data.rng import REPLACEMENT, SAMPLE, entry_key, key_seeds, keyed_generators, seed_generators
from ddfnet.data.sampler import Request
from ddfnet.data.sources.folder import FolderIndex
from ddfnet.utils.errors import DataError

Transform = Callable[[Image.Image], torch.Tensor]

_REPLACEMENT_ATTEMPTS = 4


def open_rgb(path: str) -> Image.Image:
    """Decode an image file to RGB, as timm does: `convert("RGB")`, EXIF orientation ignored.

    One exception to timm: 16-bit gray keeps its upper 8 bits; Pillow alone clips it, which leaves a white image.
    The file is closed on return. Truncated files are errors (Pillow's default).

    Raises:
        Exception: whatever Pillow or the file system raises for a file that cannot be decoded.
    """
    # Pillow warns of odd metadata (EXIF, palette transparency), which changes no pixel; its decompression-bomb warning
    # is of another category and stays.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        with open(path, "rb") as file:
            image = Image.open(file)
            image.load()
        if is_16_bit_gray(image):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")


def is_16_bit_gray(image: Image.Image) -> bool:
    """True for 16-bit gray images. Some formats and versions of Pillow open them as 32-bit "I"."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def decode_error(error: Exception) -> str:
    """One-line reason, without the path, for a file that could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image, or its header is damaged"
    else:
        reason = str(getattr(error, "strerror", None) or error)
    return " ".join(f"{type(error).__name__}: {reason}".split())


class TrainDataset(Dataset):
    """Augmented training images.

    `dataset[(epoch, i, repeat)]` returns `(image, label, i, problem)`: image uint8 (3, H, W), `problem` an empty string
    or, if image i is broken, the reason. A broken image is replaced by another one of the set, drawn by (seed, epoch,
    i, attempt) and so the same one in each repeat, together with its label.

    The augmentation depends on (seed, epoch, i, repeat) alone: the global generators are keyed before each image. In
    the main process they are left as found (about 0.15 ms per image); in a worker nobody else uses them.

    Args:
        index: the images.
        transform: PIL RGB image -> uint8 (3, H, W) tensor.
        seed: keys augmentation and replacement.

    Raises:
        DataError: on reading, if several replacements in a row are broken as well.
    """

    def __init__(self, index: FolderIndex, transform: Transform, *, seed: int) -> None:
        self.index = index
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: Request) -> tuple[torch.Tensor, int, int, str]:
        epoch, i, repeat = request
        image, label, problem = self._read(epoch, i)
        key = entry_key(SAMPLE, self.seed, epoch, i, repeat)
        if get_worker_info() is not None:
            seed_generators(*key)
            return self.transform(image), label, i, problem
        with keyed_generators(*key):
            return self.transform(image), label, i, problem

    def _read(self, epoch: int, i: int) -> tuple[Image.Image, int, str]:
        """Image i or its replacement, its label, and why image i itself could not be read."""
        problem = ""
        for attempt in range(_REPLACEMENT_ATTEMPTS + 1):
            j = i if attempt == 0 else self._replacement(epoch, i, attempt)
            try:
                return open_rgb(self.index.path(j)), self.index.label(j), problem
            except Exception as error:
                problem = problem or decode_error(error)
        raise DataError(
            f"training image {self.index.path(i)} is broken ({problem}) and so are the {_REPLACEMENT_ATTEMPTS} images "
            f"tried in its place; find all of them with: python scripts/check_data.py {self.index.root}"
        )

    def _replacement(self, epoch: int, i: int, attempt: int) -> int:
        draw = key_seeds(REPLACEMENT, self.seed, epoch, i, attempt)[0]
        return (i + 1 + draw % max(1, len(self.index) - 1)) % len(self.index)


class EvalDataset(Dataset):
    """Evaluation images: `dataset[i]` returns `(image, label, i)`, image uint8 (3, H, W).

    Raises:
        DataError: on reading a broken image, with its path and the reason. An evaluation never replaces an image.
    """

    def __init__(self, index: FolderIndex, transform: Transform) -> None:
        self.index = index
        self.transform = transform

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        path = self.index.path(i)
        try:
            image = open_rgb(path)
        except Exception as error:
            raise DataError(
                f"evaluation image {path} is broken ({decode_error(error)}); restore the file: leaving it out would "
                "change the result"
            ) from error
        return self.transform(image), self.index.label(i), i
