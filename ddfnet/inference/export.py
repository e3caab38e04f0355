"""Export of a classifier: torch.export programs, ONNX files, packages of AOTInductor; each checked against it."""

import copy
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import ddfnet
from ddfnet.models.classifier import Classifier, load_classifier
from ddfnet.models.fold import fold_batch_norm
from ddfnet.ops.common import DECOMPOSITIONS
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import scratch_folder, write_atomically
from ddfnet.zoo.entries import ZOO

TOLERANCE = 1e-4
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}
INPUT, OUTPUT = "image", "logits"
EXTRA_FILE = "ddfnet.json"  # in a torch.export archive


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """An export; UserError for options that contradict and packages that are missing."""

    checkpoint: str  # see `load_classifier`
    format: str  # torch, onnx or aoti
    output: Path | None = None  # None: here, named after the entry of the zoo, the run or the checkpoint's file
    model: str | None = None  # see `load_classifier`
    input_size: int | None = None  # height and width, pixels; None: those of the checkpoint
    batch_size: int | None = 1  # None: any
    standalone: bool = False  # torch: without the operator of ddfnet
    opset: int | None = None  # onnx: operator set; None: that of PyTorch
    device: str = "cpu"  # where the network runs, cpu or cuda; aoti compiles for it
    fuse_bn: bool = False  # fold batch normalization into convolutions, see `ddfnet.models.fold`

    def __post_init__(self) -> None:
        kind, output = self.format, self.output
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.opset is not None and kind != "onnx":
            raise UserError(f"--opset belongs to --format onnx, not {kind}: leave it out")
        if self.standalone and kind != "torch":
            raise UserError(f"--standalone belongs to --format torch: {kind} has no operator of ddfnet, leave it out")
        if output is not None and output.suffix != SUFFIXES[kind]:
            raise UserError(f"--output {output}: a file of --format {kind} ends in {SUFFIXES[kind]}")
        if output is not None and output.is_dir():
            raise UserError(f"--output {output} is a folder: name a file")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: there is no CUDA device here; use cpu")
        if kind == "onnx" and (missing := missing_onnx_packages()):
            raise UserError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as Inductor chooses
        if kind == "aoti" and shutil.which(compiler) is None:
            raise UserError(f"--format aoti needs a C++ compiler: no {compiler} here; install one or name it in CXX")

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
        return Path(name + kind + SUFFIXES[self.format])


def export(options: ExportOptions) -> dict[int, float]:
    """Writes the file, reads it back, and compares it with the network on random input, in float32.

    Returns the largest absolute difference of a logit by batch size; the file is there if none is above `TOLERANCE`, or
    NaN. UserError where the checkpoint or an option cannot be used; nothing is written then.
    """
    classifier, path = load_classifier(options.checkpoint, model=options.model), options.path
    if options.input_size is not None:
        try:
            preprocessing = classifier.preprocessing.replaced(size=options.input_size)
        except ValueError as error:
            raise UserError(f"--input-size: {error}") from None
        classifier = dataclasses.replace(classifier, preprocessing=preprocessing)
    network, size, about = classifier.network.to(options.device), classifier.preprocessing.size, description(classifier)
    exported_network = copy.deepcopy(network) if options.fuse_bn else network  # compared with the network as it was
    if options.fuse_bn:
        fold_batch_norm(exported_network, size)
    program = traced(exported_network, size, batch=options.batch_size)
    differences = {}
    with scratch_folder(path) as folder:
        unchecked = folder / path.name
        if options.format == "torch":
            save_torch(program, unchecked, about, standalone=options.standalone)
            exported = load_torch(unchecked)
        elif options.format == "onnx":
            save_onnx(program, unchecked, about, opset=options.opset)
            exported = load_onnx(unchecked)
        else:
            save_aoti(program, unchecked, about)
            exported = load_aoti(unchecked)
        for batch in (1, 2, 5) if options.batch_size is None else (options.batch_size,):
            image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
            image = image.to(options.device)
            with torch.inference_mode():
                differences[batch] = (exported(image).to(image.device) - network(image)).abs().max().item()
        if agrees(differences):
            os.replace(unchecked, path)
    return differences


