"""torch.compile's analysis of kernels is remembered for what it depends on, and for nothing else."""

import pytest
import torch
import torch._higher_order_ops.triton_kernel_wrap as tracing

import ddfnet.ops  # noqa: F401  puts the memory there
from ddfnet.ops import compile_memo


def kernel(module):
    def function(): ...

    function.__module__ = module
    return Kernel(function)


class Kernel:
    def __init__(self, fn):
        self.fn = fn


@pytest.fixture
def analyzed():
    calls = []

    def analyze(kernel, kwargs, descriptors):
        calls.append(kwargs)
        return ["y", len(calls)]

    return compile_memo._remembered(analyze), calls


def test_one_analysis_for_arguments_of_one_kind(analyzed):
    remembered, calls = analyzed
    own = kernel("ddfnet.kernels.ddf_forward")
    half, single = torch.empty(2, dtype=torch.float16), torch.empty(3)
    first = remembered(own, {"x": half, "BLOCK_Y": 4, "HEIGHT": 14, "height": 14}, {})
    again = {"HEIGHT": 0, "height": 7, "BLOCK_Y": 4, "x": torch.empty(7, dtype=torch.float16)}
    assert remembered(own, again, {}) is first
    assert remembered(Kernel(own), again, {}) is first  # in an autotuner
    others = [{**again, "x": single}, {**again, "BLOCK_Y": 5}, {**again, "BLOCK_Y": 4.0}, {"x": half}]
    for kwargs in others:
        assert remembered(own, kwargs, {}) is not first
    assert len(calls) == 1 + len(others)


def test_whatever_else_is_analyzed_each_time(analyzed):
    remembered, calls = analyzed
    own, foreign = kernel("ddfnet.kernels.ddf_forward"), kernel("somebody.kernels")
    for _ in range(2):
        remembered(foreign, {"n": 1}, {})
        remembered(own, {"N": 1}, {"x": "a descriptor"})
        remembered(own, {"N": [1]}, {})  # has no hash
    assert len(calls) == 6


def test_pytorch_asks_the_memory():
    """The names are PyTorch's own: a version that renames them would trace slowly again, silently."""
    pytest.importorskip("triton")
    names = [name for name in ("identify_accessed_tensors", "identify_mutated_tensors") if hasattr(tracing, name)]
    assert names
    assert all(hasattr(getattr(tracing, name), "__wrapped__") for name in names)
