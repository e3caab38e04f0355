"""Compile the launches of the operators for an NVIDIA architecture on a machine without a GPU, and read what they need.

A launch is recorded, not made up: the operator runs on meta tensors, and what it would have launched (kernel, tile,
arguments, constants) is compiled with the specialization that Triton's launcher would add.
"""

import contextlib
import functools
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddfnet.ops.batch_norm import triton as norm_launch
from ddfnet.ops.batch_norm.arguments import BatchNorm, TrainedNorm
from ddfnet.ops.ddf import triton as triton_launch
from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.ddf_layer import triton as layer_launch
from ddfnet.ops.ddf_layer import triton_channel, triton_training
from ddfnet.ops.ddf_layer.arguments import Settings, Weights

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes of shared memory one block may ask for
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
MAX_SPILL_SHARE = 0.02  # of the instructions; kernels with 1.6 % were the fastest of their kind on an H200
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, the constants it is compiled for, and the options of the compiler."""

    kernel: triton.JITFunction
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def elements_per_thread(self) -> int:
        """Elements of x, y, a filter or logits that a thread has in a step of its program's loop, if it has one."""
        sizes = ["BLOCK_Y", "BLOCK_X", "BLOCKS", "BLOCK_PIXELS", "BLOCK_CHANNELS", "PHASES", "ROWS"]
        if self.kernel.fn.__name__.startswith("channel"):
            sizes += ["PADDED_AREA", "BLOCK_HIDDEN", "BLOCK_ROWS", "BLOCK_COLUMNS"]
        elif "BLOCK_CHANNELS" not in self.constants:  # of logits alone
            sizes += ["AREA"]
        return math.prod(self.constants.get(size, 1) for size in sizes) // (32 * self.num_warps)


@dataclass(frozen=True)
class Compiled:
    """Resources and code of a compiled kernel."""

    registers: int  # of a thread
    stack: int  # bytes of a thread; 0 unless registers were spilled
    local: int  # other bytes of a thread
    shared: int  # bytes of a program
    threads: int  # of a program
    cubin: bytes
    ptx: str  # the code before the machine's

    @property
    def instructions(self) -> Counter:
        """Machine instructions by opcode, e.g. "LDG.E.128"."""
        return Counter(self._code[0])

    @property
    def step(self) -> int:
        """Number of instructions of the longest loop, or of the whole program if it has none."""
        return self._code[1]

    @functools.cached_property
    def _code(self) -> tuple[list[str], int]:
        return _instructions(_run("nvdisasm", self.cubin, "-c", "-ndf"))

    @property
    def spills(self) -> int:
        """Instructions that save registers to memory or restore them: none without a stack, which takes no look at the
        code."""
        return self.count("STL") + self.count("LDL") if self.stack else 0

    def faults(self, arch: int) -> list[str]:
        """Spills, more resources than a GPU has, and additions whose order depends on timing: none may be.

        The assembler gives up a register or two where that lets another warp run at a time: a handful of spill
        instructions among a thousand is its choice, differs with its version, and is no fault.
        """
        faults = {
            f"{self.spills} spill instructions": self.spills and self.spills > MAX_SPILL_SHARE * len(self._code[0]),
            f"{self.local} bytes of local memory": self.local,
            f"{self.shared} bytes of shared memory": self.shared > SHARED_LIMIT[arch],
            f"{self.registers} registers x {self.threads} threads": self.registers * self.threads > 65536,
            "atomics": re.search(r"\b(?:atom|red)\.", self.ptx),
        }
        return [fault for fault, present in faults.items() if present]

    def count(self, opcode: str, size: str = "") -> int:
        """Instructions of a kind, e.g. "LDG", and a size: ".128" for those that move 16 bytes."""
        return sum(n for name, n in self.instructions.items() if name.startswith(opcode) and name.endswith(size))


def missing_tools() -> str | None:
    """Why offline compilation is not possible here, or None."""
    absent = [name for name in ("ptxas", "cuobjdump", "nvdisasm") if not (TOOLS / name).exists()]
    return f"triton came without {' and '.join(absent)}" if absent else None


