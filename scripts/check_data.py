#!/usr/bin/env python
"""Verify an image dataset before training on it.

    python scripts/check_data.py /data/imagenet --imagenet --workers 16

ROOT holds the splits train and val in any form that data.root may have (class
folders, lists, parquet or Arrow files, tars, stores), or is one of these
itself. Checked: classes, empty ones, the same in train and val, and that every
image decodes; with --imagenet also the 1000 class names and the known numbers
of images (1,281,167 and 50,000). Unusual but usable files (CMYK, 16-bit,
wrongly named) are remarks, and so are files of kinds that are not counted
(.heic, .tga).

Exit code 0: no problems; 1: problems found; 2: ROOT cannot be checked.
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
    add("root", metavar="ROOT", help="data with the splits train and val, or one of these")
    add("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes (default: all cores, %(default)s)")
    add("--imagenet", action="store_true", help="compare with ImageNet-1k's classes and counts")
    add("--quiet", action="store_true", help="show no progress")
    pixels = "width times height of the largest image that is read (default: as in training)"
    add("--max-pixels", type=at_least_1, metavar="N", help=pixels)
    add_source_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)

    from ddfnet.data.check import check_tree, format_report
    from ddfnet.data.image_file import MAX_PIXELS
    from ddfnet.utils.progress import ProgressBar, no_progress

    with no_progress(arguments.quiet):
        report = check_tree(
            arguments.root,
            workers=arguments.workers,
            imagenet=arguments.imagenet,
            config=source_config(arguments),
            max_pixels=arguments.max_pixels or MAX_PIXELS,
            progress=ProgressBar("checked"),
        )
    print(format_report(report))
    return 1 if report.problems else 0


if __name__ == "__main__":
    parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(main)
