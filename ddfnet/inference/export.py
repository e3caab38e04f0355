"""What `export.py` writes and reads: torch.export programs, ONNX files, packages of AOTInductor."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import ddfnet
from ddfnet.models.classifier import Classifier
from ddfnet.ops.ddf.decompose import DECOMPOSITIONS
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_atomically

INPUT, OUTPUT = "image", "logits"
EXTRA_FILE = "ddfnet.json"  # in a torch.export archive


def description(classifier: Classifier) -> dict[str, str]:
    """What a user of the file has to know; values that are not text are JSON."""
    how, model = classifier.preprocessing, {"name": classifier.name, "kwargs": classifier.kwargs}
    return {
        "model": json.dumps(model),
        "classes": json.dumps(classifier.classes),
        "preprocessing": json.dumps(how.to_dict()),
        "input": f"{INPUT}: float32 (B, 3, {how.size}, {how.size}), RGB in [0, 1], less mean, over std",
        "output": f"{OUTPUT}: float32 (B, {classifier.network.num_classes}), before softmax, in the order of classes",
        "producer": f"ddfnet {ddfnet.__version__}, torch {torch.__version__}",
    }


def traced(network: nn.Module, size: int, *, batch: int | None) -> ExportedProgram:
    """The network as a program for images (batch, 3, size, size); a batch of None is any.

    Raises:
        UserError: the network does not run at this size.
    """
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
    """Writes an ONNX file of standard operators; `about` becomes its metadata.

    Raises:
        UserError: PyTorch cannot write this operator set.
        RuntimeError: an operator that is not of the standard.
    """
    import onnx

    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    model = torch.onnx.export(decomposed(program), dynamo=True, verbose=False, opset_version=opset, **names).model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset is not None and written != opset:
        raise UserError(f"--opset {opset} cannot be written, only {written}: leave --opset out")
    _check_standard(model)
    _forget_source(model)
    _name_batch(model)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, lambda file: file.write(model.SerializeToString()))


def _check_standard(model: Any) -> None:
    foreign = {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign or model.functions:
        names = sorted(foreign | {f"{function.domain}::{function.name}" for function in model.functions})
        raise RuntimeError(f"the graph has operators that are not ONNX's own: {', '.join(names)}")


def _forget_source(model: Any) -> None:
    """Drops the stack traces of each node: they are larger than the graph, and hold paths of this machine."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]


def _name_batch(model: Any) -> None:
    """Calls the free dimension `batch`, whatever symbol torch.export had for it."""
    graph = model.graph
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
    data = compiled.read_bytes()
    compiled.unlink()
    write_atomically(path, lambda file: file.write(data))


def load_aoti(path: Path) -> Callable[[Tensor], Tensor]:
    return torch._inductor.aoti_load_package(str(path))
