"""A source whose images are ranges of bytes of a few files: tars, Arrow files, prepared stores."""

import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddfnet.data.sources.base import NamedImages, Names, canonical_order, hash_files

_MOST_OPEN = 128  # files kept open per process; systems allow from 256 on
_open_files: OrderedDict[str, int] = OrderedDict()


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start` on; OSError where it has fewer. Keeps the file open for the next call.

    Forked processes may share what is open: reading at an offset leaves no trace in the file's state.
    """
    handle = _open_files.pop(path, None)
    if handle is None:
        while len(_open_files) >= _MOST_OPEN:
            os.close(_open_files.popitem(last=False)[1])
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    _open_files[path] = handle
    if hasattr(os, "pread"):
        data = os.pread(handle, size, start)
        while 0 < len(data) < size:  # some systems read 2 GB at most, or less from a network
            more = os.pread(handle, size - len(data), start + len(data))
            if not more:
                break
            data += more
    else:  # Windows, where processes do not share open files
        os.lseek(handle, start, os.SEEK_SET)
        data = os.read(handle, size)
    if len(data) < size:
        raise OSError(f"{path} ends {size - len(data)} bytes too early")
    return data


def close_files() -> None:
    """Closes what `read_range` keeps open, so that files which were replaced are opened anew."""
    while _open_files:
        os.close(_open_files.popitem()[1])


@dataclass(frozen=True, eq=False)
class ByteRanges(NamedImages):
    """Images at known positions of files (see `ImageSource`)."""

    files: list[str]  # paths
    file: np.ndarray  # int32 (N,), position in `files`
    start: np.ndarray  # int64 (N,), bytes
    size: np.ndarray  # int64 (N,), bytes

    def name(self, i: int) -> str:
        return os.path.join(self.files[self.file[i]], self.keys[i])

    def read(self, i: int) -> bytes:
        return read_range(self.files[self.file[i]], int(self.start[i]), int(self.size[i]))

    def disk_order(self) -> np.ndarray:
        return np.lexsort((self.start, self.file))

    def fingerprint(self) -> str:
        return hash_files(self.files, self.keys.blob, self.file, self.start, self.size)


def byte_ranges(
    root: str,
    classes: list[str],
    labels: np.ndarray,
    keys: Sequence[str],
    files: list[str],
    file: np.ndarray,
    start: np.ndarray,
    size: np.ndarray,
    *,
    named: bool = True,
    others: Counter[str] | None = None,
) -> ByteRanges:
    """A `ByteRanges` with its images put in order; `named`: whether the keys are names to order by."""
    order = canonical_order(labels, keys if named else None)
    return ByteRanges(
        root=root,
        classes=classes,
        labels=labels[order].astype(np.int32),
        keys=Names([keys[i] for i in order.tolist()]),
        files=files,
        file=file[order].astype(np.int32),
        start=start[order].astype(np.int64),
        size=size[order].astype(np.int64),
        others=Counter() if others is None else others,
    )
