#!/usr/bin/env python
"""Prepare a dataset for fast training: pack it into a store of which regions can be read.

    python scripts/prepare_images.py /downloads/imagenet /data/imagenet-store
    python scripts/prepare_images.py /data/imagenet /data/imagenet-400 \\
        --quality 90 --short-side 400
    python scripts/prepare_images.py --verify /data/imagenet-store
    python scripts/prepare_images.py --unpack /data/imagenet-store /data/imagenet-again

SOURCE is whatever `data.root` may be: class folders, a list, parquet or Arrow files, tar shards, ImageNet's own tars as
downloaded, folders of images with --labels FILE.csv. With the splits train and val, STORE gets both; then train with
data.root=STORE, without data.labels: a store has its labels in it. Every image is decoded before and after it is
written, corrupt ones are listed and stay as they are. A run that was cut off continues where it was: run the same
command again.

Exit code 0: done; 1: done, but there are corrupt images (they are listed); 2: SOURCE or STORE cannot be used.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from ddfnet.data.decode import verdict
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.prepare.encode import Encoding
from ddfnet.data.prepare.unpack import unpack
from ddfnet.data.prepare.write import StoreReport, verify_store, write_store
from ddfnet.data.sources import SourceConfig, add_source_options, open_part, source_config, split_path
from ddfnet.data.sources.folder import not_counted_text
from ddfnet.data.sources.label_sets import class_names
from ddfnet.data.sources.store import has_label_sets, open_store
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.errors import UserError
from ddfnet.utils.progress import ProgressBar, no_progress
from ddfnet.utils.text import rate_text

SPLITS = ("train", "val")
MOST_CORRUPT = 100  # named; the rest is counted


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the data; with --verify and --unpack: a store")
    add("store", metavar="STORE", nargs="?", help="folder to make; with --unpack: of the class folders")
    add("--quality", default="keep", help="keep (default), lossless (needs jpegtran), or 1 to 100: see the guide")
    add("--short-side", type=at_least(1), metavar="PIXELS", help="reduce larger images to this short side")
    add("--max-pixels", type=at_least(1), default=MAX_PIXELS, metavar="N", help="larger images stay as they are")
    add("--workers", type=at_least(1), default=os.cpu_count() or 1, help="processes (default: all cores, %(default)s)")
    add("--verify", action="store_true", help="read a store again and compare its checksums")
    add("--unpack", action="store_true", help="write a store as class folders")
    add("--quiet", action="store_true", help="show no progress")
    add_source_options(parser)
    arguments = parser.parse_args(argv)
    with no_progress(arguments.quiet):
        return _prepare(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments.source)
    if arguments.store is None:
        raise UserError("give SOURCE and the folder of the store to make")
    config = source_config(arguments)
    if arguments.unpack:
        for split, path, own in _splits(arguments.source, config):
            if has_label_sets(path):
                own = own.model_copy(update={"multi_label": True})
            source = open_part(arguments.source, path, split, allow_empty=True, config=own)
            count = unpack(source, Path(arguments.store, split), ProgressBar(split))
            print(f"{Path(arguments.store, split)}: {count:,} images")
        return 0
    if not (arguments.quality in ("keep", "lossless") or arguments.quality.isdecimal()):
        raise UserError(f"--quality must be keep, lossless or 1 to 100, got {arguments.quality}")
    quality = int(arguments.quality) if arguments.quality.isdecimal() else arguments.quality
    encoding = Encoding(quality=quality, short_side=arguments.short_side, max_pixels=arguments.max_pixels)
    corrupt = 0
    classes = None
    for split, path, own in _splits(arguments.source, config):
        source = open_part(arguments.source, path, split, classes=classes, config=own)
        classes = class_names(source)
        if note := not_counted_text(source):
            print(note)
        start = time.monotonic()
        target = Path(arguments.store, split)
        bar = ProgressBar(split)
        report = write_store(source, target, encoding, workers=arguments.workers, progress=bar)
        print(_summary(target, report, time.monotonic() - start))
        corrupt += len(report.corrupt)
    return 1 if corrupt else 0


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


def _verify(root: str) -> int:
    wrong = []
    for split, path, _ in _splits(root, SourceConfig()):
        store = open_store(os.fspath(path), allow_empty=True, label_sets=None)
        here = verify_store(store, ProgressBar(split))
        print(f"{path}: {len(store):,} images, {len(here):,} of them changed or unreadable")
        wrong += here
    for name, reason in wrong[:MOST_CORRUPT]:
        print(f"PROBLEM: {name}: {reason}")
    return 1 if wrong else 0


def _summary(target: Path, report: StoreReport, seconds: float) -> str:
    lines = [
        f"{target}: {report.images:,} images, {rate_text(report.bytes / 1e6)} MB, {rate_text(seconds)} s",
        f"  regions can be read of {report.cut:,}; {report.identical:,} have the pixels of the original,",
        f"  mean difference {report.difference:.3f} of 255",
    ]
    lines += [f"PROBLEM: {name} is {verdict(reason)} ({reason})" for name, reason in report.corrupt[:MOST_CORRUPT]]
    if len(report.corrupt) > MOST_CORRUPT:
        lines.append(f"PROBLEM: {len(report.corrupt) - MOST_CORRUPT} more images are corrupt")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
