"""Writes a store: parts in worker processes, each whole or not at all, joined by an index at the end."""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddfnet.data.arrays import load_arrays, save_arrays
from ddfnet.data.decode import decode_error
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.parts import (
    PART_IMAGES,
    PARTS,
    Job,
    part_is_done,
    part_table,
    set_job,
    start_worker,
    write_part,
)
from ddfnet.data.sources import ImageSource
from ddfnet.data.sources.base import Names
from ddfnet.data.sources.label_sets import LabelSets
from ddfnet.data.sources.store import ARRAYS, FORMAT, INDEX, LABEL_SETS, META, STATE, data_file
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_json


@dataclass
class StoreReport:
    """What `write_store` did."""

    images: int
    bytes: int
    cut: int  # images of which regions can be read
    identical: int  # images whose pixels are those of the original; reduced ones do not count
    difference: float  # mean absolute difference of the pixels from the originals', over images that were not resized
    corrupt: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)


def write_store(
    source: ImageSource,
    store: str | os.PathLike,
    encoding: Encoding,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> StoreReport:
    """Writes the images of a source as a store; one that was cut off is continued, a finished one is kept.

    Image i of the store is image i of the source, with the same label; a corrupt one stays as it is, so that training
    replaces it as before.

    Args:
        store: folder to make, or to continue.
        workers: encoding processes; 1 or less encodes in this one.
        progress: called about once a second with (images done, images in all).

    Raises:
        UserError: the folder holds something else, or a store of other images or of another encoding, or cannot be
            written; a worker was killed.
    """
    store = Path(store)
    state = _state(source, encoding)
    try:
        store.mkdir(parents=True, exist_ok=True)
        finished = _check_earlier(store, state)
        if finished is not None:
            return finished
        (store / PARTS).mkdir(exist_ok=True)
        order = source.disk_order()
        parts = [order[first : first + PART_IMAGES] for first in range(0, len(order), PART_IMAGES)]
        missing = [number for number in range(len(parts)) if not part_is_done(store, number, len(parts[number]))]
        done = len(order) - sum(len(parts[number]) for number in missing)
        _run(Job(source, store, encoding), parts, missing, workers, done, progress)
        return _finish(store, source, parts, state)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or store}: {error.strerror or error}; what is done is kept, run it again"
        ) from None


def verify_store(store: Any, progress: Callable[[int, int], None] | None = None) -> list[tuple[str, str]]:
    """(name, reason) of every image of an open `Store` whose bytes are not those that were written."""
    wrong = []
    for done, i in enumerate(store.disk_order().tolist(), 1):
        try:
            data = store.read(i)
            if zlib.crc32(data) != int(store.crc[i]):
                wrong.append((store.name(i), "its bytes have changed since it was written"))
        except OSError as error:
            wrong.append((store.name(i), decode_error(error)))
        if progress is not None and (done % 1000 == 0 or done == len(store)):
            progress(done, len(store))
    return wrong


