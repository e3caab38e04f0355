"""Evaluation sets on disk as they are shown to the network: uint8 pixels, read through a memory map.

A cache is one file in a folder of the user's, named by a hash of what it depends on: the images (names, sizes and times
of their files) and the transform, versions of the libraries included. It is filled by whoever evaluates: workers, ranks
and runs may do so at the same time, because all write the same bytes to the same places. While it is incomplete it is
called `.partial`, and each row counts from the moment that its checksum is written, after the row. So a process that is
killed, or a machine that stops, costs the rows that were not written. The next one to open a full file verifies all of
it, makes it last, and gives it its name. A reader compares each row with its checksum when it first needs it, in a
finished file too; a damaged row is read from its image again.

    4096 bytes   JSON: what the file is of
    8 N bytes    checksums: CRC-32 with bit 32 set; 0: the row is missing
    rows         uint8 (N, height, width, channels), from the next multiple of 4096 on
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.sources import ImageSource
from ddfnet.utils.errors import ConfigError, DataError
from ddfnet.utils.files import sync_folder

_HEADER, _PRESENT = 4096, 1 << 32
# One higher whenever images are decoded to other pixels than before. 2: 32-bit gray, which was black.
_FORMAT = 2
_SUFFIX, _PARTIAL = ".pixels", ".pixels.partial"
_log = logging.getLogger("ddfnet")


class ValCache:
    """Rows of an evaluation set by index; see the module.

    Args:
        folder: where the file lies, or will. Made where it is missing.
        source, preprocessing: what the rows are of.
        writes: False reads what is there and changes nothing, for a dry run.

    Raises:
        ConfigError: on Windows, which cannot write at a place of a file that others write to.
        DataError: the folder cannot be written to, or has no room for the set.
    """

    def __init__(
        self, folder: str | os.PathLike, source: ImageSource, preprocessing: Preprocessing, *, writes: bool = True
    ) -> None:
        if not hasattr(os, "pwrite"):
            raise ConfigError(f"data.val_cache={folder} is not available on this system (Windows): set it to null")
        about = _about(source, preprocessing)
        channels, height, width = preprocessing.input_size
        self.shape = len(source), height, width, channels
        name = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()
        # The root is told, but does not count: the same files in another place, times included, are the same images.
        self.header = json.dumps({**about, "root": source.root}).encode()[:_HEADER].ljust(_HEADER)
        self.final, self.partial = Path(folder, name + _SUFFIX), Path(folder, name + _PARTIAL)
        self._rows_at = -(-(_HEADER + 8 * len(source)) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes = self._rows_at + int(np.prod(self.shape))
        self._handle: int | None = None
        self._writes, self._warned = writes, False
        try:
            self._prepare()
            self._open()
        except OSError as error:
            raise DataError(
                f"data.val_cache={folder} cannot be used: {error.strerror or error}; name another folder, or null"
            ) from None
        _report_others(self.final.parent, name, {**about, "root": source.root})
        there = int((self._checksums != 0).sum())
        _log.info("evaluation cache %s: %d of %d images, %.1f GB", self.path, there, self.shape[0], self.bytes / 1e9)

    @property
    def path(self) -> Path:
        return self.final if self.complete else self.partial

    def read(self, i: int, row: np.ndarray) -> bool:
        """Copies row i, uint8 (height, width, channels), contiguous, where it is there as it was written; returns
        whether it was.

        Only the first read of a row in a process compares it with its checksum. The first damaged row of a finished
        file is a warning.
        """
        self._open()
        if self._verified[i]:
            row[...] = self._rows[i]
            return True
        if self._checksums[i] != 0:
            row[...] = self._rows[i]
            self._verified[i] = self._checksums[i] == _checksum(row)
        if self.complete and not self._verified[i] and not self._warned:
            self._warned = True
            _log.warning("%s is damaged: row %d, maybe others; their images are read again", self.final, i)
        return bool(self._verified[i])

    def write(self, i: int, row: np.ndarray) -> None:
        """Keeps row i, uint8 (height, width, channels), contiguous. Where that fails, a warning ends the writing."""
        self._open()
        if not self._writes or self._verified[i]:
            return
        try:
            with self._writable() as handle:
                _write_at(handle, row, self._rows_at + i * row.nbytes)
                _write_at(handle, np.array([_checksum(row)], np.uint64), _HEADER + 8 * i)
            self._verified[i] = True
        except OSError as error:
            self._writes = False
            if not self.complete:  # else the damage was told
                _log.warning("%s cannot be written: %s; images are read as usual", self.partial, error.strerror)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned opens the file for itself.
        return {**{key: value for key, value in vars(self).items() if key[:5] not in ("_rows", "_chec", "_veri")},
                "_rows_at": self._rows_at, "_handle": None}  # fmt: skip

    def _prepare(self) -> None:
        """A file of the right size is there: complete, or to be filled."""
        if self._writes:
            self.final.parent.mkdir(parents=True, exist_ok=True)
        if self.final.exists() and not self._is_finished():
            _log.warning("%s is damaged; it is made again", self.final)
            if self._writes:
                self.final.unlink(missing_ok=True)
        self.complete = self._is_finished()
        if self.complete:
            self._drop_partial()
            return
        missing = self.bytes - (self.partial.stat().st_size if self.partial.exists() else 0)
        parent = next(folder for folder in self.final.parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OSError(f"{parent} is not a folder that can be written to")
        free = shutil.disk_usage(parent).free
        if missing > free:
            raise OSError(f"it needs {self.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        if not self._writes:
            return
        handle = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Another process may have finished the file just before: then this one is new, and empty.
            self.complete = self._is_finished()
            if not self.complete:
                os.ftruncate(handle, self.bytes)  # to what it already has, where another process came first
                _write_at(handle, np.frombuffer(self.header, np.uint8), 0)
        finally:
            os.close(handle)
        if self.complete:
            self._drop_partial()
        else:
            self._finish()

    def _is_finished(self) -> bool:
        return self.final.exists() and self.final.stat().st_size == self.bytes

    def _drop_partial(self) -> None:
        if self._writes:
            with contextlib.suppress(OSError):  # on a disk that is read only it may stay
                self.partial.unlink()

    def _finish(self) -> None:
        """Gives a full file its name, once all its rows are verified and on disk."""
        self._open()
        if self.complete or not (self._checksums != 0).all():
            return
        assert self._handle is not None
        if all(self._checksums[i] == _checksum(self._rows[i]) for i in range(self.shape[0])):
            os.fsync(self._handle)
            with contextlib.suppress(FileNotFoundError):  # another process was faster, and may have made a new one
                if os.path.samestat(os.fstat(self._handle), self.partial.stat()):
                    os.replace(self.partial, self.final)
            sync_folder(self.final.parent)
            self.complete = True
            self._verified[:] = True

    def _open(self) -> None:
        if self._handle is not None:
            return
        count = self.shape[0]
        self.complete = self.complete or (not self.partial.exists() and self._is_finished())  # by another since
        if not (self._writes or self.complete or self._is_partial()):
            self._checksums, self._verified = np.zeros(count, np.uint64), np.zeros(count, bool)
            return
        try:
            self._handle = os.open(self.path, os.O_RDWR if self._writes and not self.complete else os.O_RDONLY)
        except FileNotFoundError:  # another process has finished it in this moment
            self._handle, self.complete = os.open(self.final, os.O_RDONLY), True
        content = np.frombuffer(mmap.mmap(self._handle, self.bytes, prot=mmap.PROT_READ), np.uint8)
        self._checksums = content[_HEADER : _HEADER + 8 * count].view(np.uint64)
        self._rows = content[self._rows_at :].reshape(self.shape)
        self._verified = np.zeros(count, bool)

    def _is_partial(self) -> bool:
        return self.partial.exists() and self.partial.stat().st_size == self.bytes

    @contextlib.contextmanager
    def _writable(self) -> Iterator[int]:
        """The file to write to; a finished one is open for reading alone, and opened anew for its damaged rows."""
        if not self.complete:
            assert self._handle is not None
            yield self._handle
            return
        handle = os.open(self.final, os.O_RDWR)
        try:
            yield handle
        finally:
            os.close(handle)


def _about(source: ImageSource, preprocessing: Preprocessing) -> dict[str, Any]:
    how = preprocessing.to_dict()
    keys = ["input_size", "crop_pct", "interpolation", "resize"]
    # Only where they are not the usual ones, so that caches of before there was a choice stay valid.
    keys += ["crop_mode"] if preprocessing.crop_mode != "center" else []
    border = {"fill": preprocessing.mean_color} if preprocessing.crop_mode == "border" else {}
    channels = {} if len(preprocessing.mean) == 3 else {"channels": len(preprocessing.mean)}
    return {
        "format": _FORMAT,
        "images": source.fingerprint(),
        "transform": {**{key: how[key] for key in keys}, **border, **channels},
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }


def _report_others(folder: Path, name: str, about: dict[str, Any]) -> None:
    """Says which caches of the folder were made of the same images before these, or the libraries, changed."""
    for path in sorted(folder.glob(f"*{_SUFFIX}*")):
        if path.name.startswith(name):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as file:
            other = json.loads(file.read(_HEADER))
            if (other["root"], other["transform"]) == (about["root"], about["transform"]):
                changed = [key for key in ("format", "images", "torch", "pillow") if other[key] != about[key]]
                size = path.stat().st_size / 1e9
                _log.warning("%s is stale, other %s: delete it, it takes %.1f GB", path, ", ".join(changed), size)


def _checksum(row: np.ndarray) -> np.uint64:
    return np.uint64(zlib.crc32(row.data) | _PRESENT)


def _write_at(handle: int, array: np.ndarray, at: int) -> None:
    view = array.data.cast("B")
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
