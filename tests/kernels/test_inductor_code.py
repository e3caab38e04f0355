"""torch.compile on CUDA, without a GPU: Inductor's code around the layer's kernels wastes no pass over memory."""

import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FORWARD = {"spatial_filters_kernel", "channel_squeeze_kernel", "channel_filters_kernel", "ddf_forward_kernel"}
# Of the layer between its norms, whose filter kernel makes the gradients of the logits; else another does.
TRAINED = {
    *("ddf_backward_filters_kernel", "channel_filters_backward_kernel", "channel_squeeze_backward_kernel"),
    *("ddf_backward_x_kernel", "channel_weights_backward_kernel"),
}
OURS = {
    "forward": FORWARD,
    "between": {"batch_norm_affine_kernel", *FORWARD},
    "trained": {"batch_norm_moments_kernel", "batch_norm_merge_kernel", "batch_norm_apply_kernel", *FORWARD},
    "trained_backward": {"batch_norm_backward_sums_kernel", "batch_norm_backward_kernel", *TRAINED},
    "backward": {"spatial_filters_backward_kernel", *TRAINED},
}


@functools.cache
def codes():
    """Of each case of inductor_cases.py, the kernels, name to source, and the names of those that are launched.

    All by one process: to start one and pretend takes as long as a case.
    """
    pytest.importorskip("triton")
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "inductor_cases.py"), *OURS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("KERNELS "))
    return json.loads(line.removeprefix("KERNELS "))


def kernels_of(which):
    return codes()[which]["kernels"]


@pytest.mark.parametrize("which", OURS)
def test_no_kernel_only_writes(which):
    """Outputs made by `torch.empty(memory_format=...)` were filled with NaN first: a pass over y, two over grad_x."""
    kernels = kernels_of(which)
    ours = {re.sub(r"_\d+$", "", name) for name in kernels if not name.startswith("triton_")}
    assert ours == OURS[which]
    generated = {name: body for name, body in kernels.items() if name.startswith("triton_")}
    assert generated
    for name, body in generated.items():
        assert "tl.store" not in body or "tl.load" in body, f"{name} reads nothing:\n{body}"


def passes_over_images(kernels):
    """Generated kernels whose size is that of x of the layer, of (256, 64, 56, 56)."""
    return [name for name, body in kernels.items() if name.startswith("triton_") and str(256 * 64 * 56 * 56) in body]


def test_normalizing_in_the_layer_leaves_no_pass_around_it():
    """Apart, there is one over x and one over y, each of batch normalization and ReLU."""
    assert len(passes_over_images(kernels_of("forward"))) == 2
    assert passes_over_images(kernels_of("between")) == []


def launches_of(which):
    """How often each kernel is launched, those that Inductor wrote as one; convolutions and products beside them."""
    names = [re.sub(r"_\d+$", "", name) for name in codes()[which]["launches"]]
    return Counter("generated" if name.startswith("triton_") else name for name in names)


def test_a_training_step_with_the_norms_launches_each_kernel_once():
    """One operator a layer, and nothing beside it but sums of partial sums, casts of weights and running statistics."""
    forward, backward = launches_of("trained"), launches_of("trained_backward")
    # of both normalizations, and in two steps each: 1568 parts of x, 12544 of y
    assert {name: forward[name] for name in OURS["trained"]} == {
        **dict.fromkeys(OURS["trained"], 1),
        "batch_norm_merge_kernel": 4,
    }
    assert {name: backward[name] for name in OURS["trained_backward"]} == {
        **dict.fromkeys(OURS["trained_backward"], 1),
        "batch_norm_backward_kernel": 2,
    }
    assert {"addmm"} <= set(forward) - OURS["trained"] <= {"addmm", "convolution", "generated"}
    assert set(backward) - OURS["trained_backward"] == {"mm", "generated"}
    assert forward["addmm"] == backward["mm"] == 1
    assert forward["generated"] <= 4
    assert backward["generated"] <= 10  # four sums over parts, of two kernels each where they are long
    assert passes_over_images(kernels_of("trained")) == []
