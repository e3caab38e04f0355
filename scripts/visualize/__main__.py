#!/usr/bin/env python
"""Figures and pages of what a network does, and of how it was trained.

    python scripts/visualize filters IMAGE --layer layer2.1.conv2 \\
        --checkpoint runs/ddf_resnet50/best.pt
    python scripts/visualize filters IMAGE --points 60,80 9,40 \\
        --checkpoint official.pth.tar --model ddf_mul_resnet50
    python scripts/visualize detections IMAGE... \\
        --checkpoint runs/faster_rcnn_r50_fpn_ddfup/best.pt
    python scripts/visualize depth --checkpoint runs/ddf_up_net_x8/best.pt \\
        --data scenes --index 0 3
    python scripts/visualize explore zoo:ddf_mul_resnet14_32px.digits IMAGE...
    python scripts/visualize explore runs/ddf_up_net_x8/best.pt 0 3
    python scripts/visualize curves runs/a runs/b --output ab.png
    python scripts/visualize operation --output docs/images/ddf.png

    filters      the spatial filters that a DDF layer predicts for an image:
                 at points of it, and each tap over all of it
    explore      a page to explore the dynamic filters of a network, pixel by
                 pixel: opens in any browser, needs no server
    detections   boxes, classes and scores on images
    depth        guidance, low-resolution input, bicubic, the network's output,
                 truth and errors, side by side
    curves       loss, top-1 or mAP, and learning rate of runs, from the
                 metrics.jsonl of each
    operation    the decoupled dynamic filter operation: the README's figure

Each command has its own --help. Exit code 2 for a mistake in the input, or if
matplotlib is missing.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

# Imported when asked for. The options of a command are the arguments of its function.
COMMANDS = {
    "filters": ("scripts.visualize.filters", "draw_filters"),
    "explore": ("scripts.visualize.explore", "explore"),
    "detections": ("ddfnet.tasks.detection.drawing", "draw_detections"),
    "depth": ("ddfnet.tasks.depth.drawing", "draw_depth"),
    "curves": ("scripts.visualize.curves", "draw_curves"),
    "operation": ("scripts.visualize.operation", "draw_operation"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from ddfnet.utils.errors import UserError
    from ddfnet.utils.files import write_text

    options = vars(parse_arguments(argv))
    module, function = COMMANDS[options.pop("command")]
    output = options.pop("output")
    if output is None:  # of curves
        output = Path(options["runs"][0] if len(options["runs"]) == 1 else "", "curves.png")
    try:
        figure = getattr(importlib.import_module(module), function)(**options)
        if isinstance(figure, str):  # a page
            write_text(output, figure)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            # Without the version of matplotlib, the same figure is the same file.
            figure.savefig(output, metadata={"Software": None} if output.suffix == ".png" else None)
    except ImportError as error:
        package = (error.name or "ddfnet").split(".")[0]
        if package == "ddfnet":  # the folder of a task was removed
            raise
        raise UserError(f"{package} is missing: pip install {package}") from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    print(output)
    return 0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")

    filters = commands.add_parser("filters", help="spatial filters of a DDF layer over an image")
    filters.add_argument("image", type=Path, metavar="IMAGE")
    filters.add_argument("--model", metavar="NAME", help="model name, for a file that does not say it")
    filters.add_argument("--layer", metavar="NAME", help="e.g. layer2.1.conv2 (default: the first DDF of stride 1)")
    help_text = "x,y in pixels of the network's input (default: a grid of 3 x 3)"
    filters.add_argument("--points", nargs="+", type=_point, metavar="X,Y", help=help_text)

    explore = commands.add_parser("explore", help="a page to explore filters pixel by pixel")
    explore.add_argument("checkpoint", metavar="CHECKPOINT", help="of any task, or zoo:NAME")
    help_text = "image files; for a depth network numbers of held-out pairs: 0, 1, ..."
    explore.add_argument("images", nargs="+", metavar="IMAGE", help=help_text)
    explore.add_argument("--model", metavar="NAME", help="model name, for a file that does not say it")
    explore.add_argument("--data", type=Path, metavar="PATH", help="data.root of a depth network, if it has moved")
    explore.add_argument("--layers", nargs="+", metavar="NAME", help="only these layers (default: all)")
    help_text = "channels a layer whose input and output are in the page (default: %(default)s)"
    explore.add_argument("--channels", type=int, default=16, metavar="N", help=help_text)
    help_text = "longest side that a detector or depth network gets, pixels (default: %(default)s)"
    explore.add_argument("--size", type=int, default=320, metavar="PIXELS", help=help_text)
    explore.add_argument("--output", type=Path, default="explore.html", metavar="HTML", help="default: %(default)s")

    detections = commands.add_parser("detections", help="boxes on images")
    detections.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    help_text = "least score that is shown (default: %(default)s)"
    detections.add_argument("--threshold", type=float, default=0.5, metavar="SCORE", help=help_text)

    depth = commands.add_parser("depth", help="depth maps side by side")
    depth.add_argument("--data", type=Path, metavar="PATH", help="data.root, where it is not that of training")
    help_text = "held-out pairs (default: the first two)"
    depth.add_argument("--index", dest="indices", nargs="+", type=int, metavar="N", help=help_text)

    curves = commands.add_parser("curves", help="training curves of runs")
    curves.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    curves.add_argument("--output", type=Path, metavar="PNG", help="default: RUN/curves.png; of several: curves.png")
    operation = commands.add_parser("operation", help="the figure of the README")
    for each in (filters, detections, depth, operation):
        each.add_argument(
            "--output", type=Path, default="visualization.png", metavar="PNG", help="default: %(default)s"
        )
    filters.add_argument("--checkpoint", required=True, metavar="PATH", help="of a classifier, or zoo:NAME")
    for command, help_text in ((detections, "of a detector"), (depth, "of a depth network")):
        command.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help=help_text)
    return parser.parse_args(argv)


def _point(text: str) -> tuple[int, int]:
    x, _, y = text.partition(",")
    try:
        return int(x), int(y)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y, e.g. 60,80") from None


if __name__ == "__main__":
    parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(main)
