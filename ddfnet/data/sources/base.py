"""What all sources share: the protocol, the section of the configuration, and the order of images."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import field_validator

from ddfnet.config import Contradiction, Fault, Section
from ddfnet.utils.errors import did_you_mean

KINDS = ("auto", "folder", "table", "huggingface", "tar", "store")
TIMM = "timm:"


class SourceConfig(Section):
    """The keys of `data` that say what the data is; `root`, `train` and `val` say where."""

    source: str = "auto"
    """What the data is: auto (by what is there), folder (class folders), table (CSV, TSV or text file of paths and
    labels), huggingface (parquet or arrow files), tar (WebDataset shards, ImageNet's own tars), store (made by
    prepare_images.py), or timm:NAME (a reader of timm with random access, e.g. timm:hfds/cifar10)."""
    image_column: str | None = None
    """Table, huggingface: the column of the image. tar: its extension. null: recognized."""
    label_column: str | None = None
    """Table, huggingface: the column of the label. tar: its extension. null: recognized."""
    class_names: str | None = None
    """Text file with the names of the classes, one a line in label order, for data that has numbers only, or
    imagenet-1k for its synset ids. null: those of the data."""
    val_labels: str | None = None
    """Labels of a tar of unsorted validation images: ImageNet's devkit (.tar.gz), or a text file. null: the devkit
    beside the tar."""
    labels: str | None = None
    """CSV or TSV file, below root or absolute, of file names and class names: for images in folders that say nothing of
    their classes. A file name is a path below root or below train and val, or the name alone. null: none."""
    multi_label: bool = False
    """Images have any number of classes, from the file `labels`, from lists as train and val, in one cell or in several
    lines, or from a store that was made of these. Needs loss.name=bce."""
    label_separator: str | None = None
    """multi_label: what stands between the class names of a cell. null: the first of | ; , that occurs."""
    allow_missing_val_classes: bool = False
    """Accept validation images that lack some of the classes. false: an error, which names them."""

    def faults(self) -> Iterator[Fault]:
        source, labels = {"data.source": self.source}, {"data.labels": self.labels}
        files = self.source in ("auto", "folder", "table")
        if self.labels is not None and not files:
            yield Fault(labels | source, "contradict: labels are for folders of images; leave them out, or the source")
        if self.multi_label and not files and self.source != "store":
            fix = "images have several labels in files and stores alone; leave one of the two out"
            yield Fault({"data.multi_label": True} | source, f"contradict: {fix}")
        if self.labels is not None and self.val_labels is not None:
            yield Contradiction(labels | {"data.val_labels": self.val_labels})

    @field_validator("source")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in KINDS and not (value.startswith(TIMM) and value != TIMM):
            expected = f"expected one of {', '.join(KINDS)}, or timm:NAME"
            raise ValueError(f"data.source={value!r} is not known: {did_you_mean(value, KINDS, otherwise=expected)}")
        return value


class ImageSource(Protocol):
    """Labeled images with random access, held in arrays: forked workers share them, and would copy Python objects.

    Images are ordered by label, then by name, so that the same images under the same names are the same sequence
    whatever they are stored in. Nothing that is open may be shared by forked processes: files are opened by the process
    that reads. A source can be pickled.
    """

    @property
    def root(self) -> str: ...  # where the images come from, as given

    @property
    def classes(self) -> list[str]: ...  # names; the position is the label

    def __len__(self) -> int: ...

    def label(self, i: int) -> int: ...

    def name(self, i: int) -> str:
        """Name of image `i` for messages; its path where it is a file."""

    def key(self, i: int) -> str:
        """Name of image `i` within the source, with its extension; unique within its class."""

    def read(self, i: int) -> bytes:
        """The encoded image `i`; OSError where it cannot be read."""

    def disk_order(self) -> np.ndarray:
        """int64 (N,): all images in the order in which reading them once is cheapest."""

    def fingerprint(self) -> str:
        """Changes when the images do, or their order: a hash of names, and of sizes and times of files."""


class Names:
    """Strings in one block of bytes: forked workers touch no reference counts."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.blob = np.frombuffer(b"".join(encoded), np.uint8)
        self.offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of_arrays(cls, blob: np.ndarray, offsets: np.ndarray) -> "Names":
        names = cls.__new__(cls)
        names.blob, names.offsets = blob, offsets
        return names

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class NamedImages:
    """The part of `ImageSource` that is the same wherever labels and keys are arrays."""

    root: str
    classes: list[str]
    labels: np.ndarray  # int32 (N,)
    keys: Names  # (N,)
    others: Counter[str] = field(default_factory=Counter, kw_only=True)  # files of `OTHER_IMAGES` that are left out

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def key(self, i: int) -> str:
        return self.keys[i]


def hash_files(paths: Iterable[str], *arrays: np.ndarray) -> str:
    """Hash of arrays, and of the sizes and times of files, for `ImageSource.fingerprint`."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"- ")
    return digest.hexdigest()


def canonical_order(labels: np.ndarray, keys: Sequence[str] | None) -> np.ndarray:
    """int64 (N,): indices sorted by label, then by name; equal or missing names stay in the order given."""
    if keys is None:
        return np.argsort(labels, kind="stable")
    encoded = np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=np.bytes_)
    return np.lexsort((encoded, labels))
