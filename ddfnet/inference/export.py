"""Export of a classifier to a file format of `ddfnet.inference.formats`, each file checked against the network."""

import copy
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.data.decode import CHANNELS
from ddfnet.data.preprocessing import input_shape
from ddfnet.inference.formats import FORMATS, INPUT, OUTPUT, find_format, missing_packages
from ddfnet.inference.programs import traced
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.models.fold import fold_batch_norm
from ddfnet.utils.errors import UserError, did_you_mean
from ddfnet.utils.files import scratch_folder, sync_folder
from ddfnet.utils.progress import no_progress, note
from ddfnet.zoo.entries import ZOO

TOLERANCE = 1e-4  # of the largest logit
_OWN_ERRORS = 4  # or so many times what the network itself is off in float32, where that is more


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """An export; UserError for options that contradict and packages that are missing."""

    checkpoint: str  # see `load_classifier`
    format: str  # of `FORMATS`
    output: Path | None = None  # None: here, named after the entry of the zoo, the run or the checkpoint's file
    model: str | None = None  # see `load_classifier`
    input_size: int | str | None = None  # pixels: side, or "192x256"; None: that of the checkpoint
    batch_size: int | None = 1  # None: any
    standalone: bool = False  # torch: without the operator of ddfnet
    opset: int | None = None  # onnx: operator set; None: that of PyTorch
    device: str = "cpu"  # where the network runs, cpu or cuda; aoti compiles for it
    fuse_bn: bool = False  # fold batch normalization into convolutions, see `ddfnet.models.fold`
    unchecked: bool = False  # coreml: keep a file that nothing here can run
    quiet: bool = False  # do not say what comes next

    def __post_init__(self) -> None:
        kind, output = self.format, self.output
        if kind not in FORMATS:
            near = did_you_mean(kind, FORMATS, most=1, otherwise=f"there are {', '.join(FORMATS)}")
            raise UserError(f"--format {kind} is no format: {near}")
        suffix = find_format(kind).SUFFIX
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.batch_size is None and not find_format(kind).ANY_BATCH:
            raise UserError(f"--dynamic-batch: --format {kind} takes one size of batches alone; give --batch-size N")
        if self.opset is not None and kind != "onnx":
            raise UserError(f"--opset belongs to --format onnx, not {kind}: leave it out")
        if self.standalone and kind != "torch":
            raise UserError(f"--standalone belongs to --format torch: {kind} has no operator of ddfnet, leave it out")
        if self.unchecked and kind != "coreml":
            raise UserError(f"--unchecked belongs to --format coreml: {kind} is always checked, leave it out")
        if output is not None and output.suffix != suffix:
            raise UserError(f"--output {output}: a file of --format {kind} ends in {suffix}")
        if output is not None and output.is_dir() and kind != "coreml":  # its packages are folders
            raise UserError(f"--output {output} is a folder: name a file")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: there is no CUDA device here; use cpu")
        if missing := missing_packages(kind):
            raise UserError(f"--format {kind} needs {', '.join(missing)}: pip install {' '.join(missing)}")
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as Inductor chooses
        if kind == "aoti" and shutil.which(compiler) is None:
            raise UserError(f"--format aoti needs a C++ compiler: no {compiler} here; install one or name it in CXX")
        if kind == "coreml" and sys.platform != "darwin" and not self.unchecked:
            raise UserError(
                "--format coreml: Core ML runs on macOS alone, so the file cannot be compared with the network here. "
                "Export it there, or give --unchecked"
            )

    @property
    def path(self) -> Path:
        """The file to write; compiled packages end in .pt2 as well as programs."""
        if self.output is not None:
            return self.output
        kind = "_aoti" if self.format == "aoti" else "_standalone" if self.standalone else ""
        name = self.checkpoint.removeprefix(ZOO)
        if name == self.checkpoint:
            path = Path(name).absolute()
            name = path.name.split(".")[0]
            name = path.parent.name if name in ("best", "last") else name
        return Path(name + kind + find_format(self.format).SUFFIX)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An exported file and its network in float64, on one batch of random images."""

    batch: int
    largest: float  # logit of the network in float64, by magnitude
    error: float  # largest difference of a logit of the file, over the largest logit
    own_error: float  # the same of the network in float32

    @property
    def limit(self) -> float:
        """Of the error. TF32 on a GPU, and deep or badly conditioned networks, have more of their own."""
        return max(TOLERANCE, _OWN_ERRORS * self.own_error)

    @property
    def agrees(self) -> bool:
        """False for NaN as well."""
        return self.error <= self.limit


def export(options: ExportOptions) -> list[Comparison]:
    """Writes the file, reads it back in its own runtime, and compares it with the network on random images.

    Returns the comparison for each batch size, none with `unchecked`; the file is there if all agree. UserError where
    the checkpoint or an option cannot be used; nothing is written then.
    """
    with no_progress(options.quiet):
        return _export(options)


def _export(options: ExportOptions) -> list[Comparison]:
    changes = {"input_size": options.input_size}
    classifier = load_classifier(options.checkpoint, model=options.model, changes=changes)
    print(classifier.input_text())
    path, exporter = options.path, find_format(options.format)
    network, size = classifier.network, classifier.preprocessing.input_size
    exported_network = copy.deepcopy(network) if options.fuse_bn else network  # compared with the network as it was
    if options.fuse_bn:
        fold_batch_norm(exported_network, size)  # on the CPU: on CUDA some are left to kernels, which no file has
    network, exported_network = network.to(options.device), exported_network.to(options.device)
    settings: dict[str, dict[str, Any]] = {
        "torch": {"standalone": options.standalone}, "onnx": {"opset": options.opset},
    }  # fmt: skip
    note(f"export: tracing {classifier.name}")
    program = traced(exported_network, size, batch=options.batch_size)
    with scratch_folder(path) as folder:
        unchecked = folder / path.name
        about = description(classifier, options.batch_size)
        note(f"export: writing {options.format}")
        exporter.save(program, unchecked, about, **settings.get(options.format, {}))
        sizes = (1, 2, 5) if options.batch_size is None else (options.batch_size,)
        images = [random_images(batch, size, options.device) for batch in sizes]
        note("" if options.unchecked else "export: comparing the file with the network in float64")
        comparisons = [] if options.unchecked else list(compare(exporter.load(unchecked), network, images))
        if all(comparison.agrees for comparison in comparisons):
            _keep(folder, path)
    return comparisons


def random_images(batch: int, size: int | tuple[int, int, int], device: str) -> Tensor:
    """Normal noise float32 (batch, channels, height, width), the same each time."""
    return torch.randn(batch, *input_shape(size), generator=torch.Generator().manual_seed(batch)).to(device)


@torch.inference_mode()
def compare(exported: Callable[[Tensor], Tensor], network: nn.Module, images: list[Tensor]) -> Iterator[Comparison]:
    """A file with its network, on batches of images (B, 3, H, W): each as it is and with its channels last in memory,
    the way decoded images lie, which a runtime that ignores strides would take for other images."""
    exact_network = copy.deepcopy(network).double()
    for image in images:
        exact = exact_network(image.double())
        largest = exact.abs().max().item()

        def error(logits: Tensor, exact: Tensor = exact, largest: float = largest) -> float:
            difference = (logits.to(exact.device).double() - exact).abs().max().item()
            return difference / largest if largest else difference  # all 0: a classifier as some are initialized

        permuted = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        errors = torch.tensor([error(exported(image)), error(exported(permuted))])  # max() of PyTorch keeps NaN
        yield Comparison(len(image), largest, errors.max().item(), error(network(image)))


def description(classifier: Classifier, batch_size: int | None) -> dict[str, str]:
    """How to use the file; values that are not text are JSON."""
    how, model = classifier.preprocessing, {"name": classifier.name, "kwargs": classifier.kwargs}
    batch, shape = "B" if batch_size is None else batch_size, how.input_size
    channels, threshold = CHANNELS[shape[0]], classifier.threshold
    multi = {} if threshold is None else {"multi_label": json.dumps({"threshold": threshold})}
    squashed = "softmax" if threshold is None else f"sigmoid (a class is predicted from {threshold:g} on)"
    return {
        "model": json.dumps(model),
        "classes": json.dumps(classifier.classes),
        "preprocessing": json.dumps(how.to_dict()),
        "input": f"{INPUT}: float32 ({batch}, {', '.join(map(str, shape))}), {channels} in [0, 1], less mean, over std",
        "input_shape": json.dumps([batch_size, *shape]),  # null: any
        "output": f"{OUTPUT}: float32 ({batch}, {classifier.num_classes}), before {squashed}, in the order of classes",
        **multi,
        "producer": f"ddfnet {ddfnet.__version__}, torch {torch.__version__}",
    }


def _keep(folder: Path, path: Path) -> None:
    """Moves what was written to its place; a format of two files has its main one, `path`, last."""
    for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
        target = path.with_name(item.name)
        if target.is_dir():  # an earlier package: no folder takes the place of one that is not empty
            os.replace(target, folder / f"earlier_{target.name}")
        os.replace(item, target)
    sync_folder(path.parent)
