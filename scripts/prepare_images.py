#!/usr/bin/env python
"""Prepare a dataset for fast training: pack it into a store of which regions can
be read.

    python scripts/prepare_images.py /downloads/imagenet /data/imagenet-store
    python scripts/prepare_images.py /data/imagenet /data/imagenet-400 \\
        --quality 90 --short-side 400
    python scripts/prepare_images.py --verify /data/imagenet-store
    python scripts/prepare_images.py --unpack /data/imagenet-store \\
        /data/imagenet-again

SOURCE is whatever `data.root` may be: class folders, a list, parquet or Arrow
files, tar shards, ImageNet's own tars as downloaded, folders of images with
--labels FILE.csv. With the splits train and val, STORE gets both; then train
with data.root=STORE, without data.labels: a store has its labels in it. Every
image is decoded before and after it is written, corrupt ones are listed and
stay as they are. A run that was cut off continues where it was: run the same
command again.

Exit code 0: done; 1: done, but there are corrupt images (they are listed); 2:
SOURCE or STORE cannot be used.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from scripts.source_options import add_source_options, at_least_1, source_config


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the data; with --verify and --unpack: a store")
    add("store", metavar="STORE", nargs="?", help="folder to make; with --unpack: of the class folders")
    add("--quality", default="keep", help="keep (default), lossless (needs jpegtran), or 1 to 100: see the guide")
    add("--short-side", type=at_least_1, metavar="PIXELS", help="reduce larger images to this short side")
    pixels = "width times height; larger images stay as they are (default: as in training)"
    add("--max-pixels", type=at_least_1, metavar="N", help=pixels)
    add("--workers", type=at_least_1, default=os.cpu_count() or 1, help="processes (default: all cores, %(default)s)")
    add("--verify", action="store_true", help="read a store again and compare its checksums")
    add("--unpack", action="store_true", help="write a store as class folders")
    add("--quiet", action="store_true", help="show no progress")
    add_source_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)

    from ddfnet.data.image_file import MAX_PIXELS
    from ddfnet.data.prepare import command
    from ddfnet.utils.errors import UserError
    from ddfnet.utils.progress import no_progress

    with no_progress(arguments.quiet):
        if arguments.verify:
            return command.verify(arguments.source)
        if arguments.store is None:
            raise UserError("give SOURCE and the folder of the store to make")
        config = source_config(arguments)
        if arguments.unpack:
            return command.unpack(arguments.source, arguments.store, config)
        return command.prepare(
            arguments.source,
            arguments.store,
            config,
            quality=arguments.quality,
            short_side=arguments.short_side,
            max_pixels=arguments.max_pixels or MAX_PIXELS,
            workers=arguments.workers,
        )


if __name__ == "__main__":
    parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(main)
