#!/usr/bin/env python
"""Images of what a network does.

    python scripts/visualize filters IMAGE --checkpoint runs/ddf_resnet50/best.pt --layer layer2.1.conv2
    python scripts/visualize filters IMAGE --checkpoint official.pth.tar --model ddf_mul_resnet50 --points 60,80 9,40
    python scripts/visualize detections IMAGE... --checkpoint runs/faster_rcnn_r50_fpn_ddfup/best.pt
    python scripts/visualize depth --checkpoint runs/ddf_up_net_x8/best.pt --data scenes --index 0 3

filters      the spatial filters that a DDF layer predicts for an image: at points of it, and each tap over all of it
detections   boxes, classes and scores on images
depth        guidance, low-resolution input, bicubic, the network's output, truth and errors, side by side

Each command has its own --help. Exit code 2 for a mistake in the input, or if matplotlib is missing.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

from ddfnet.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        figure = arguments.draw(arguments)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.output)
    except ImportError as error:
        print(f"visualize: {error.name} is missing: pip install {error.name}", file=sys.stderr)
        return 2
    except (UserError, ValueError, OSError) as error:
        print(f"visualize: {error}", file=sys.stderr)
        return 2
    print(arguments.output)
    return 0


def _filters(arguments: argparse.Namespace):  # noqa: ANN202  a matplotlib Figure; matplotlib is optional
    from scripts.visualize.filters import draw_filters

    return draw_filters(
        arguments.image, arguments.checkpoint, model=arguments.model, layer=arguments.layer, points=arguments.points
    )


def _detections(arguments: argparse.Namespace):  # noqa: ANN202
    from scripts.visualize.tasks import draw_detections

    return draw_detections(arguments.image, arguments.checkpoint, threshold=arguments.threshold)


def _depth(arguments: argparse.Namespace):  # noqa: ANN202
    from scripts.visualize.tasks import draw_depth

    return draw_depth(arguments.checkpoint, data=arguments.data, indices=arguments.index)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    filters = commands.add_parser("filters", help="spatial filters of a DDF layer over an image")
    filters.add_argument("image", type=Path, metavar="IMAGE")
    filters.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="of a classification network")
    filters.add_argument("--model", metavar="NAME", help="model name, for a file that does not say it")
    filters.add_argument("--layer", metavar="NAME", help="e.g. layer2.1.conv2 (default: the first DDF of stride 1)")
    help_text = "x,y in pixels of the network's input (default: a grid of 3 x 3)"
    filters.add_argument("--points", nargs="+", type=_point, metavar="X,Y", help=help_text)
    filters.set_defaults(draw=_filters)

    detections = commands.add_parser("detections", help="boxes on images")
    detections.add_argument("image", nargs="+", type=Path, metavar="IMAGE")
    detections.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="of a detection run")
    help_text = "least score drawn (default: %(default)s)"
    detections.add_argument("--threshold", type=float, default=0.5, metavar="SCORE", help=help_text)
    detections.set_defaults(draw=_detections)

    depth = commands.add_parser("depth", help="depth maps side by side")
    depth.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="of a depth run")
    depth.add_argument("--data", type=Path, metavar="PATH", help="data.root, where it is not that of training")
    depth.add_argument("--index", nargs="+", type=int, metavar="N", help="held-out pairs (default: the first two)")
    depth.set_defaults(draw=_depth)

    for command in (filters, detections, depth):
        command.add_argument(
            "--output", type=Path, default=Path("visualization.png"), metavar="PNG", help="default: %(default)s"
        )
    return parser


def _point(text: str) -> tuple[int, int]:
    x, _, y = text.partition(",")
    try:
        return int(x), int(y)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y, e.g. 60,80") from None


if __name__ == "__main__":
    sys.exit(main())
