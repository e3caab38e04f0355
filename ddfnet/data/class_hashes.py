"""What tells one dataset from another of the same size: so that a run does not resume on other images unnoticed."""

import hashlib
import os
import posixpath

import numpy as np

from ddfnet.data.sources.base import ImageSource
from ddfnet.data.sources.ranges import ByteRanges
from ddfnet.data.sources.store import Store


def class_hashes(source: ImageSource) -> dict[str, str]:
    """For each class, by its name, two hashes with a dash between: of its label and the names of its images in order,
    without folders, and of the sizes in bytes of its first and last one.

    The same images have the same names in every form of source. A prepared store has files of its own, whose sizes are
    left out. All sizes would take a look at each of a million files. Damaged and missing files count as empty: training
    and evaluation have words for them.
    """
    labels = np.array([source.label(i) for i in range(len(source))], np.int64)
    prints = {}
    for label, name in enumerate(source.classes):
        images = np.flatnonzero(labels == label).tolist()
        digest = hashlib.blake2b(str(label).encode(), digest_size=8)
        for i in images:
            digest.update(posixpath.basename(source.key(i)).encode("utf-8", "surrogateescape") + b"\0")
        sizes = ""
        if images and not isinstance(source, Store):
            ends = f"{_bytes(source, images[0])} {_bytes(source, images[-1])}"
            sizes = hashlib.blake2b(ends.encode(), digest_size=4).hexdigest()
        prints[name] = f"{digest.hexdigest()}-{sizes}"
    return prints


def differing_classes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The classes whose images, names or label differ, sorted."""
    return sorted(name for name in {*before, *now} if not _alike(before.get(name, ""), now.get(name, "")))


def _alike(one: str, other: str) -> bool:
    names, _, sizes = one.partition("-")
    other_names, _, other_sizes = other.partition("-")
    return names == other_names and (not sizes or not other_sizes or sizes == other_sizes)


def _bytes(source: ImageSource, i: int) -> int:
    if isinstance(source, ByteRanges):
        return int(source.size[i])
    try:
        path = source.name(i)
        return os.path.getsize(path) if os.path.isfile(path) else len(source.read(i))
    except OSError:
        return 0