def _state(source: ImageSource, encoding: Encoding) -> dict[str, Any]:
    """All that the bytes of a store depend on, but for the content of the images."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    if sets := _label_sets(source):
        digest.update(json.dumps(sets).encode())
    for i in range(len(source)):
        digest.update(f"{source.label(i)} {source.key(i)}\n".encode("utf-8", "surrogateescape"))
    names = digest.hexdigest()
    return {"format": FORMAT, "encoding": encoding.state(), "images": len(source), "names": names, "part": PART_IMAGES}


def _check_earlier(store: Path, state: dict[str, Any]) -> StoreReport | None:
    """The report of a finished store with this state; None where there is none yet. Marks the folder as ours."""
    for name in (META, STATE):
        if not (store / name).exists():
            continue
        try:
            meta = json.loads((store / name).read_text())
            earlier = meta["state"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{store / name} is damaged; name another folder, or remove this one") from None
        for key, what in (("format", "a version"), ("encoding", "options"), ("images", "a number of images"),
                          ("names", "names or labels of images"), ("part", "parts of a size")):  # fmt: skip
            if earlier.get(key) != state[key]:
                values = "" if key == "names" else f" ({earlier.get(key)}, now {state[key]})"
                raise UserError(
                    f"{store} was prepared with {what} that differ from these{values}; name another folder, or remove "
                    "this one"
                )
        if name == META:
            shutil.rmtree(store / PARTS, ignore_errors=True)
            return StoreReport(**{**meta["report"], "corrupt": [tuple(item) for item in meta["report"]["corrupt"]]})
        return None
    strange = [path.name for path in store.iterdir() if not path.name.startswith(".")]
    if strange:
        raise UserError(f"{store} holds other things ({strange[0]}, ...); name a new or an empty folder")
    write_json(store / STATE, {"state": state})
    return None


def _run(
    job: Job,
    parts: list[np.ndarray],
    missing: list[int],
    workers: int,
    done: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    total = sum(map(len, parts))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    counter = context.Value("q", done)

    def show() -> None:
        if progress is not None:
            progress(counter.value, total)

    show()
    if workers <= 1 or len(missing) <= 1:
        set_job(job, counter, show)
        try:
            for number in missing:
                write_part(number, parts[number])
        finally:
            set_job(None, None, None)
        show()
        return
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=context, initializer=start_worker, initargs=(job, counter, os.getpid())
    )
    try:
        waiting = {pool.submit(write_part, number, parts[number]) for number in missing}
        while waiting:
            finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            show()
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed, perhaps for want of memory (--workers {workers}); finished parts of "
            f"{job.store} are kept, run it again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish(store: Path, source: ImageSource, parts: list[np.ndarray], state: dict[str, Any]) -> StoreReport:
    """Joins the tables of the parts in the order of the source, then marks the store as finished."""
    tables = [load_arrays(part_table(store, number)) for number in range(len(parts))]
    back = np.argsort(np.concatenate([table["images"] for table in tables]))
    arrays = {name: np.concatenate([table[name] for table in tables])[back] for name in ARRAYS}
    converted = np.concatenate([table["converted"] for table in tables])[back]
    keys = Names([source.key(i) + ".jpg" * bool(converted[i]) for i in range(len(source))])
    corrupt = []
    for table in tables:
        reasons = Names.of_arrays(table["blob"], table["offsets"])
        corrupt += [(source.name(i), reasons[n]) for n, i in enumerate(table["problems"].tolist())]
    differences = np.concatenate([table["differences"] for table in tables])
    same_size = ~np.concatenate([table["resized"] for table in tables])
    report = StoreReport(
        images=len(source),
        bytes=int(arrays["size"].sum()),
        cut=int((arrays["intervals"] > 0).sum()),
        identical=int((same_size & (differences == 0)).sum()) - len(corrupt),
        difference=float(differences[same_size].mean()) if same_size.any() else 0.0,
        corrupt=sorted(corrupt),
    )
    save_arrays(store / INDEX, {"blob": keys.blob, "offsets": keys.offsets, **arrays})
    sizes = [os.path.getsize(store / data_file(number)) for number in range(len(parts))]
    meta = {"format": FORMAT, "images": len(source), "classes": source.classes, "file_sizes": sizes,
            **_label_sets(source), "state": state, "source": str(source.root), "report": asdict(report)}  # fmt: skip
    write_json(store / META, meta)
    (store / STATE).unlink(missing_ok=True)
    for left in store.glob(".*.tmp"):  # by runs that were killed
        left.unlink(missing_ok=True)
    shutil.rmtree(store / PARTS, ignore_errors=True)
    return report


def _label_sets(source: ImageSource) -> dict[str, Any]:
    """The part of the meta that images with any number of classes have."""
    if not isinstance(source, LabelSets):
        return {}
    sets = [np.flatnonzero(row).tolist() for row in source.members]
    return {LABEL_SETS: {"names": source.names, "sets": sets}}
