#!/usr/bin/env python
"""Generate a small dataset (no download).

    python scripts/make_data.py digits data/digits
    python scripts/make_data.py shapes data/shapes --train 60
    python scripts/make_data.py scenes data/scenes

    digits   classification: scikit-learn's real handwritten digits,
             OUT/{train,val}/<digit>/*.png
    shapes   detection: colored shapes, OUT/{train,val}/*.png and, in COCO's
             format, OUT/annotations/{train,val}.json
    scenes   joint depth upsampling: rooms of textured planes and spheres,
             OUT/{train,val}/{rgb,depth}/*.png, 8-bit RGB and exact 16-bit
             depth in millimeters

Running a command again keeps a complete earlier result. Exit code 2 if an
argument is out of range, scikit-learn is missing, or OUT holds something else.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

# Imported when asked for: the digits need no task.
KINDS = {
    "digits": ("ddfnet.data.generated", "render_digits", "images of 10 digits"),
    "shapes": ("ddfnet.tasks.detection.synthetic", "render_shapes", "images of disc, square, triangle"),
    "scenes": ("ddfnet.tasks.depth.synthetic", "render_scenes", "scenes"),
}
DEFAULTS = {
    "digits": {"size": 32, "val_fraction": 0.2, "seed": 0},
    "shapes": {"train": 20, "val": 20, "size": 128, "seed": 0},
    "scenes": {"train": 200, "val": 40, "size": 128, "seed": 0},
}
HELP = {
    "train": "number of training images",
    "val": "number of validation images",
    "size": "side of the images in pixels",
    "val_fraction": "part of each digit that goes to val",
    "seed": "seed of the images; of the digits: of the split",
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="kind")
    for kind, defaults in DEFAULTS.items():
        command = commands.add_parser(kind)
        command.add_argument("out", metavar="OUT", help="folder to make")
        for name, default in defaults.items():
            option, text = f"--{name.replace('_', '-')}", f"{HELP[name]} (default: %(default)s)"
            command.add_argument(option, type=type(default), default=default, help=text)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = vars(parse_arguments(argv))
    module, function, things = KINDS[options.pop("kind")]
    counts = getattr(importlib.import_module(module), function)(**options)
    print(f"{options['out']}: {counts['train']} training and {counts['val']} validation {things}")
    return 0


if __name__ == "__main__":
    parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(main)
