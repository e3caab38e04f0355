"""The first half of the compilation of a launch: what Triton makes of the source before it is code."""

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
    seen: list[str] = []
    original = CUDABackend.make_ttgir

    def keep(module: Any, *others: Any) -> Any:
        seen.append(str(module))
        return original(module, *others)

    def stop(self: CUDABackend, module: Any, *others: Any) -> Any:
        raise _LoweredFarEnough(str(module))

    with (
        mock.patch.object(CUDABackend, "make_ttgir", staticmethod(keep)),
        mock.patch.object(CUDABackend, "make_llir", stop),
    ):
        try:
            code = compile_code(launch, arch).asm
        except _LoweredFarEnough as end:
            (ttir,), (ttgir,) = seen, end.args
            return Lowered(ttir, ttgir)
    return Lowered(code["ttir"], code["ttgir"])  # it had been compiled before


class _LoweredFarEnough(Exception):
    """No error: what stands after this stage is not wanted."""
