"""Compile a Triton kernel for an NVIDIA architecture on a machine without a GPU, and read what it needs."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes of shared memory one block may ask for
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs. `stack` and `local` are bytes per thread, `shared` is bytes per block."""

    registers: int
    stack: int
    local: int
    shared: int
    threads: int
    ptx: str


def missing_tools() -> str | None:
    """Why offline compilation is not possible here, or None."""
    absent = [name for name in ("ptxas", "cuobjdump") if not (TOOLS / name).exists()]
    return f"triton came without {' and '.join(absent)}" if absent else None


def compile_for(
    kernel: triton.JITFunction,
    *,
    types: dict[str, str],
    constants: dict[str, Any],
    divisible: tuple[str, ...],
    arch: int,
    folder: Path,
    **options: Any,
) -> Resources:
    """Compile `kernel` for sm_`arch`.

    Args:
        types: Triton type of each argument that is not a constant, e.g. "*bf16" or "i32".
        constants: value of each constexpr, and of each argument that the launcher would make one (those equal to 1).
        divisible: the integers that are multiples of 16, which the launcher tells the compiler too.
        folder: where the cubin is written for the tools to read.
        options: num_warps, num_stages and the like.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    # Tensors are aligned to 16 bytes. Without these hints every access is a narrow one.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or (name in divisible and name not in constants)
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report).groups())
    metadata = compiled.metadata
    return Resources(registers, stack, local, metadata.shared, metadata.num_warps * 32, compiled.asm["ptx"])
