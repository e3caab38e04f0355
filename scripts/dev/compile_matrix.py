#!/usr/bin/env python
"""Compile every variant of the kernels for NVIDIA GPUs, without one, and fail on spills and excess resources.

    python scripts/dev/compile_matrix.py                              # all variants and architectures: hours
    python scripts/dev/compile_matrix.py --archs 90 --jobs 2          # one architecture
    python scripts/dev/compile_matrix.py --quick                      # what the tests compile: under an hour
    python scripts/dev/compile_matrix.py --output docs/reference/kernels.md     # and write the table

The table has registers and instructions. Each variant is what the operator would launch for a map of 64 channels of
56 x 56 pixels (upsampling: 25 x 25), with the sizes as constants ("constant") and as arguments ("argument"). Exit code
0: all within limits; 1: some are not; 2: bad arguments, or Triton came without its tools.
"""

import argparse
import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
import triton

from ddfnet.ops.ddf import tiling
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import write_text
from scripts.dev import offline_compile as offline
from scripts.dev.offline_compile import SHARED_LIMIT

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
# The last one is of contiguous tensors.
KERNELS = tuple(f"ddf_{name}_kernel" for name in ("forward", "backward_x", "backward_filters", "backward_spatial"))
BRANCH_KERNELS = tuple(
    f"{name}{part}_kernel"
    for name in ("spatial_filters", "channel_filters", "channel_squeeze")
    for part in ("", "_backward")
)
BRANCH_KERNELS += ("spatial_filters_backward_x_kernel", "channel_weights_backward_kernel")
NORM_KERNELS = tuple(
    f"batch_norm{name}_kernel"
    for name in ("", "_affine", "_moments", "_merge", "_apply", "_backward_sums", "_backward")
)
ALL_KERNELS = KERNELS + BRANCH_KERNELS + NORM_KERNELS


@dataclass(frozen=True)
class Branch:
    """One combination of the options of the fused branches."""

    dtype: str = "bf16"
    kernel_size: int = 3
    stride: int = 1
    heads: int = 1

    def __str__(self) -> str:
        return f"{self.dtype} k{self.kernel_size} stride {self.stride} heads {self.heads}"

    def record(self) -> dict[str, offline.Launch]:
        """Launches by kernel name."""
        with mock.patch.multiple(tiling, _MAX_STATIC_SHAPES=1000, _static_shapes=set()):
            return offline.record_layer((2, 128, 28, 28), **{**asdict(self), "dtype": DTYPES[self.dtype]})


@dataclass(frozen=True)
class Between(Branch):
    """One combination of the options of a layer between batch normalizations."""

    def __str__(self) -> str:
        return f"{super().__str__()} between norms"

    def record(self) -> dict[str, offline.Launch]:
        """Launches by kernel name."""
        with mock.patch.multiple(tiling, _MAX_STATIC_SHAPES=1000, _static_shapes=set()):
            return offline.record_between((2, 64, 56, 56), **{**asdict(self), "dtype": DTYPES[self.dtype]})


@dataclass(frozen=True)
class Trained(Branch):
    """The same in training."""

    def __str__(self) -> str:
        return f"{super().__str__()} between norms in training"

    def record(self) -> dict[str, offline.Launch]:
        """Launches by kernel name."""
        with mock.patch.multiple(tiling, _MAX_STATIC_SHAPES=1000, _static_shapes=set()):
            channels = 64 if 64 % self.heads == 0 else 32 * self.heads
            return offline.record_trained((2, channels, 56, 56), **{**asdict(self), "dtype": DTYPES[self.dtype]})


@dataclass(frozen=True)
class Norm:
    """One combination of the options of a batch normalization with what follows it."""

    dtype: str = "bf16"
    relu: bool = True
    residual: bool = True

    def __str__(self) -> str:
        return f"{self.dtype} norm{', sum' * self.residual}{', ReLU' * self.relu}"

    def record(self) -> dict[str, offline.Launch]:
        """Launches by kernel name."""
        return offline.record_norm((2, 64, 56, 56), **{**asdict(self), "dtype": DTYPES[self.dtype]})


