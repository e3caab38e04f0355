"""Packages of AOTInductor (.pt2): machine code and weights."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.compiled import load_compiled

SUFFIX = ".pt2"
PACKAGES: dict[str, str] = {}
ANY_BATCH = True
# A package loaded without `ddfnet.load_compiled`, in C++ say, has to be told to look at its input at all.
_WARNING = (
    ", contiguous in memory: not checked when called, and any other layout, dtype or size gives wrong logits silently; "
    "ddfnet.load_compiled checks and copies"
)


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Compiles a package; `about` becomes its metadata."""
    compiled = path.with_name(f"compiled_{path.name}")
    settings = {"aot_inductor.metadata": {**about, "input": about["input"] + _WARNING}}
    torch._inductor.aoti_compile_and_package(program, package_path=str(compiled), inductor_configs=settings)
    os.replace(compiled, path)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    return load_compiled(path)
