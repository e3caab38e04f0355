"""What all sources share: the protocol, the section of the configuration, and how classes and order are settled."""

import argparse
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import field_validator
from timm.data import ImageNetInfo

from ddfnet.config import Section
from ddfnet.utils.errors import DataError, did_you_mean

KINDS = ("auto", "folder", "table", "huggingface", "tar", "store")
TIMM = "timm:"
IMAGENET_1K = "imagenet-1k"  # as `class_names`

_MOST_NAMES = 5  # how many names an error message lists


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

    @field_validator("source")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in KINDS and not (value.startswith(TIMM) and value != TIMM):
            expected = f"expected one of {', '.join(KINDS)}, or timm:NAME"
            raise ValueError(f"data.source={value!r} is not known: {did_you_mean(value, KINDS, otherwise=expected)}")
        return value


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the keys of `SourceConfig` as options of a command."""
    parser.add_argument("--kind", dest="data_source", choices=KINDS, help="what the data is (default: recognized)")
    for key, field in SourceConfig.model_fields.items():
        if key != "source":
            option, text = f"--{key.replace('_', '-')}", " ".join((field.description or "").split())
            parser.add_argument(option, dest=f"data_{key}", metavar=key.split("_")[-1].upper(), help=text)


def source_config(arguments: argparse.Namespace) -> SourceConfig:
    """The configuration that the options of `add_source_options` give."""
    given = {key: getattr(arguments, f"data_{key}") for key in SourceConfig.model_fields}
    return SourceConfig(**{key: value for key, value in given.items() if value is not None})


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


@dataclass(frozen=True, eq=False)
class NamedImages:
    """The part of `ImageSource` that is the same wherever labels and keys are arrays."""

    root: str
    classes: list[str]
    labels: np.ndarray  # int32 (N,)
    keys: Names  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def key(self, i: int) -> str:
        return self.keys[i]


def canonical_order(labels: np.ndarray, keys: Sequence[str] | None) -> np.ndarray:
    """int64 (N,): indices sorted by label, then by name; equal or missing names stay in the order given."""
    if keys is None:
        return np.argsort(labels, kind="stable")
    encoded = np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=np.bytes_)
    return np.lexsort((encoded, labels))


def settle_classes(
    root: str,
    labels: np.ndarray,
    own: list[str] | None,
    *,
    classes: list[str] | None,
    config: SourceConfig,
    where: Callable[[int], str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Labels and class names of a source whose labels are numbers.

    Args:
        labels: int (N,), as the data numbers its classes.
        own: names of these numbers, where the data has some.
        classes: expected names in label order (see `open_source`).
        where: position in `labels` -> where that label stands, for messages.

    Returns:
        labels int32 (N,) and the class names they count in.

    DataError where a label has no name, or the classes are not the expected ones.
    """
    names = _names_of_file(config.class_names) or own
    if names is not None and len(names) == 1000:
        names = _synsets(names)
    if names is not None and len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{root}: class names occur twice: {some_names(twice)}; give others as data.class_names")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    limit = len(names) if names is not None else len(classes) if classes is not None else high + 1
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        # Test sets hide their labels as -1.
        fix = "choose a split with labels" if low < 0 else "correct it, or give all names as data.class_names"
        first = where(int(np.argmax(labels == wrong))) if where is not None else root
        raise DataError(f"{first}: label {wrong} is out of range, there are {limit} classes (0 to {limit - 1}); {fix}")
    if classes is None or names is None:
        return labels.astype(np.int32), list(classes or names or map(str, range(limit)))
    compare_classes(root, set(names), set(classes))
    position = {name: i for i, name in enumerate(classes)}
    return np.array([position[name] for name in names], np.int32)[labels], list(classes)


def settle_names(
    root: str,
    labels: Sequence[str],
    *,
    classes: list[str] | None,
    config: SourceConfig,
    where: Callable[[int], str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """`settle_classes` for labels given as text: whole numbers throughout are numbers, all else are class names."""
    known, codes = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
    texts = known.tolist()
    if all(text.removeprefix("-").isdecimal() for text in texts) and not set(texts) <= set(classes or ()):
        numbers = np.array([int(text) for text in texts], np.int64)
        return settle_classes(root, numbers[codes], None, classes=classes, config=config, where=where)
    names = _names_of_file(config.class_names)

    def first_of(name: str) -> str:
        return where(int(np.argmax(codes == texts.index(name)))) if where is not None and name in texts else root

    if names is not None:
        compare_classes(root, set(texts), set(names), whose="data.class_names", missing_is_wrong=False, where=first_of)
    expected = classes if classes is not None else names
    if expected is None:
        return codes.astype(np.int32), texts
    compare_classes(root, set(texts if names is None else names), set(expected), where=first_of)
    position = {name: i for i, name in enumerate(expected)}
    return np.array([position[text] for text in texts], np.int32)[codes], list(expected)


def refuse_empty_classes(root: str, labels: np.ndarray, classes: list[str], allow_empty: bool) -> None:
    """DataError where there is no image at all, or a class without any, unless that is allowed."""
    if not len(labels):
        raise DataError(f"{root} holds no images; give the data of another place")
    counts = np.bincount(labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty and not allow_empty:
        raise DataError(
            f"{len(empty)} of {len(classes)} classes in {root} have no images: {some_names(empty)}; "
            "fill them, or leave them out of the class names"
        )


def compare_classes(
    root: str,
    present: set[str],
    expected: set[str],
    *,
    whose: str = "the training set or checkpoint",
    missing_is_wrong: bool = True,
    where: Callable[[str], str] | None = None,
) -> None:
    """DataError where the classes of a source are not the expected ones; `where` tells where one first occurs."""
    missing, extra = sorted(expected - present), sorted(present - expected)
    parts = [f"{len(missing)} missing ({some_names(missing)})"] * bool(missing and missing_is_wrong)
    first = f", the first in {where(extra[0])}" if extra and where is not None else ""
    parts += [f"{len(extra)} not expected ({some_names(extra)}{first})"] * bool(extra)
    if parts:
        raise DataError(
            f"the classes of {root} differ from the {len(expected)} classes of {whose}: {' and '.join(parts)}; use the "
            "data that belongs to them, with the same class names, or name them with data.class_names"
        )


def some_names(names: list[str]) -> str:
    """The first five names, comma-separated, with dots if there are more."""
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")


def _names_of_file(path: str | None) -> list[str] | None:
    if path is None:
        return None
    if path == IMAGENET_1K:
        return ImageNetInfo(IMAGENET_1K).label_names()
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise DataError(f"data.class_names={path} cannot be read: {reason}") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise DataError(f"data.class_names={path} must have one name a line in label order, without empty lines")
    return names


def _synsets(names: list[str]) -> list[str]:
    """ImageNet-1k's synset ids for its classes in words ("tench, Tinca tinca", ...), as its Hugging Face edition has
    them; other names as they are."""
    info = ImageNetInfo(IMAGENET_1K)
    words = [info.index_to_description(i) for i in range(1000)]
    agree = sum(a.split(",")[0].lower() == b.split(",")[0].lower() for a, b in zip(names, words, strict=True))
    return info.label_names() if agree >= 950 else names