@dataclass(frozen=True)
class Variant:
    """One combination of the options of the operators."""

    dtype: str = "bf16"
    kernel_size: int = 3
    stride: int = 1
    scale: int = 1
    combine: str = "mul"
    filters: str = "both"
    layout: str = "channels_last"
    sizes: str = "constant"

    def __str__(self) -> str:
        what = f"ddf_up x{self.scale}" if self.scale > 1 else f"stride {self.stride}"
        weights = self.combine if self.filters == "both" else f"{self.filters} only"
        return f"{self.dtype} k{self.kernel_size} {what} {weights} {self.layout} {self.sizes}"

    def record(self) -> dict[str, offline.Launch]:
        """Launches by kernel name."""
        options = asdict(self) | {"dtype": DTYPES[self.dtype], "channels_last": self.layout == "channels_last"}
        del options["layout"], options["sizes"]
        side, most = 25 if self.scale > 1 else 56, 1000 * (self.sizes == "constant")
        with mock.patch.multiple(tiling, _MAX_STATIC_SHAPES=most, _static_shapes=set()):
            return offline.record_launches((2, 64, side, side), **options)


def all_variants() -> list[Variant]:
    """Every dtype, kernel size, stride, combination and layout; then the rarer options one by one.

    float16 differs from bfloat16 in how it is converted only: 3x3 filters are enough of it.
    """
    names = ("dtype", "kernel_size", "stride", "combine", "layout")
    values = (("bf16", "fp16", "fp32"), (3, 5, 7), (1, 2), ("mul", "add"), ("channels_last", "contiguous"))
    variants = [Variant(**dict(zip(names, case, strict=True))) for case in itertools.product(*values)]
    variants = [variant for variant in variants if variant.dtype != "fp16" or variant.kernel_size == 3]
    for dtype, layout in itertools.product(("bf16", "fp32"), ("channels_last", "contiguous")):
        base = {"dtype": dtype, "layout": layout}
        variants += [Variant(**base, scale=scale) for scale in (2, 3, 4)]
        variants += [Variant(**base, filters=filters) for filters in ("channel", "spatial")]
        variants += [Variant(**base, stride=stride, sizes="argument") for stride in (1, 2)]
        variants += [Variant(**base, stride=3), Variant(**base, stride=4), Variant(**base, kernel_size=9)]
    return [*variants, *(Variant(dtype="fp64", layout=layout) for layout in ("channels_last", "contiguous"))]


def all_norms() -> list[Norm]:
    """Every dtype; with nothing behind, as a shortcut ends, with the ReLU alone, with the sum and the ReLU."""
    behind = ((False, False), (True, False), (True, True))
    return [Norm(dtype, *options) for dtype in ("bf16", "fp16", "fp32") for options in behind]


def all_branches() -> list[Branch]:
    """Every kernel size and stride, and several heads; float32 is fused for one head of 3x3 taps only."""
    branches = [Branch(*case) for case in itertools.product(("bf16", "fp16"), (3, 5, 7), (1, 2))]
    branches += [Branch("fp32", stride=stride) for stride in (1, 2)]
    branches += [Branch(heads=heads) for heads in (2, 3, 8)]
    for around in (Between, Trained):
        branches += [around(*case) for case in itertools.product(("bf16", "fp16"), (3, 5, 7), (1, 2))]
        branches += [around("fp32", stride=stride) for stride in (1, 2)]
        branches += [around(heads=heads) for heads in (2, 3, 8)]
    return branches


# A few that between them take every branch of every kernel.
QUICK_VARIANTS = [
    Variant(),
    Variant(dtype="fp16", stride=2, combine="add"),
    Variant(dtype="fp32", layout="contiguous"),
    Variant(filters="spatial", kernel_size=7),
    Variant(filters="channel", sizes="argument"),
    Variant(scale=2),
]
QUICK_BRANCHES = [Branch(), Branch("fp32", 3, 2), Between(), Between(stride=2), Trained(), Trained(stride=2)]
QUICK_NORMS = [Norm(), Norm("fp32", relu=False, residual=False)]
# And one kernel of two more: that adds many logits to grad_x.
MANY_LOGITS: list[tuple[Variant | Branch, str]] = [
    (variant, "spatial_filters_backward_x_kernel") for variant in (Branch(heads=2), Trained(heads=2))
]


