#!/usr/bin/env python
"""Export a classifier, and compare the file with the network.

    python scripts/export.py --checkpoint runs/r50/best.pt --format onnx
    python scripts/export.py --checkpoint runs/r50/best.pt --format torch
    python scripts/export.py --checkpoint zoo:NAME --format aoti --batch-size 8

    torch  a torch.export program (.pt2). It keeps the operator of this
           package: `import ddfnet` before loading it. With --standalone it
           holds PyTorch's own operators alone and needs no ddfnet.
    onnx   standard ONNX operators alone (.onnx), for onnxruntime and others.
           Needs onnx, onnxscript and onnxruntime.
    aoti   compiled ahead of time by Inductor (.pt2), for ddfnet.load_compiled
           or C++ without Python. Needs a C++ compiler, and runs on processors
           like the one it was compiled on. It does not check its input: see
           docs/guides/export.md.
    executorch, openvino, litert, coreml
           for the runtimes of these names, in float32; each needs its
           package. Core ML runs on macOS alone.

The input is `image`, float32 (B, channels, height, width), normalized; the
output `logits`, float32 (B, classes). Height and width are fixed when
exporting; so is B, unless --dynamic-batch is given. Model, classes and
preprocessing are written into the file. It is read back in its own runtime and
compared with the network in float64, on random images. Above 1e-4 of the
largest logit (or 4 times what the network itself is off in float32, if that is
more) the file is removed, one of an earlier export stays, and the exit code is
1. Exit code 2: a mistake in the input, or a package is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="a file of a classifier, or zoo:NAME")
    formats = "torch|onnx|aoti|executorch|openvino|litert|coreml"  # FORMATS, which --help need not import
    add("--format", required=True, metavar=formats, help="see above")
    help_text = "default: in this folder, named after the entry of the zoo, the run or the file"
    add("--output", type=Path, metavar="FILE", help=help_text)
    add("--model", metavar="NAME", help="model name, for a file that does not say it")
    help_text = "side, or HEIGHTxWIDTH, in pixels (default: that of the checkpoint)"
    add("--input-size", metavar="PIXELS", help=help_text)
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_const", dest="batch_size", default=1, help="any batch size")
    batch.add_argument("--batch-size", type=int, default=1, metavar="N", help="this batch size (default: %(default)s)")
    add("--standalone", action="store_true", help="torch alone: no operator of ddfnet in the file")
    add("--opset", type=int, metavar="N", help="onnx alone: operator set (default: that of PyTorch)")
    add(
        "--fuse-bn", action="store_true", help="fold batch normalization into convolutions: faster, same up to rounding"
    )
    add("--unchecked", action="store_true", help="coreml alone, where there is no macOS: write without comparing")
    help_text = "where the network runs (default: %(default)s); aoti compiles for it"
    add("--device", default="cpu", choices=("cpu", "cuda"), help=help_text)
    add("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    from ddfnet.inference.export import ExportOptions, export
    from ddfnet.utils.text import wrap

    options = ExportOptions(**vars(arguments))
    comparisons = export(options)
    for item in comparisons:
        text = f"batch {item.batch}: off by {item.error:.2e} of the largest logit ({item.largest:.3g}) of float64; "
        print(wrap(f"{text}the network in float32: {item.own_error:.2e}", indent="  "))
    if failed := [item for item in comparisons if not item.agrees]:
        print(f"export: failed: above {failed[0].limit:g}, {options.path} was not written", file=sys.stderr)
        return 1
    if options.unchecked:
        print("not compared with the network: Core ML runs on macOS alone")
    path = options.path
    parts = path.rglob("*") if path.is_dir() else [path]  # a package of Core ML is a folder
    files = [item for item in parts if item.is_file()]
    files += [path.with_suffix(".bin")] if options.format == "openvino" else []
    print(f"{path}: {sum(item.stat().st_size for item in files):,} bytes")
    return 0


if __name__ == "__main__":
    parsed = parse_arguments()  # before the imports: --help need not wait for torch
    from ddfnet.utils.cli import run

    run(lambda: main(parsed))
