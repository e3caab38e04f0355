"""What tells one dataset from another of the same size: so that a run does not resume on other images unnoticed."""

import hashlib
import os

import numpy as np

from ddfnet.data.sources.base import ImageSource
from ddfnet.data.sources.ranges import ByteRanges


def class_hashes(source: ImageSource) -> dict[str, str]:
    """A hash for each class, by its name: of its label, the names of its images in order, and the sizes in bytes of its
    first and last one.

    All sizes would take a look at each of a million files. Damaged and missing files count as empty: training and
    evaluation have words for them.
    """
    labels = np.array([source.label(i) for i in range(len(source))], np.int64)
    prints = {}
    for label, name in enumerate(source.classes):
        images = np.flatnonzero(labels == label).tolist()
        digest = hashlib.blake2b(str(label).encode(), digest_size=8)
        for i in images:
            digest.update(source.key(i).encode("utf-8", "surrogateescape") + b"\0")
        for i in {images[0], images[-1]} if images else ():
            digest.update(f"{_bytes(source, i)}\0".encode())
        prints[name] = digest.hexdigest()
    return prints


def differing_classes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The classes whose images, names or label differ, sorted."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _bytes(source: ImageSource, i: int) -> int:
    if isinstance(source, ByteRanges):
        return int(source.size[i])
    try:
        path = source.name(i)
        return os.path.getsize(path) if os.path.isfile(path) else len(source.read(i))
    except OSError:
        return 0
