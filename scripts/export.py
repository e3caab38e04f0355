#!/usr/bin/env python
"""Export a classifier, and check what was written against the network it was written from.

    python scripts/export.py --checkpoint zoo:ddf_mul_resnet14_32px.digits --format onnx --dynamic-batch
    python scripts/export.py --checkpoint runs/ddf_resnet50/best.pt --format torch --output ddf_resnet50.pt2
    python scripts/export.py --checkpoint official.pth.tar --model ddf_mul_resnet50 --format aoti --batch-size 8

torch  a torch.export program (.pt2). It keeps the operator of this package, so `import ddfnet` before loading it; with
       --standalone it holds PyTorch's own operators alone and needs no ddfnet.
onnx   standard ONNX operators alone (.onnx), for onnxruntime and others. Needs onnx, onnxscript and onnxruntime.
aoti   compiled ahead of time by Inductor (.pt2), for torch._inductor.aoti_load_package or C++ without Python. Needs a
       C++ compiler, and runs on processors like the one it was compiled on.

The input is `image`, float32 (B, 3, size, size), normalized; the output `logits`, float32 (B, classes). Height and
width are fixed when exporting; so is B, unless --dynamic-batch is given. Model, classes and preprocessing are written
into the file. It is read back, run on random input and compared with the network in float32: above 1e-4 the file is
removed (one of an earlier export stays) and the exit code is 1. Exit code 2: a mistake in the input, or a package is
missing.
"""

import argparse
import dataclasses
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without `pip install`

import torch
from torch import Tensor, nn

from ddfnet.inference import export as exporting
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.utils.cli import run
from ddfnet.utils.errors import UserError
from ddfnet.zoo.entries import ZOO

TOLERANCE = 1e-4
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_text = "a file of a classifier, or zoo:NAME"
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help=help_text)
    parser.add_argument("--format", required=True, choices=SUFFIXES)
    help_text = "default: in this folder, named after the entry of the zoo, the run or the file"
    parser.add_argument("--output", type=Path, metavar="FILE", help=help_text)
    parser.add_argument("--model", metavar="NAME", help="model name, for a file that does not say it")
    help_text = "height and width in pixels (default: those of the checkpoint)"
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help=help_text)
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--dynamic-batch", action="store_true", help="any batch size")
    batch.add_argument("--batch-size", type=int, default=1, metavar="N", help="this batch size (default: %(default)s)")
    parser.add_argument("--standalone", action="store_true", help="torch alone: no operator of ddfnet in the file")
    parser.add_argument("--opset", type=int, metavar="N", help="onnx alone: operator set (default: that of PyTorch)")
    help_text = "where the network runs (default: %(default)s); aoti compiles for it"
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help=help_text)
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit code.

    Raises:
        UserError: a mistake in the arguments, or a package that is missing; nothing is written then.
    """
    _check(arguments)
    classifier = _load(arguments)
    network, size = classifier.network, classifier.preprocessing.size
    program = exporting.traced(network, size, batch=None if arguments.dynamic_batch else arguments.batch_size)
    output = arguments.output or Path(_name(arguments) + SUFFIXES[arguments.format])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    try:
        unchecked = scratch / output.name
        exported = _write(arguments, program, unchecked, exporting.description(classifier))
        sizes = (1, 2, 5) if arguments.dynamic_batch else (arguments.batch_size,)
        differences = [_difference(network, exported, batch, size) for batch in sizes]
        failed = not max(differences) <= TOLERANCE  # NaN is no success
        if not failed:
            os.replace(unchecked, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for batch, difference in zip(sizes, differences, strict=True):
        print(f"batch {batch}: largest difference of a logit {difference:.2e}")
    if failed:
        print(f"export: failed: above {TOLERANCE:g}, {output} was not written", file=sys.stderr)
        return 1
    print(f"{output}: {output.stat().st_size:,} bytes")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    kind, output = arguments.format, arguments.output
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    if arguments.opset is not None and kind != "onnx":
        raise UserError(f"--opset belongs to --format onnx, not {kind}: leave it out")
    if arguments.standalone and kind != "torch":
        raise UserError(
            f"--standalone belongs to --format torch: {kind} has no operator of ddfnet anyway, leave it out"
        )
    if output is not None and output.suffix != SUFFIXES[kind]:
        raise UserError(f"--output {output}: a file of --format {kind} ends in {SUFFIXES[kind]}")
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here; use cpu")
    if kind == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not _installed(name)]
        if missing:
            raise UserError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as Inductor chooses
    if kind == "aoti" and shutil.which(compiler) is None:
        raise UserError(f"--format aoti needs a C++ compiler: there is no {compiler}; install one or name it in CXX")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules holds None for it
        return False


def _load(arguments: argparse.Namespace) -> Classifier:
    classifier = load_classifier(arguments.checkpoint, model=arguments.model)
    preprocessing = classifier.preprocessing
    if arguments.input_size is not None:
        try:
            preprocessing = preprocessing.replaced(size=arguments.input_size)
        except ValueError as error:
            raise UserError(f"--input-size: {error}") from None
    network = classifier.network.to(arguments.device)
    return dataclasses.replace(classifier, network=network, preprocessing=preprocessing)


def _name(arguments: argparse.Namespace) -> str:
    """What the file is called: after the entry, the run or the file; compiled packages end in .pt2 as well."""
    kind = "_aoti" if arguments.format == "aoti" else "_standalone" if arguments.standalone else ""
    if arguments.checkpoint.startswith(ZOO):
        return arguments.checkpoint.removeprefix(ZOO) + kind
    path = Path(arguments.checkpoint).absolute()
    stem = path.name.split(".")[0]
    return (path.parent.name if stem in ("best", "last") else stem) + kind


def _write(
    arguments: argparse.Namespace, program: torch.export.ExportedProgram, path: Path, about: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    """Writes the file and reads it back."""
    if arguments.format == "torch":
        exporting.save_torch(program, path, about, standalone=arguments.standalone)
        return exporting.load_torch(path)
    if arguments.format == "onnx":
        exporting.save_onnx(program, path, about, opset=arguments.opset)
        return exporting.load_onnx(path)
    exporting.save_aoti(program, path, about)
    return exporting.load_aoti(path)


@torch.inference_mode()
def _difference(network: nn.Module, exported: Callable[[Tensor], Tensor], batch: int, size: int) -> float:
    """Largest absolute difference of a logit on random input."""
    device = next(network.parameters()).device
    image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)).to(device)
    return (exported(image).to(device) - network(image)).abs().max().item()


if __name__ == "__main__":
    parsed = parse_arguments()
    run(lambda: main(parsed))
