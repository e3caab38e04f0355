"""The model of bytes: its counts by hand, against the kernels' own launches, and its table of predictions."""

import contextlib
import itertools
from unittest import mock

import pytest
import torch

from ddfnet.ops.batch_norm.arguments import BatchNorm, TrainedNorm
from ddfnet.ops.ddf_layer.arguments import Settings, Weights
from scripts.dev import roofline, roofline_model, roofline_time
from scripts.dev.roofline_model import (
    MEASURED_STEP,
    ONE_FILTERS,
    ONE_GRADIENT,
    ONE_OPERATOR,
    SUMMED,
    Sizes,
    ddf_backward,
    ddf_forward,
    network,
    resnet50,
)


def by_kind(works):
    return {work.kind: work.bytes for work in works}


def test_a_case_by_hand():
    """Two images, 64 channels of 8 x 8."""
    s = Sizes(2, 64, 8, 8)
    x, filters, channel = 2 * 64 * 64 * 2, 2 * 64 * 9 * 2, 2 * 64 * 9 * 4
    forward = by_kind(ddf_forward(s, ONE_OPERATOR, True))
    assert forward["ddf_forward"] == 2 * x + filters + channel == 39_680
    assert forward["spatial_filters"] == x + filters + 2 * 64 * 4 + 2 * 64 * 4  # inverse deviations, one partial sum
    backward = by_kind(ddf_backward(s, ONE_OPERATOR))
    assert backward["ddf_backward_filters"] == 2 * x + 2 * filters + 2 * channel  # one partial sum of each
    assert backward["spatial_filters_backward"] == 2 * x + 2 * filters + 2 * 64 * 4 + 2 * 64 * 16 * 2
    backward, logits = by_kind(ddf_backward(s, ONE_GRADIENT)), 2 * 64 * 9 * 2
    assert (
        backward["spatial_filters_backward"] == 2 * filters + 2 * 64 * 4 + logits + 2 * 9 * 4
    )  # one sum of each logit
    assert backward["ddf_backward_x"] == 2 * x + filters + channel + logits
    assert backward["weight gradient"] == x + logits + 2 * 9 * 4
    backward = by_kind(ddf_backward(s, ONE_FILTERS))
    read = 2 * x + filters + channel + 2 * 64 * 4
    assert backward["ddf_backward_filters"] == read + channel + logits + 2 * 9 * 4
    assert backward["weight gradient"] == logits + 2 * 9 * 4
    for step, count in ((ONE_OPERATOR, 15), (ONE_GRADIENT, 15), (ONE_FILTERS, 14)):
        assert sum(work.launches for work in (*ddf_forward(s, step, True), *ddf_backward(s, step))) == count


def test_flops_and_outputs_of_resnet50():
    convolutions = [work for work in network(None, training=False, compiled=False, batch=1) if work.flops]
    assert sum(work.flops for work in convolutions) == pytest.approx(2 * 4.087e9, rel=1e-3)  # without the classifier
    values = sum(conv.channels * conv.size**2 for conv in resnet50())
    batch_norms = sum(w.bytes for w in network(None, training=True, compiled=False, batch=1) if "norm" in w.kind)
    assert batch_norms == 8 * 2 * values
    assert values == pytest.approx(11.1e6, rel=0.01)


SHAPES = [(64, 56, 1), (128, 56, 2), (512, 7, 1)]


class Recorded:
    """Bytes that the launches of a layer at batch 256 move, each tensor once, by kernel; and the layer's input."""

    def __init__(self, channels, size, stride):
        self.moved = {}
        x = torch.empty(256, channels, size, size, dtype=torch.bfloat16, device="meta")
        self.x, hidden = x.contiguous(memory_format=torch.channels_last), channels // 5
        shapes = ((9, channels), (9,), (hidden, channels), (hidden,), (9 * channels, hidden), (9 * channels,))
        self.weights = Weights(*(torch.empty(s, device="meta") for s in (*shapes, (9 * channels,))))
        self.settings = Settings(3, stride, 1, 1, True, 0.47)

    def record(self, kernel, grid, *arguments, **options):
        tensors = {id(a): a.numel() * a.element_size() for a in arguments if isinstance(a, torch.Tensor)}
        name = kernel.fn.__name__.removesuffix("_kernel")
        self.moved[name] = self.moved.get(name, 0) + sum(tensors.values())


@pytest.mark.parametrize(("channels", "size", "stride"), SHAPES)
def test_bytes_are_those_of_the_launches(channels, size, stride):
    """What the layer launches, each tensor once."""
    pytest.importorskip("triton")
    from ddfnet.ops.ddf import triton as operator_launch
    from ddfnet.ops.ddf_layer import triton as layer_launch
    from ddfnet.ops.ddf_layer import triton_channel

    layer = Recorded(channels, size, stride)
    with contextlib.ExitStack() as stack:
        for module in (operator_launch, layer_launch, triton_channel):
            stack.enter_context(mock.patch.object(module, "launch", layer.record))
        y, activations = layer_launch.forward(layer.x, layer.weights, layer.settings)
        layer_launch.backward(y, layer.x, layer.weights, activations, layer.settings, True, True)
    s = Sizes(256, channels, size, y.shape[2])
    works = by_kind([*ddf_forward(s, ONE_GRADIENT, True), *ddf_backward(s, ONE_GRADIENT)])
    for kind in (kind for kind in layer.moved if not kind.startswith("channel")):
        assert works[kind] == pytest.approx(layer.moved[kind], rel=0.02), kind  # weights, pooled gradients


