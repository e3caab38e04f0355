#!/usr/bin/env python
"""Write scikit-learn's real handwritten digits as a small image data set (no download).

    python scripts/make_digits.py data/digits

makes data/digits/train/<digit>/*.png (1,438 images) and data/digits/val/<digit>/*.png (359). Running it again keeps a
complete earlier result. Exit code 2 if scikit-learn is missing or the folder holds something else.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

from ddfnet.data.generated import render_digits
from ddfnet.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, help="share of each digit that goes to val (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        counts = render_digits(
            arguments.out, size=arguments.size, val_fraction=arguments.val_fraction, seed=arguments.seed
        )
    except (UserError, ValueError) as error:
        print(f"make_digits: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {counts['train']} training and {counts['val']} validation images of 10 digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
