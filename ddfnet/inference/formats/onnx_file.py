"""ONNX files of standard operators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.formats import INPUT, OUTPUT
from ddfnet.inference.programs import decomposed
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import write_atomically

SUFFIX = ".onnx"
PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
ANY_BATCH = True


def save(program: ExportedProgram, path: Path, about: dict[str, str], *, opset: int | None = None) -> None:
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


def load(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.cpu().numpy()})[0])
