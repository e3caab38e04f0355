"""Models of LiteRT, which was TensorFlow Lite (.tflite)."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ddfnet.inference.formats import ABOUT
from ddfnet.inference.programs import decomposed

SUFFIX = ".tflite"
PACKAGES = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}
ANY_BATCH = False  # the converter raises


class _Program(nn.Module):
    """A program as a module that has a mode, which its own module refuses to change."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.call = program.module()
        self.training = False

    def forward(self, image: Tensor) -> Tensor:
        return self.call(image)


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Writes the model, with `ddfnet.json` in a ZIP archive behind it, as is usual for files that belong to a model."""
    import litert_torch

    image: Any = program.example_inputs
    litert_torch.convert(_Program(decomposed(program)), image[0]).export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(about))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (image_index,), (logits_index,) = (
        [details["index"] for details in tensors]
        for tensors in (interpreter.get_input_details(), interpreter.get_output_details())
    )

    def call(image: Tensor) -> Tensor:
        interpreter.set_tensor(image_index, image.cpu().numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(logits_index))

    return call
