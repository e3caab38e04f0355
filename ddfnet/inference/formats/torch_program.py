"""Archives of torch.export (.pt2)."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.formats import ABOUT
from ddfnet.inference.programs import decomposed
from ddfnet.utils.files import write_atomically

SUFFIX = ".pt2"
PACKAGES: dict[str, str] = {}
ANY_BATCH = True


def save(program: ExportedProgram, path: Path, about: dict[str, str], *, standalone: bool = False) -> None:
    """Writes the archive; standalone: without the operators of ddfnet."""
    archive = io.BytesIO()
    program = decomposed(program) if standalone else program
    torch.export.save(program, archive, extra_files={ABOUT: json.dumps(about)})
    write_atomically(path, lambda file: file.write(archive.getbuffer()))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()
