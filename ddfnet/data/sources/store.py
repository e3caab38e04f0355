"""Prepared stores: images in a few large files, of which regions can be read (made by `ddfnet.data.prepare`)."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddfnet.data.arrays import load_arrays
from ddfnet.data.jpeg import Box, cut, read_header
from ddfnet.data.sources.base import Names
from ddfnet.data.sources.classes import compare_classes, refuse_empty_classes
from ddfnet.data.sources.ranges import ByteRanges, read_range
from ddfnet.utils.errors import DataError

META, STATE, INDEX = "store.json", "prepare.json", "index.npz"  # the first makes a store, the second an unfinished one
LABEL_SETS = "label_sets"  # key of META: of images with any number of classes their names, and the classes of each set
FORMAT = 1
ARRAYS = {
    "labels": np.int32,
    "number": np.int32,  # of the file
    "start": np.int64,  # of the image's bytes
    "size": np.int64,
    "intervals": np.int32,  # restart intervals; their table of uint32 positions lies before the image. 0: not to be cut
    "width": np.int32,  # pixels, 0: corrupt
    "height": np.int32,
    "crc": np.uint32,  # CRC-32 of the image's bytes
}


@dataclass(frozen=True, eq=False)
class Store(ByteRanges):
    """A prepared store (see `ImageSource`), which reads regions too."""

    intervals: np.ndarray  # int32 (N,), restart intervals of each image; 0: not to be cut
    sizes: np.ndarray  # int32 (N, 2), width and height in pixels; 0 where the image is corrupt
    crc: np.ndarray  # uint32 (N,)

    def read_region(self, i: int, box: Box) -> tuple[bytes | bytearray, int, int]:
        """A file that holds a box of image `i`, and the position (left, top) of its first pixel in the image.

        Decoded, the box has the pixels that it has in the whole image. It may be the whole image.
        """
        count = int(self.intervals[i])
        if not count:
            return self.read(i), 0, 0
        table = 4 * (count + 1)
        start, size = int(self.start[i]), int(self.size[i])
        data = read_range(self.files[self.file[i]], start - table, table + size)
        starts, image = np.frombuffer(data, np.uint32, count + 1).astype(np.int64), data[table:]
        return cut(image, read_header(image), starts, box)


def open_store(
    path: str,
    *,
    classes: list[str] | None = None,
    allow_empty: bool = False,
    allow_absent: bool = False,
    label_sets: bool | None = False,
) -> Store:
    """The store in a folder. See `open_source`; DataError where it is unfinished, incomplete or damaged, or not of the
    kind that `label_sets` asks for: of images with one class each, or any number; None: either."""
    meta = read_meta(path)
    if label_sets is not None and label_sets != (LABEL_SETS in meta):
        raise DataError(
            f"{path} holds images with any number of classes each: set data.multi_label=true (--multi-label) and "
            "loss.name=bce"
            if LABEL_SETS in meta
            else f"data.multi_label=true: {path} holds images with one class each; leave the key out, or prepare the "
            "store again with --multi-label"
        )
    try:
        content = load_arrays(Path(path) / INDEX)
        arrays = {name: content[name].astype(kind, casting="same_kind") for name, kind in ARRAYS.items()}
        keys = Names.of_arrays(content["blob"], content["offsets"])
        own, sizes = [str(name) for name in meta["classes"]], [int(size) for size in meta["file_sizes"]]
        count = int(meta["images"])
        if len(keys) != count or any(len(array) != count for array in arrays.values()):
            raise ValueError(f"not of {count} images")
        if count and not (arrays["labels"].min() >= 0 and arrays["labels"].max() < len(own)):
            raise ValueError("labels out of range")
        if count and not (arrays["number"].min() >= 0 and arrays["number"].max() < len(sizes)):
            raise ValueError("file numbers out of range")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {INDEX} or {META} is damaged ({error}); prepare the store again") from None
    files = [os.path.join(path, data_file(number)) for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        here = os.path.getsize(file) if os.path.exists(file) else None
        if here != size:
            state = "is missing" if here is None else f"has {here:,} bytes"
            raise DataError(f"{file} {state}, it should have {size:,}; copy the store again")
    labels = arrays["labels"]
    if classes is not None:
        compare_classes(path, set(own), set(classes), missing_is_wrong=not allow_absent)
        position = {name: i for i, name in enumerate(classes)}
        labels, own = np.array([position[name] for name in own], np.int32)[labels], list(classes)
    refuse_empty_classes(path, labels, own, allow_empty)
    order = np.argsort(labels, kind="stable")  # as it is, but for classes in another order
    chosen = {name: array[order] for name, array in arrays.items()}
    return Store(
        root=path,
        classes=own,
        labels=labels[order],
        keys=keys if np.array_equal(order, np.arange(count)) else Names([keys[i] for i in order.tolist()]),
        files=files,
        file=chosen["number"],
        start=chosen["start"],
        size=chosen["size"],
        intervals=chosen["intervals"],
        sizes=np.stack([chosen["width"], chosen["height"]], axis=1),
        crc=chosen["crc"],
    )


def has_label_sets(path: str | os.PathLike) -> bool:
    """Whether a path is a store of images with any number of classes each."""
    return (Path(path) / META).is_file() and LABEL_SETS in read_meta(Path(path))


def read_meta(path: str | Path) -> dict[str, Any]:
    """`store.json` of a finished store; DataError where there is none, or it is of another version."""
    file = Path(path) / META
    if not file.exists():
        unfinished = (Path(path) / STATE).exists()
        fix = "run prepare_images.py again, it continues" if unfinished else "give the folder of a prepared store"
        raise DataError(f"{path} is {'an unfinished' if unfinished else 'no'} store; {fix}")
    try:
        meta = json.loads(file.read_text())
        version = meta["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error!r}); prepare the store again") from None
    if version != FORMAT:
        raise DataError(f"{file} is of format {version}, this version reads {FORMAT}; prepare the store again")
    return meta


def data_file(number: int) -> str:
    """Name of a store's n-th file of images."""
    return f"images-{number:05d}.bin"