def record_launches(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype = torch.bfloat16, kernel_size: int = 3, stride: int = 1,
    dilation: int = 1, scale: int = 1, heads: int = 1, combine: str = "mul", filters: str = "both",
    channels_last: bool = True,
) -> dict[str, Launch]:  # fmt: skip
    """Launches of the operator's forward and backward for x of this (B, C, H, W), by kernel name."""
    batch, channels, height, width = shape
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    channel_filter = torch.empty(batch, scale**2, channels, kernel_size**2, dtype=accumulator, device="meta")
    size = (batch, scale**2 * heads * kernel_size**2, (height - 1) // stride + 1, (width - 1) // stride + 1)
    spatial_filter = torch.empty(size, dtype=dtype, device="meta")
    tensors = (x, None if filters == "spatial" else channel_filter, None if filters == "channel" else spatial_filter)
    arguments = Arguments(*tensors, kernel_size, stride, dilation, combine == "mul", scale)

    def call() -> None:
        y = triton_launch.forward(arguments)
        triton_launch.backward(y, arguments, Needed(True, tensors[1] is not None, tensors[2] is not None))

    return _recorded(call)


def record_layer(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype, kernel_size: int, stride: int, heads: int
) -> dict[str, Launch]:
    """Launches of a whole DDF layer, by kernel name, without those that the operator makes alone as well."""
    x, weights, settings = _layer(shape, dtype, kernel_size, stride, heads)

    def call() -> None:
        y, activations = layer_launch.forward(x, weights, settings)
        layer_launch.backward(y, x, weights, activations, settings, True, True)

    launches = _recorded(call).items()
    return {name: launch for name, launch in launches if not name.startswith("ddf_") or launch.constants.get("LOGITS")}


def record_between(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype, kernel_size: int, stride: int, heads: int
) -> dict[str, Launch]:
    """Launches of a DDF layer with batch normalizations around it, in inference, by kernel name."""
    x, weights, settings = _layer(shape, dtype, kernel_size, stride, heads)
    norm = BatchNorm(*(torch.empty(shape[1], device="meta") for _ in range(4)), 1e-5)
    launches = _recorded(lambda: layer_launch.forward_between(x, norm, weights, norm, settings))
    return {name: launch for name, launch in launches.items() if not name.startswith("channel")}


def record_trained(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype, kernel_size: int, stride: int, heads: int,
    first: bool = False,
) -> dict[str, Launch]:  # fmt: skip
    """The same in training, forward and backward. Of a kernel that is launched more than once with other constants, the
    last launch, or the first: the merging of moments does not finish or does, and the backward pass of a normalization
    is that of the second or the first one."""
    x, weights, settings = _layer(shape, dtype, kernel_size, stride, heads)
    norm = TrainedNorm(*(torch.empty(shape[1], device="meta") for _ in range(2)), 1e-5)

    def call() -> None:
        z, state, activations = triton_training.forward(x, norm, weights, norm, settings)
        triton_training.backward(z, x, weights, state, activations, settings)

    launches = _recorded(call, first)
    changed = ("batch_norm", "spatial_filters", "ddf_forward", "ddf_backward_filters")
    changed += ("ddf_backward_x",) if launches["ddf_backward_x_kernel"].constants["LOGITS"] else ()
    return {name: launch for name, launch in launches.items() if name.startswith(changed)}


def record_norm(
    shape: tuple[int, int, int, int], *, dtype: torch.dtype, relu: bool, residual: bool
) -> dict[str, Launch]:  # fmt: skip
    """Launches of a batch normalization with what follows it, in inference and training, without those for the
    statistics."""
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
    channels = [torch.empty(shape[1], device="meta") for _ in range(4)]

    def call() -> None:
        other = torch.empty_like(x) if residual else None
        norm_launch.normalize(x, BatchNorm(*channels, 1e-5), other, relu)
        y, statistics = norm_launch.forward(x, TrainedNorm(*channels[:2], 1e-5), other, relu)
        norm_launch.backward(torch.empty_like(x), x, y if residual else None, statistics, relu)

    launches = _recorded(call).items()
    return {name: launch for name, launch in launches if "moments" not in name and "merge" not in name}


def _layer(
    shape: tuple[int, int, int, int], dtype: torch.dtype, kernel_size: int, stride: int, heads: int
) -> tuple[torch.Tensor, Weights, Settings]:
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
    channels, area = shape[1], kernel_size**2
    sizes = ((heads * area, channels), (heads * area,), (8, channels), (8,), (channels * area, 8), (channels * area,))
    weights = Weights(*(torch.empty(size, device="meta") for size in (*sizes, (channels * area,))))
    return x, weights, Settings(kernel_size, stride, 1, heads, True, 0.47)


def _recorded(call: Callable[[], None], first: bool = False) -> dict[str, Launch]:
    launches: dict[str, Launch] = {}

    def record(kernel: Any, grid: tuple[int], *values: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
        names = [name for name in kernel.arg_names if name not in constants]
        arguments = dict(zip(names, values, strict=True))
        if not (first and kernel.fn.__name__ in launches):
            launches[kernel.fn.__name__] = Launch(kernel, arguments, constants, num_warps, num_stages)

    with contextlib.ExitStack() as stack:
        for module in (triton_launch, layer_launch, triton_channel, norm_launch):
            stack.enter_context(mock.patch.object(module, "launch", record))
        call()
    return launches


def compile_launch(launch: Launch, arch: int, **options: Any) -> Compiled:
    """Compile for sm_`arch`. Options are those of Triton's compiler, such as `enable_fp_fusion`."""
    compiled = compile_code(launch, arch, **options)
    cubin = compiled.asm["cubin"]
    resources = re.search(
        r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", _run("cuobjdump", cubin, "--dump-resource-usage")
    )
    threads = compiled.metadata.num_warps * 32
    return Compiled(*map(int, resources.groups()), compiled.metadata.shared, threads, cubin, compiled.asm["ptx"])


def compile_code(launch: Launch, arch: int, **options: Any) -> Any:
    """What Triton makes of a launch, with its code in all stages (`asm`)."""
    names = launch.kernel.arg_names
    constants = dict(launch.constants)
    signature = dict.fromkeys(names, "constexpr")
    aligned = []
    for name, value in launch.arguments.items():
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            aligned.append(name)  # pointers are, to 16 bytes; without this every access is a narrow one
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:  # the launcher makes a constant of it
            constants[name] = 1
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            aligned += [name] * (value % 16 == 0)
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _instructions(assembly: str) -> tuple[list[str], int]:
    """Opcodes in order, and the length of the longest loop: from a label to a branch back to it."""
    opcodes, labels, longest = [], {}, 0
    for line in assembly.splitlines():
        if label := re.match(r"\s*\.(L_\w+):", line):
            labels[label[1]] = len(opcodes)
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line):
            if code[1] == "NOP":
                continue
            opcodes.append(code[1])
            target = re.search(r"`\(\.(L_\w+)\)", code[2])
            if target and code[1].startswith("BRA") and target[1] in labels:
                longest = max(longest, len(opcodes) - labels[target[1]])
    # after the end a program branches to itself
    return opcodes, longest if longest > 20 else len(opcodes)


def _run(tool: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True).stdout
