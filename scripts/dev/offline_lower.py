"""The first half of the compilation of a launch: what Triton makes of the source before it is code."""

import contextlib
import re
from dataclasses import dataclass
from typing import Any
from unittest import mock

from triton.backends.nvidia.compiler import CUDABackend

from scripts.dev.offline_compile import Launch, compile_code


@dataclass(frozen=True)
class Lowered:
    """What Triton makes of the source before it is code."""

    ttir: str  # with all offsets
    ttgir: str  # the same with the layout of each tile over the threads

    @property
    def sum_layouts(self) -> list[tuple[str, str]]:
        """Shape and layout of each tile that is summed over an axis, which decide the order of its additions."""
        layouts = dict(re.findall(r"^(#\w+) = (.*)$", self.ttgir, re.MULTILINE))
        reduced = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<([^,]+), (#\w+)', self.ttgir, re.DOTALL)
        return sorted({(shape, layouts[layout]) for shape, layout in reduced})


def lower_launch(launch: Launch, arch: int) -> Lowered:
    """The first half of `compile_launch`."""
    ttir, ttgir = _stages(launch, arch, "ttir", "ttgir")
    return Lowered(ttir, ttgir)


def ttir_of(launch: Launch, arch: int) -> str:
    """All operations with all offsets, no layouts yet: a third of the time of `lower_launch`."""
    return _stages(launch, arch, "ttir")[0]


def _stages(launch: Launch, arch: int, *names: str) -> list[str]:
    """The first stages of the compilation, up to the last of the names."""
    seen: list[str] = []

    def keep(original: Any) -> Any:
        def stage(*given: Any) -> Any:
            module = original(*given)
            seen.append(str(module))
            if len(seen) == len(names):
                raise _LoweredFarEnough
            return module

        return stage

    with contextlib.ExitStack() as stack:
        for name in names:
            original = getattr(CUDABackend, f"make_{name}")
            stack.enter_context(mock.patch.object(CUDABackend, f"make_{name}", staticmethod(keep(original))))
        try:
            code = compile_code(launch, arch).asm
        except _LoweredFarEnough:
            return seen
    return [code[name] for name in names]  # it had been compiled before


class _LoweredFarEnough(Exception):
    """No error: what stands after this stage is not wanted."""
