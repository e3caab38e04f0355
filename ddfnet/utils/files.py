"""Files: written whole or not at all, JSON without NaN, JSON lines that a crash may have cut."""

import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ddfnet.utils.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder last through a crash."""
    if os.name == "nt":  # Windows opens no folders, and needs no such thing
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
