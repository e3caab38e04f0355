#!/usr/bin/env python
"""Draw rooms of textured planes and spheres with exact depth, a small data set for joint depth upsampling.

    python scripts/make_depth_scenes.py data/scenes

makes data/scenes/{train,val}/{rgb,depth}/<number>.png: 8-bit RGB and 16-bit depth in millimeters. Running it again
keeps a complete earlier result. Exit code 2 if an argument is out of range or the folder holds something else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from ddfnet.tasks.depth.synthetic import make_scenes
from ddfnet.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to make")
    add("--train", type=int, default=200, metavar="N", help="scenes to train on (default: %(default)s)")
    add("--val", type=int, default=40, metavar="N", help="scenes to validate on (default: %(default)s)")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the images (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        counts = make_scenes(
            arguments.out, train=arguments.train, val=arguments.val, size=arguments.size, seed=arguments.seed
        )
    except (UserError, ValueError) as error:
        print(f"make_depth_scenes: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {counts['train']} training and {counts['val']} validation scenes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
