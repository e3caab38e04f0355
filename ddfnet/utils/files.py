"""Files: written whole or not at all, JSON without NaN, JSON lines that a crash may have cut."""

import errno
import io
import itertools
import json
import logging
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ddfnet.utils.errors import UserError, nearest

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LACKING = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # what disks say of calls they do not have
_log = logging.getLogger("ddfnet")


class NoSpaceError(OSError):
    """A disk or quota is full: `strerror` says what was needed and what is free. Nothing of the file is left."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, size: int | None = None) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one, whole.

    Args:
        size: about how many bytes, for the message where they do not fit.

    Raises:
        NoSpaceError: they do not fit; the old file is as it was.
        OSError: it cannot be written otherwise.
    """
    noted: list[OSError] = []
    try:
        _write_atomically(path, write, noted)
    except Exception as error:
        # Whoever writes through a library may get the library's own error, for a file that is shorter than it thinks.
        reason = next((e for e in (*noted, error) if isinstance(e, OSError) and e.errno in _FULL), None)
        if reason is None:
            raise
        needed = f"{size_text(size)} needed for {path.name}" if size else f"{path.name} does not fit"
        free = size_text(shutil.disk_usage(path.parent).free)
        raise NoSpaceError(reason.errno, f"no space left on {path.parent}: {needed}, {free} free") from None


def _write_atomically(path: Path, write: Callable[[BinaryIO], object], noted: list[OSError]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are their owner's alone, and to learn the umask is to set it, for other threads, too.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    raw = io.FileIO(temporary, "xb")
    try:
        with _NotingWriter(raw, noted) as file:
            write(file)
            file.flush()
            _sync_file(file.fileno(), path)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the disk may have become read-only: the error above says so
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync_file(handle: int, path: Path) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _LACKING:  # an error of the disk, after which what was written may not be there
            raise
        note_once(f"the disk of {path} has no fsync ({error.strerror}): a power failure may cost files", key="fsync")


class _NotingWriter(io.BufferedWriter):
    """Notes the errors of the system, which libraries that write into it may not pass on."""

    def __init__(self, raw: io.RawIOBase, noted: list[OSError]) -> None:
        super().__init__(raw)
        self.noted = noted

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.noted.append(error)
            raise


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder last through a crash, where its disk can."""
    if os.name == "nt":  # Windows opens no folders, and needs no such thing
        return
    with _may_lack(folder, "fsync of folders: a rename may not outlast a power failure"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _may_lack(path: Path, what: str) -> Iterator[None]:
    """Something that files can do without, and some disks (network, FUSE) do not have: a note, once."""
    try:
        yield
    except OSError as error:
        note_once(f"the disk of {path} has no {what} ({error.strerror})", key=what)


def note_once(text: str, *, key: str) -> None:
    """A warning, the first time in this process that there is one of this key."""
    if key not in _noted:
        _noted.add(key)
        _log.warning("%s", text)


_noted: set[str] = set()


def similar_file(path: Path) -> str:
    """`; did you mean PATH?` with the nearest name in the folder of a path that is not there, or ""."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, 1000)]
    except OSError:  # an error is being reported already
        return ""
    near = nearest(path.name, names, most=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def size_text(size: int) -> str:
    """`812 bytes`, `3.4 MB`, `1.21 GB`."""
    if size < 10**6:
        return f"{size:,} bytes"
    return f"{size / 1e6:.1f} MB" if size < 10**9 else f"{size / 1e9:.2f} GB"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, for what takes its place by a rename once it is complete.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; name another folder") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` of text in UTF-8; bytes of file names that are no UTF-8 come out as `\\udce9` and the like."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """`write_text` of a value as JSON; see `to_json`."""
    write_text(path, json.dumps(to_json(value), indent=indent, allow_nan=False) + "\n")


def to_json(value: Any) -> Any:
    """A copy in which null stands for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def set_aside(path: Path, label: str = "damaged") -> Path:
    """Renames a file or folder to the first free one of `NAME.damaged`, `NAME.damaged2`, ...; the new path."""
    numbered = (path.with_name(f"{path.name}.{label}{number if number > 1 else ''}") for number in itertools.count(1))
    return path.rename(next(candidate for candidate in numbered if not candidate.exists()))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, such as `metrics.jsonl`; a last line cut by a crash is left out, and all
    from the first line on that holds no record."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records
