"""Class folders of images drawn on the spot: the tests need no data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddfnet.data.decode import open_rgb


def draw(path: Path, key: int, size: tuple[int, int] = (40, 32)) -> None:
    """Smooth colored noise that differs with every key, so that no two images look alike."""
    noise = np.random.default_rng(key).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


def make_tree(root: Path, classes=("cat", "dog", "eel"), per_class: int = 6, suffix: str = ".png") -> Path:
    for c, name in enumerate(classes):
        for i in range(per_class):
            draw(root / name / f"{i:03d}{suffix}", 1000 * c + i)
    return root


def mean_difference(a, b):
    return np.abs(np.asarray(open_rgb(a), np.int16) - np.asarray(open_rgb(b), np.int16)).mean()
