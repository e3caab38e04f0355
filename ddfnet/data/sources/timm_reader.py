"""Readers of timm that have random access, as a source."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddfnet.data.sources.base import TIMM, NamedImages, Names, SourceConfig, canonical_order, hash_files
from ddfnet.data.sources.classes import refuse_empty_classes, settle_classes
from ddfnet.utils.errors import DataError

_STREAMS = ("wds", "tfds", "hfids")


@dataclass(frozen=True, eq=False)
class TimmSource(NamedImages):
    """Images of a reader of timm (see `ImageSource`)."""

    reader: Any
    row: np.ndarray  # int64 (N,), position in the reader

    def name(self, i: int) -> str:
        return os.path.join(self.root, self.keys[i])

    def read(self, i: int) -> bytes:
        file, _ = self.reader[int(self.row[i])]
        with file:
            return file.read()

    def disk_order(self) -> np.ndarray:
        return np.argsort(self.row)

    def fingerprint(self) -> str:
        # A dataset of Hugging Face's has one of its own; other readers have files, or one tar.
        own = str(getattr(getattr(self.reader, "dataset", None), "_fingerprint", ""))
        paths = (self.root, *map(self.name, range(len(self))))
        return hash_files(paths, self.keys.blob, self.row, np.frombuffer(own.encode(), np.uint8))


def open_timm(
    root: str, split: str, *, classes: list[str] | None = None, allow_empty: bool = False, config: SourceConfig
) -> TimmSource:
    """Source of the reader that `config.source`, `timm:NAME`, names to timm's `create_reader`. See `open_source`.

    Args:
        root: the reader's root: a cache (`hfds/...`), a folder or a tar (any other name).
        split: the reader's split.

    DataError where the reader streams, or needs a package that is missing, or fails.
    """
    from timm.data.readers import create_reader
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    name = config.source.removeprefix(TIMM)
    kind = name.partition("/")[0].lower() if "/" in name else ""
    if kind in _STREAMS:
        raise DataError(
            f"data.source={config.source}: this reader of timm streams, which gives neither exact epochs nor exact "
            "resumption; its files have random access with data.source=tar or huggingface, else prepare them"
        )
    if kind not in ("", "hfds"):  # timm would read class folders
        raise DataError(
            f"data.source={config.source}: timm has no reader of {kind}/; it has timm:hfds/NAME, and timm:folder for "
            "class folders and tars"
        )
    try:
        if kind != "hfds" and os.path.isfile(root) and root.endswith(".tar"):
            # Open files shared by forked workers would mix up their positions; its cache on disk is a pickle.
            reader = ReaderImageInTar(root, cache_tarfiles=False, cache_tarinfo=False)
        else:
            keys = {"input_key": config.image_column, "target_key": config.label_column} if kind == "hfds" else {}
            reader = create_reader(name, root or None, split=split, **keys)
    except ImportError as error:
        raise DataError(
            f"data.source={config.source} needs a package that is missing: pip install {error.name}"
        ) from None
    except Exception as error:  # the reader, and the packages below it, raise what they like
        raise DataError(f"data.source={config.source}: timm's reader of {root} failed: {error!r}") from None
    if kind != "hfds" and (config.image_column or config.label_column):
        raise DataError(
            f"data.source={config.source} has no columns: leave out data.image_column and data.label_column"
        )
    names, labels = _class_names(reader), _labels(reader)
    if not all(isinstance(label, int | np.integer) for label in labels):
        raise DataError(f"data.source={config.source}: labels must be whole numbers, one of them is {labels[0]!r}")
    where = root or name

    def row(i: int) -> str:
        return f"{where}, row {i}"

    numbers, known = settle_classes(where, np.array(labels, np.int64), names, classes=classes, config=config, where=row)
    refuse_empty_classes(where, numbers, known, allow_empty)
    files = None if kind == "hfds" else _file_names(reader)  # which would read every image
    order = canonical_order(numbers, files)
    keys_of = files or [f"{row:08d}" for row in range(len(numbers))]
    return TimmSource(where, known, numbers[order], Names([keys_of[i] for i in order.tolist()]), reader, order)


def _class_names(reader: Any) -> list[str] | None:
    for attribute in ("class_to_idx", "class_name_to_idx"):
        numbers = getattr(reader, attribute, None)
        if isinstance(numbers, dict) and sorted(numbers.values()) == list(range(len(numbers))):
            return sorted(numbers, key=numbers.__getitem__)
    return None


def _labels(reader: Any) -> list[Any]:
    """All labels, without reading the images where the reader can do that."""
    if hasattr(reader, "targets"):
        return list(reader.targets)
    samples = getattr(reader, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
        return [label for _, label in samples]
    iterate: Callable[[], Any] | None = getattr(reader, "iter_targets", None)
    if iterate is not None and not inspect.signature(iterate).parameters:
        return list(iterate())
    return [reader[i][1] for i in range(len(reader))]


def _file_names(reader: Any) -> list[str] | None:
    """Names of all images, None where some have none or the same."""
    try:
        names = reader.filenames(basename=False, absolute=False)
    except (KeyError, TypeError, NotImplementedError):
        return None
    if not all(isinstance(name, str) and name for name in names):
        return None
    return [str(name) for name in names] if len(set(names)) == len(names) else None
