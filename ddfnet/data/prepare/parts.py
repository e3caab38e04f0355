"""The parts of a store: files of about 100 MB that worker processes write, each whole or not at all."""

import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddfnet.data.arrays import load_arrays, save_arrays
from ddfnet.data.decode import decode_error
from ddfnet.data.prepare.encode import Encoded, Encoding, encode
from ddfnet.data.sources import ImageSource
from ddfnet.data.sources.base import Names
from ddfnet.data.sources.store import ARRAYS, data_file
from ddfnet.utils.files import write_atomically

PART_IMAGES = 1000  # per file of images: what a kill loses at most, per worker
_JPEG = b"\xff\xd8"
PARTS = "parts"  # folder of the finished parts' tables while a store is unfinished


@dataclass(frozen=True)
class Job:
    source: ImageSource
    store: Path
    encoding: Encoding


_job: Job | None = None  # of this process
_counter: Any = None
_show: Callable[[], None] | None = None


def set_job(job: Job | None, counter: Any, show: Callable[[], None] | None) -> None:
    global _job, _counter, _show
    _job, _counter, _show = job, counter, show


def start_worker(job: Job, counter: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    set_job(job, counter, None)


def _end_with(parent: int) -> None:
    """Ends this process once its parent was killed: it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def write_part(number: int, images: np.ndarray) -> None:
    """Writes the file and the table of one part; the table is the last, and says that the part is done."""
    assert _job is not None
    rows: dict[str, list[int]] = {name: [] for name in ARRAYS}
    problems: list[tuple[int, str]] = []
    differences: list[float] = []
    resized: list[bool] = []
    converted: list[bool] = []
    shown = time.monotonic()

    def write(file: BinaryIO) -> None:
        nonlocal shown
        for i in images.tolist():
            try:
                original = _job.source.read(i)
            except OSError as error:
                original, image = b"", Encoded(b"", problem=decode_error(error))
            else:
                image = encode(original, _job.encoding)
            table = b"" if image.starts is None else image.starts.astype(np.uint32).tobytes()
            file.write(table)
            start = file.tell()
            file.write(image.data)
            intervals = 0 if image.starts is None else len(image.starts) - 1
            label, size, crc = _job.source.label(i), len(image.data), zlib.crc32(image.data)
            values = (label, number, start, size, intervals, *image.size, crc)
            for name, value in zip(ARRAYS, values, strict=True):
                rows[name].append(value)
            differences.append(image.difference)
            resized.append(image.resized)
            converted.append(image.data[:2] == _JPEG != original[:2])
            if image.problem:
                problems.append((i, image.problem))
            with _counter.get_lock():
                _counter.value += 1
            if _show is not None and time.monotonic() - shown > 1:
                shown = time.monotonic()
                _show()

    write_atomically(_job.store / data_file(number), write)
    arrays = {name: np.array(rows[name], kind) for name, kind in ARRAYS.items()}
    reasons = Names([reason for _, reason in problems])
    arrays |= {
        "images": images, "differences": np.array(differences), "resized": np.array(resized, bool),
        "converted": np.array(converted, bool),
        "problems": np.array([i for i, _ in problems], np.int64), "blob": reasons.blob, "offsets": reasons.offsets,
    }  # fmt: skip
    save_arrays(part_table(_job.store, number), arrays)


def part_table(store: Path, number: int) -> Path:
    return store / PARTS / f"{number:05d}.npz"


def part_is_done(store: Path, number: int, images: int) -> bool:
    try:
        part = load_arrays(part_table(store, number))
        end = int(part["start"][-1] + part["size"][-1])
        return len(part["images"]) == images and os.path.getsize(store / data_file(number)) == end
    except (OSError, ValueError, KeyError, IndexError):
        return False
