"""How long the kernels that roofline_model.py counts take on a GPU; calibrated by a run on an H200.

A kernel takes the time to move its bytes divided by the fraction of a copy's rate that kernels of its kind reached. The
operator's kernels do not wait for memory but for their own loads: they take `start + slope * outputs`, fitted to
measured tiles, where that is longer. That part does not shrink with faster memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scripts.dev.roofline_model import FAST_FILTERS, MEASURED_STEP, NORMALIZED, ONE_GRADIENT, Work, network

# Instructions an output of the kernels that gradients take longest in: of the tile that was measured, and what steps of
# the design add to them since.
INSTRUCTIONS = {"ddf_backward_filters": 60, "ddf_backward_x": 31}
ADDED = {
    ("ddf_backward_filters", FAST_FILTERS): -15,
    ("ddf_backward_filters", NORMALIZED): 16,  # x is activated on load
    ("ddf_backward_x", ONE_GRADIENT): 15,  # what comes from the logits
    ("ddf_backward_x", NORMALIZED): 13,  # the ReLU's mask, and sums
}


@dataclass(frozen=True)
class GPU:
    name: str
    copy: float  # bytes a second of a large copy
    tensor: float  # FLOPs a second of dense bfloat16, as published


# H200: measured. H100: its published 3.35 TB/s, times the share of the published 4.8 TB/s that the H200 reaches.
H200 = GPU("H200", 4.24e12, 989e12)
H100 = GPU("H100", 3.35e12 * 4.24 / 4.8, 989e12)

# docs/results/2026-11-27-h200.md, commit 106ef6e: ms of the device by kind, of one eager step at batch 256, of ResNet50
# and of a DDF-ResNet50, whose "convolution" includes the weight gradient of the branch, and "rest" the small kernels.
MEASURED = {
    "training": {
        **{"batch norm, training": (24.5, 24.5), "convolution": (15.4, 11.5), "ReLU": (5.8, 5.9), "sums": (3.9, 4.5)},
        **{"max pool": (2.7, 2.7), "rest": (1.2, 3.2), "ddf_backward_filters": (0, 3.9), "ddf_forward": (0, 0.96)},
        **{"ddf_backward_x": (0, 0.93), "spatial_filters": (0, 0.71), "spatial_filters_backward": (0, 0.47)},
    },
    "inference": {
        **{"batch norm": (4.9, 4.9), "convolution": (5.7, 4.5), "ReLU": (2.3, 2.3), "sums": (1.9, 1.9)},
        **{"max pool": (0.8, 0.8), "rest": (0.3, 1.0), "ddf_forward": (0, 0.95), "spatial_filters": (0, 0.71)},
    },
}
RESNET50_COMPILED_INFERENCE = 256 / 22727 * 1e3  # ms
SMALL = 2e-3  # ms of a kernel that has next to nothing to do: 2.0 ms for 16 layers of some 65
# Microseconds of a call of 64 x 56, 128 x 28 and 256 x 14, stride 1, batch 256: (tiles of that run, new ones).
TILES = {
    "ddf_forward": ((133, 70, 42), (102, 56, 36)),
    "ddf_backward_x": ((127, 64, 39), (99, 59, 32)),
    "ddf_backward_filters": ((559, 320, 133), (265, 179, 122)),
}
_OUTPUTS = [256 * channels * size**2 for channels, size in ((64, 56), (128, 28), (256, 14))]


def fit(kind: str, new: bool = True) -> tuple[float, float]:
    """(start in ms, ms for an output) of a kernel of the operator, by least squares."""
    slope, start = np.polyfit(_OUTPUTS, TILES[kind][new], 1)
    return start / 1e3, slope / 1e3


def floor(work: Work, gpu: GPU) -> float:
    """Milliseconds to move the bytes at the rate of a copy, or for the FLOPs at the published rate."""
    return 1e3 * max(work.bytes / gpu.copy, work.flops / gpu.tensor)


def fractions() -> dict[str, float]:
    """What part of its floor's rate each kind of kernel reached on the H200."""
    reached = {}
    for mode, measured in MEASURED.items():
        training = mode == "training"
        plain = total(network(None, training, False), H200)
        ddf = total(network(MEASURED_STEP, training, False), H200)
        for kind, (of_plain, of_ddf) in measured.items():
            if kind != "rest":
                name = kind if training or kind.startswith("batch") else f"{kind}, inference"
                reached[name] = plain[kind] / of_plain if of_plain else ddf[kind] / of_ddf
    conv, pool = MEASURED["inference"]["convolution"][0], MEASURED["inference"]["max pool"][0]
    pointwise = RESNET50_COMPILED_INFERENCE - conv - pool
    reached["pointwise"] = total(network(None, False, True), H200)["pointwise"] / pointwise
    reached["weight gradient"] = reached["pointwise"]
    return reached


def total(works: Iterable[Work], gpu: GPU) -> dict[str, float]:
    """Floors by kind."""
    sums: dict[str, float] = {}
    for work in works:
        sums[work.kind] = sums.get(work.kind, 0) + floor(work, gpu)
    return sums


def predict(step: int | None, training: bool, compiled: bool, gpu: GPU, new_tiles: bool = True) -> dict[str, float]:
    """Milliseconds of the device by kind."""
    reached = fractions()
    sums: dict[str, float] = {}
    for work in network(step, training, compiled):
        if work.kind == "rest":
            time = MEASURED["training" if training else "inference"]["rest"][0]
        elif work.kind == "small":
            time = SMALL * work.launches + floor(work, gpu)
        elif work.kind in TILES:
            start, slope = fit(work.kind, new_tiles)
            added = (more for (kind, since), more in ADDED.items() if kind == work.kind and (step or 0) >= since)
            slope *= 1 + (sum(added) + work.instructions) / INSTRUCTIONS.get(work.kind, 1)
            time = max(floor(work, gpu) / 0.75, start + slope * work.outputs)  # no variant reached more
        else:
            fraction = reached.get(work.kind if training else f"{work.kind}, inference", reached.get(work.kind))
            time = floor(work, gpu) / fraction  # type: ignore[operator]
        sums[work.kind] = sums.get(work.kind, 0) + time
    return sums
