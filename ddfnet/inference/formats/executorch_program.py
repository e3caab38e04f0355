"""Programs of ExecuTorch (.pte) for phones and other small machines, with the kernels of XNNPACK."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ddfnet.inference.programs import decomposed
from ddfnet.utils.files import write_atomically

SUFFIX = ".pte"
PACKAGES = {"executorch": "executorch"}
ANY_BATCH = False  # memory is planned for the example a program was traced with: larger batches are refused


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Writes the program; its method `ddfnet` returns `about` as JSON."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # The runtime does not look at strides: another layout gives logits of another image, as with AOTInductor.
    about = {**about, "input": about["input"] + ", contiguous in memory: not checked when called"}
    constants = {"ddfnet": json.dumps(about)}
    edge = to_edge_transform_and_lower(
        decomposed(program), partitioner=[XnnpackPartitioner()], constant_methods=constants
    )
    buffer = edge.to_executorch().buffer
    write_atomically(path, lambda file: file.write(buffer))


def load(path: Path) -> Callable[[Tensor], Tensor]:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    # cloned: the output lies in memory of the program, which the next call overwrites
    return lambda image: torch.as_tensor(method.execute([image.cpu().contiguous()])[0]).clone()
