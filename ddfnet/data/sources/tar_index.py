"""Where the members of tar files lie: read once from the headers, kept for the next time."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddfnet.data.arrays import load_arrays, save_arrays
from ddfnet.data.sources.base import Names
from ddfnet.utils.errors import DataError
from ddfnet.utils.progress import ProgressBar

_BLOCK = 512
_KEEP_FROM = 10_000  # members: fewer are read again faster than anybody notices
_VERSION = 1


class Member(NamedTuple):
    """A regular file in a tar."""

    tar: str  # name of the tar that holds it, without `.tar`: the file's own, or that of the tar within it
    name: str  # as the tar has it
    start: int  # of its bytes, in the file
    size: int  # bytes


@dataclass(frozen=True)
class TarIndex:
    """The members of several tar files, in order."""

    file: np.ndarray  # int32 (M,), number of the tar file
    tar: list[str]  # (T,), names of all tars, those within others too
    tar_of: np.ndarray  # int32 (M,), position in `tar`
    names: Names  # (M,)
    start: np.ndarray  # int64 (M,)
    size: np.ndarray  # int64 (M,)

    def __len__(self) -> int:
        return len(self.file)


def index_tars(files: list[str]) -> TarIndex:
    """Members of tar files, and of tars within them (one level, as in ImageNet's).

    A large index is kept in `$DDFNET_CACHE/indexes` (default `~/.cache/ddfnet/indexes`) under the names, sizes and
    times of the files. DataError where a file is no tar, compressed, damaged or truncated; it names file and fix.
    """
    cache = _cache_path(files)
    try:
        return _from_arrays(load_arrays(cache))
    except (OSError, ValueError, KeyError):  # there is none, or it is damaged
        pass
    numbers: dict[str, int] = {}
    rows: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    sizes = [os.path.getsize(path) for path in files]
    bar = ProgressBar("headers of tars", unit="MB")
    for number, path in enumerate(files):
        before = sum(sizes[:number])
        for member in tar_members(path):
            rows.append((number, numbers.setdefault(member.tar, len(numbers)), member.start, member.size))
            names.append(member.name)
            bar((before + member.start) // 10**6, sum(sizes) // 10**6 + 1)
    bar.close()
    table = np.array(rows, np.int64).reshape(-1, 4)
    index = TarIndex(
        table[:, 0].astype(np.int32),
        list(numbers),
        table[:, 1].astype(np.int32),
        Names(names),
        table[:, 2],
        table[:, 3],
    )
    if len(index) >= _KEEP_FROM:
        _keep(cache, index)
    return index


def tar_members(path: str) -> Iterator[Member]:
    """The regular files of one tar and of the tars in it, in order; DataError as for `index_tars`."""
    try:
        with open(path, "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            for member in _members(path, file, 0, end, Path(path).stem):
                if not member.name.lower().endswith(".tar"):
                    yield member
                    continue
                inner = Path(member.name).stem
                where = f"{path}, member {member.name}"
                for nested in _members(where, file, member.start, member.start + member.size, inner):
                    if nested.name.lower().endswith(".tar"):
                        raise DataError(f"{where}: holds another tar, {nested.name}; unpack one of them")
                    yield nested
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _members(where: str, file: io.FileIO, start: int, end: int, tar: str) -> Iterator[Member]:
    file.seek(start)
    head = file.read(6)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head == b"\xfd7zXZ\x00" or head[:4] == b"\x28\xb5\x2f\xfd":
        raise DataError(f"{where} is compressed, so that its members cannot be read at random; decompress it once")
    file.seek(start)
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else a million of them stay in memory
            if info.islnk() or info.issym() or info.sparse is not None:
                raise DataError(f"{where}: member {info.name} is a link or a sparse file; pack its content instead")
            if not info.isreg():
                continue
            if info.offset_data + info.size > end:
                missing = info.offset_data + info.size - end
                raise DataError(f"{where} is truncated: member {info.name} lacks {missing:,} bytes; copy it again")
            yield Member(tar, info.name, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DataError(f"{where} is truncated or damaged, or not a tar ({error}); copy it again") from None
    # The module takes a header that it cannot read for the end.
    file.seek(archive.offset)
    last = file.read(min(_BLOCK, max(0, end - archive.offset)))
    if len(last) < _BLOCK or any(last):
        state = "damaged" if any(last) else "truncated"
        raise DataError(
            f"{where} is {state} at byte {archive.offset:,}, where a header or the end should be; copy it again"
        )


def _cache_path(files: list[str]) -> Path:
    root = os.environ.get("DDFNET_CACHE") or os.path.join("~", ".cache", "ddfnet")
    state = [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([_VERSION, state]).encode()).hexdigest()
    return Path(os.path.expanduser(root)) / "indexes" / f"{key[:24]}.npz"


def _keep(cache: Path, index: TarIndex) -> None:
    tars = Names(index.tar)
    arrays = {
        "number": index.file, "tar_of": index.tar_of, "start": index.start, "size": index.size,
        "blob": index.names.blob, "offsets": index.names.offsets, "tar_blob": tars.blob, "tar_offsets": tars.offsets,
    }  # fmt: skip
    with contextlib.suppress(OSError):  # a folder that cannot be written: the headers are read again next time
        save_arrays(cache, arrays)


def _from_arrays(arrays: dict[str, np.ndarray]) -> TarIndex:
    tars = Names.of_arrays(arrays["tar_blob"], arrays["tar_offsets"])
    names = Names.of_arrays(arrays["blob"], arrays["offsets"])
    columns = [arrays[name] for name in ("number", "tar_of", "start", "size")]
    if any(len(column) != len(names) for column in columns):
        raise ValueError("lengths differ")
    file, tar_of, start, size = columns
    return TarIndex(file, [tars[i] for i in range(len(tars))], tar_of, names, start, size)
