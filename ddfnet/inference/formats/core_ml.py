"""Core ML packages (.mlpackage, a folder) in float32. Their runtime is a part of macOS."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.formats import INPUT, OUTPUT
from ddfnet.inference.programs import decomposed

SUFFIX = ".mlpackage"
PACKAGES = {"coremltools": "coremltools"}
ANY_BATCH = False


def runs_here() -> bool:
    """Whether this machine can run what is written."""
    return sys.platform == "darwin"


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Writes the package; `about` becomes its metadata."""
    import coremltools

    image = next(iter(program.example_inputs[0]))
    model = coremltools.convert(
        decomposed(program),
        inputs=[coremltools.TensorType(name=INPUT, shape=tuple(image.shape))],
        outputs=[coremltools.TensorType(name=OUTPUT)],
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS17,
    )
    model.user_defined_metadata.update(about)
    model.save(str(path))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    import coremltools

    model = coremltools.models.MLModel(str(path))
    return lambda image: torch.from_numpy(model.predict({INPUT: image.cpu().numpy()})[OUTPUT])
