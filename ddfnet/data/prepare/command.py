"""What prepare_images.py does: packs each split of a dataset into a store, verifies stores, unpacks them."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from ddfnet.data.decode import verdict
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.unpack import unpack as unpack_store
from ddfnet.data.prepare.write import StoreReport, verify_store, write_store
from ddfnet.data.sources import SourceConfig, open_part, split_path
from ddfnet.data.sources.folder import not_counted_text
from ddfnet.data.sources.label_sets import class_names
from ddfnet.data.sources.misplaced import refuse_dataset_below
from ddfnet.data.sources.store import has_label_sets, open_store
from ddfnet.utils.errors import UserError
from ddfnet.utils.progress import ProgressBar
from ddfnet.utils.text import plural, rate_text

SPLITS = ("train", "val")
MOST_CORRUPT = 100  # named; the rest is counted


def prepare(
    root: str, store: str, config: SourceConfig, *, quality: str, short_side: int | None, max_pixels: int, workers: int
) -> int:
    """Packs `root`, or each of its splits, into `store` and prints a summary; returns the exit code.

    Args:
        config: what the data is.
        quality: `keep`, `lossless` or 1 to 100 in digits.
        short_side: pixels to which larger images are reduced.
        max_pixels: larger images stay as they are.
        workers: processes.

    Raises:
        UserError: the quality, the data or the folder of the store cannot be used.
    """
    if not (quality in ("keep", "lossless") or quality.isdecimal()):
        raise UserError(f"--quality must be keep, lossless or 1 to 100, got {quality}")
    kind: Any = int(quality) if quality.isdecimal() else quality
    encoding = Encoding(quality=kind, short_side=short_side, max_pixels=max_pixels)
    splits = _splits(root, config)
    if not splits[0][0]:
        refuse_dataset_below(root, config)
    corrupt = 0
    classes = None
    for split, path, own in splits:
        source = open_part(root, path, split, classes=classes, config=own)
        classes = class_names(source)
        if note := not_counted_text(source):
            print(note)
        start = time.monotonic()
        target = Path(store, split)
        report = write_store(source, target, encoding, workers=workers, progress=ProgressBar(split))
        print(_summary(target, report, time.monotonic() - start))
        corrupt += len(report.corrupt)
    return 1 if corrupt else 0


def unpack(root: str, folder: str, config: SourceConfig) -> int:
    """Writes the class folders of a store, or of each of its splits, into `folder`; returns the exit code."""
    for split, path, own in _splits(root, config):
        if has_label_sets(path):
            own = own.model_copy(update={"multi_label": True})
        source = open_part(root, path, split, allow_empty=True, config=own)
        count = unpack_store(source, Path(folder, split), ProgressBar(split))
        print(f"{Path(folder, split)}: {plural(count, 'image')}")
    return 0


def verify(root: str) -> int:
    """Reads a store again, prints what has changed; returns the exit code."""
    wrong = []
    for split, path, _ in _splits(root, SourceConfig()):
        store = open_store(os.fspath(path), allow_empty=True, label_sets=None)
        here = verify_store(store, ProgressBar(split))
        print(f"{path}: {plural(len(store), 'image')}, {len(here):,} of them changed or unreadable")
        wrong += here
    for name, reason in wrong[:MOST_CORRUPT]:
        print(f"PROBLEM: {name}: {reason}")
    return 1 if wrong else 0


def _splits(root: str, config: SourceConfig) -> list[tuple[str, str | Path, SourceConfig]]:
    """(name, path, configuration) of each split, or of `root` itself under no name."""
    present = [(split, path) for split in SPLITS if (path := split_path(root, split)) is not None]
    if not present:
        return [("", root, config)]
    if len(present) == 1:
        missing = next(split for split in SPLITS if split != present[0][0])
        print(f"note: {root} has no split {missing}", file=sys.stderr)
    train = config.model_copy(update={"val_labels": None, "allow_missing_val_classes": False})
    return [(split, path, train if split == "train" else config) for split, path in present]


def _summary(target: Path, report: StoreReport, seconds: float) -> str:
    lines = [
        f"{target}: {plural(report.images, 'image')}, {rate_text(report.bytes / 1e6)} MB, {rate_text(seconds)} s",
        f"  regions can be read of {report.cut:,}; {report.identical:,} have the pixels of the original,",
        f"  mean difference {report.difference:.3f} of 255",
    ]
    lines += [f"PROBLEM: {name} is {verdict(reason)} ({reason})" for name, reason in report.corrupt[:MOST_CORRUPT]]
    if len(report.corrupt) > MOST_CORRUPT:
        lines.append(f"PROBLEM: {len(report.corrupt) - MOST_CORRUPT} more images are corrupt")
    return "\n".join(lines)