def agrees(differences: dict[int, float]) -> bool:
    """Whether an export was written: no difference is above `TOLERANCE`, or NaN."""
    return all(difference <= TOLERANCE for difference in differences.values())


def description(classifier: Classifier) -> dict[str, str]:
    """How to use the file; values that are not text are JSON."""
    how, model = classifier.preprocessing, {"name": classifier.name, "kwargs": classifier.kwargs}
    return {
        "model": json.dumps(model),
        "classes": json.dumps(classifier.classes),
        "preprocessing": json.dumps(how.to_dict()),
        "input": f"{INPUT}: float32 (B, 3, {how.size}, {how.size}), RGB in [0, 1], less mean, over std",
        "output": f"{OUTPUT}: float32 (B, {classifier.num_classes}), before softmax, in the order of classes",
        "producer": f"ddfnet {ddfnet.__version__}, torch {torch.__version__}",
    }


def traced(network: nn.Module, size: int, *, batch: int | None) -> ExportedProgram:
    """The network as a program for images (batch, 3, size, size); a batch of None is any. UserError where the network
    does not run at this size."""
    device = next(network.parameters()).device
    image = torch.randn(batch or 2, 3, size, size, device=device)  # torch.export takes a size of 1 for a constant
    shapes = None if batch else ({0: Dim("batch", min=1)},)
    with torch.no_grad():
        try:
            network(image)
        except RuntimeError as error:
            raise UserError(f"the network does not run on images of {size} x {size} pixels: {error}") from None
        return torch.export.export(network, (image,), dynamic_shapes=shapes)


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program without operators of ddfnet."""
    with torch.no_grad():
        return program.run_decompositions({**torch.export.default_decompositions(), **DECOMPOSITIONS})


def save_torch(program: ExportedProgram, path: Path, about: dict[str, str], *, standalone: bool) -> None:
    """Writes a torch.export archive; `about` lies in it as `ddfnet.json`."""
    archive = io.BytesIO()
    program = decomposed(program) if standalone else program
    torch.export.save(program, archive, extra_files={EXTRA_FILE: json.dumps(about)})
    write_atomically(path, lambda file: file.write(archive.getbuffer()))


def load_torch(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def save_onnx(program: ExportedProgram, path: Path, about: dict[str, str], *, opset: int | None = None) -> None:
    """Writes an ONNX file of standard operators; `about` becomes its metadata. UserError where PyTorch cannot write the
    operator set."""
    import onnx

    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    model = torch.onnx.export(decomposed(program), dynamo=True, verbose=False, opset_version=opset, **names).model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is not None and written != opset:
        raise UserError(f"--opset {opset} cannot be written, only {written}: leave --opset out")
    graph = model.graph
    foreign = {f"{node.domain}::{node.op_type}" for node in graph.node if node.domain not in ("", "ai.onnx")}
    foreign |= {f"{function.domain}::{function.name}" for function in model.functions}
    if foreign:
        raise RuntimeError(f"the graph has operators that are not ONNX's own: {', '.join(sorted(foreign))}")
    # The stack traces of each node are larger than the graph, and hold paths of this machine.
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    _name_batch(graph)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def _name_batch(graph: Any) -> None:
    """Calls the free dimension `batch`, whatever symbol torch.export had for it."""
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input} - {""}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = "batch"


def load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.cpu().numpy()})[0])


def save_aoti(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Compiles a package; `about` becomes its metadata."""
    compiled = path.with_name(f"compiled_{path.name}")
    settings = {"aot_inductor.metadata": about}
    torch._inductor.aoti_compile_and_package(program, package_path=str(compiled), inductor_configs=settings)
    os.replace(compiled, path)


def load_aoti(path: Path) -> Callable[[Tensor], Tensor]:
    return torch._inductor.aoti_load_package(str(path))


def missing_onnx_packages() -> list[str]:
    """What `save_onnx` and `load_onnx` need and is not installed here."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime") if not _installed(name)]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules holds None for it
        return False
