#!/usr/bin/env python
"""Draw a small detection data set of colored shapes in COCO's format (no download).

    python scripts/make_shapes.py data/shapes

makes data/shapes/{train,val}/*.png (20 each) and data/shapes/annotations/{train,val}.json. Running it again keeps a
complete earlier result. Exit code 2 if the folder holds something else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from ddfnet.tasks.detection.synthetic import CLASSES, render_shapes
from ddfnet.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--train", type=int, default=20, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        counts = render_shapes(**vars(arguments))
    except (UserError, ValueError) as error:
        print(f"make_shapes: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {counts['train']} training and {counts['val']} validation images of {', '.join(CLASSES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