Job = tuple[Variant | Branch | Norm, str, int]  # a kernel of a variant for an architecture


def compile_job(job: Job) -> tuple[offline.Compiled, float]:
    """The kernel, and machine instructions for each element it computes (in a step of its loop, if any)."""
    variant, kernel, arch = job
    launch = variant.record()[kernel]
    compiled = offline.compile_launch(launch, arch)
    return compiled, compiled.step / launch.elements_per_thread


def table(results: dict[Job, tuple[offline.Compiled, float]], archs: list[int]) -> str:
    """Registers per architecture, instructions and loads of one of them, as Markdown."""
    shown = 90 if 90 in archs else archs[0]
    head = ["variant", *(f"sm_{arch}" for arch in archs), f"instructions (sm_{shown})", "16-byte loads", "shared"]
    text = ""
    for kernel in ALL_KERNELS:
        rows = []
        for variant in dict.fromkeys(job[0] for job in results if job[1] == kernel):
            registers = []
            for arch in archs:
                compiled, _ = results[variant, kernel, arch]
                faults = ", ".join(compiled.faults(arch))
                registers.append(f"**{faults}**" if faults else f"{compiled.registers}{_spills(compiled)}")
            compiled, per_element = results[variant, kernel, shown]
            loads = f"{compiled.count('LDG', '.128')} of {compiled.count('LDG')}"
            rows.append((variant, *registers, f"{per_element:.1f}", loads, compiled.shared))
        text += f"\n## {kernel}\n\n{markdown.table(head, rows)}"
    return text


def _spills(compiled: offline.Compiled) -> str:
    return f" ({compiled.spills} spills)" if compiled.spills else ""


HEADER = """# What the kernels compile to

Made by `python scripts/dev/compile_matrix.py {arguments}` with Triton {triton}, without a GPU: {what},
compiled for each architecture, registers of a thread. "Instructions" is the number of machine instructions for each
element that the program computes: of the body of its loop, if it has one (over pixels, phases, or rows of taps: then
the number is that of one row), else of the whole program. "16-byte loads" counts loads of either kind in the code. A
variant that asks for more than a GPU has, or spills in more than 2 % of its instructions, is printed in bold and fails
the command; fewer spills are a trade of the assembler's own, and shown.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--archs", type=int, nargs="+", default=sorted(SHARED_LIMIT), choices=sorted(SHARED_LIMIT))
    parser.add_argument("--quick", action="store_true", help="only the variants that the tests compile")
    parser.add_argument("--kernels", nargs="+", default=ALL_KERNELS, choices=ALL_KERNELS, metavar="KERNEL")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args(arguments)
    if offline.missing_tools():
        parser.error(offline.missing_tools())
    quick, every = (QUICK_VARIANTS, QUICK_BRANCHES, QUICK_NORMS), (all_variants, all_branches, all_norms)
    variants = itertools.chain(*(quick if options.quick else (make() for make in every)))
    pairs = [(v, kernel) for v in variants for kernel in v.record()]
    pairs += MANY_LOGITS if options.quick else []
    jobs: list[Job] = [(*pair, arch) for pair in pairs if pair[1] in options.kernels for arch in options.archs]
    results, failed = {}, 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for job, (compiled, per_element) in zip(jobs, pool.map(compile_job, jobs), strict=True):
            results[job] = compiled, per_element
            variant, kernel, arch = job
            faults = compiled.faults(arch)
            failed += bool(faults)
            verdict = "; ".join(faults) or f"ok{_spills(compiled)}"
            print(f"{len(results)}/{len(jobs)} sm_{arch} {kernel} {variant}: {compiled.registers} "
                  f"registers, {per_element:.1f} instructions/element, {verdict}", flush=True)  # fmt: skip
    print(f"{len(jobs) - failed} of {len(jobs)} within limits")
    if options.output:
        what = "the variants that the tests compile" if options.quick else "every variant"
        given = " ".join(sys.argv[1:] if arguments is None else arguments)
        head = HEADER.format(arguments=given, triton=triton.__version__, what=what)
        write_text(options.output, head + table(results, options.archs))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
