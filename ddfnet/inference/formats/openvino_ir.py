"""OpenVINO's intermediate representation: NAME.xml, and NAME.bin with the weights in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.formats import INPUT, OUTPUT
from ddfnet.inference.programs import decomposed

SUFFIX = ".xml"
PACKAGES = {"openvino": "openvino"}
ANY_BATCH = True
# On processors that have it, OpenVINO computes in bfloat16 unless told otherwise.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Writes both files; `about` lies in the runtime information, under `ddfnet`."""
    import openvino

    core_program = decomposed(program)
    model = openvino.convert_model(core_program)
    # The converter forgets the fixed sizes. A size that is a symbol stays free.
    image: Any = next(node for node in core_program.graph.nodes if node.name == _image_name(core_program))
    shape = [size if isinstance(size, int) else -1 for size in image.meta["val"].shape]
    model.reshape({model.inputs[0]: openvino.PartialShape(shape)})
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    for name, text in about.items():
        model.set_rt_info(text, ["ddfnet", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _image_name(program: ExportedProgram) -> str:
    (name,) = program.graph_signature.user_inputs
    return str(name)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", SETTINGS)
    return lambda image: torch.from_numpy(compiled({INPUT: image.cpu().numpy()})[OUTPUT].copy())