@pytest.mark.parametrize(("channels", "size", "stride"), SHAPES)
def test_bytes_with_the_norms_in_training_are_those_of_the_launches(channels, size, stride):
    """With the passes over x and y that `around` counts: 13 of a normalization and its ReLU, less those skipped."""
    pytest.importorskip("triton")
    from ddfnet.ops.batch_norm import triton as norm_launch
    from ddfnet.ops.ddf import triton as operator_launch
    from ddfnet.ops.ddf_layer import triton as layer_launch
    from ddfnet.ops.ddf_layer import triton_channel, triton_training

    layer = Recorded(channels, size, stride)
    norm = TrainedNorm(torch.empty(channels, device="meta"), torch.empty(channels, device="meta"), 1e-5)
    with contextlib.ExitStack() as stack:
        for module in (operator_launch, layer_launch, triton_channel, norm_launch):
            stack.enter_context(mock.patch.object(module, "launch", layer.record))
        given = (layer.x, norm, layer.weights, norm, layer.settings)
        z, state, activations = triton_training.forward(*given)
        triton_training.backward(z, layer.x, layer.weights, state, activations, layer.settings)
    moved = {kind: count for kind, count in layer.moved.items() if not kind.startswith("channel")}
    s = Sizes(256, channels, size, z.shape[2])
    works = by_kind([*ddf_forward(s, ONE_FILTERS, True), *ddf_backward(s, ONE_FILTERS)])
    passes = 0
    for role, image in (("reduce", s.x), ("middle", s.y)):
        conv = roofline_model.Conv(role, channels, channels, size, size if role == "reduce" else s.size)
        skip = roofline_model.skipped(conv, ONE_FILTERS, True)
        passes += (13 - skip.batch_norm - skip.relu) * image
    kinds = ("ddf_forward", "ddf_backward_x", "ddf_backward_filters", "spatial_filters", "spatial_filters_backward")
    counted = sum(works.get(kind, 0) for kind in kinds) + passes
    counted += s.moments + s.logits  # merged; read for the weight's gradient
    assert counted == pytest.approx(sum(moved.values()), rel=0.02)


@pytest.mark.parametrize(("role", "training"), [*itertools.product(("expand", "shortcut"), (True, False))])
def test_passes_at_the_end_of_a_block_are_those_of_the_launches(role, training):
    """With the sum and the ReLU, or the normalization alone; beside what autograd adds up."""
    pytest.importorskip("triton")
    from ddfnet.ops.batch_norm import triton as norm_launch

    recorded = Recorded(256, 28, 1)
    x, numbers, relu = recorded.x, [torch.empty(256, device="meta") for _ in range(4)], role == "expand"
    residual = torch.empty_like(x) if relu else None
    with mock.patch.object(norm_launch, "launch", recorded.record):
        if training:
            y, statistics = norm_launch.forward(x, TrainedNorm(*numbers[:2], 1e-5), residual, relu)
            norm_launch.backward(torch.empty_like(x), x, y if relu else None, statistics, relu)
        else:
            norm_launch.normalize(x, BatchNorm(*numbers, 1e-5), residual, relu)
    works = by_kind(roofline_model.around(roofline_model.Conv(role, 64, 256, 28, 28), 256, training, False, SUMMED))
    of_autograd = works.pop("sums", 0)
    assert of_autograd == (3 * 2 * x.numel() if role == "expand" and training else 0)
    assert sum(works.values()) == pytest.approx(sum(recorded.moved.values()), rel=0.02)  # moments, partial sums


def test_the_calibration_gives_back_what_it_was_made_of():
    predicted = roofline_time.predict(None, True, False, roofline_time.H200)
    for kind, (of_plain, _) in roofline_time.MEASURED["training"].items():
        assert not of_plain or predicted[kind] == pytest.approx(of_plain)
    predicted = roofline_time.predict(MEASURED_STEP, True, False, roofline_time.H200, new_tiles=False)
    assert predicted["spatial_filters"] == pytest.approx(0.71)


def test_every_step_saves_bytes_or_time(capsys):
    for training in (False, True):
        times = [
            sum(roofline_time.predict(step, training, False, roofline_time.H100).values())
            for step in range(len(roofline_model.STEPS))
        ]
        assert times == sorted(times, reverse=True)
    assert roofline.main([]) == 0
    text = capsys.readouterr().out
    assert all(text.count(name) == 5 for name in roofline_model.STEPS)  # bytes; two GPUs, two modes
