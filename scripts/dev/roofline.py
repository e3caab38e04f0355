#!/usr/bin/env python
"""Predict bytes, launches and speed of DDF-ResNet50 beside ResNet50 on an H100 and an H200, for each design step.

    python scripts/dev/roofline.py              # three tables, no GPU

A model, not a measurement: docs/results/ has those. It is calibrated by one run on an H200, so that what it says of
ResNet50 there is no prediction; the third table says what is one, and how far off it was. What is counted, and how it
becomes time, stands in roofline_model.py and roofline_time.py. Of the device alone: the host may take longer.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from scripts.dev import roofline_model as model
from scripts.dev import roofline_time as timing

BATCH = 256
SHAPES = ((64, 56, 56), (128, 56, 28), (128, 28, 28), (256, 28, 14), (256, 14, 14), (512, 14, 7), (512, 7, 7))


def module_table() -> str:
    """Megabytes and launches of a layer in a training step."""
    rows = []
    for step, name in enumerate(model.STEPS):
        cells, launches = [], set()
        for channels, size_in, size in SHAPES:
            s = model.Sizes(BATCH, channels, size_in, size)
            forward, backward = model.ddf_forward(s, step, True), model.ddf_backward(s, step)
            cells.append(f"{sum(work.bytes for work in (*forward, *backward)) / 1e6:,.0f}")
            launches.add(sum(work.launches for work in (*forward, *backward)))
        rows.append((name, *cells, " or ".join(map(str, sorted(launches)))))
    head = ["a DDF layer, MB", *(f"{c} x {h}{', stride 2' * (h != o)}" for c, h, o in SHAPES), "launches"]
    return markdown.table(head, rows)


def ratio_table() -> str:
    """ms and ratio to ResNet50 for each GPU, mode and step."""
    rows = []
    for gpu in (timing.H100, timing.H200):
        for compiled in (False, True):
            base = [sum(timing.predict(None, training, compiled, gpu).values()) for training in (False, True)]
            mode = "compiled" if compiled else "eager"
            rows.append((gpu.name, mode, "ResNet50", f"{base[0]:.1f}", "", f"{base[1]:.1f}", ""))
            for step, name in enumerate(model.STEPS):
                ms = [sum(timing.predict(step, training, compiled, gpu).values()) for training in (False, True)]
                ratios = [b / m for b, m in zip(base, ms, strict=True)]
                rows.append(
                    (gpu.name, mode, name, f"{ms[0]:.1f}", f"{ratios[0]:.2f}", f"{ms[1]:.1f}", f"{ratios[1]:.2f}")
                )
    head = [
        "GPU",
        "mode",
        f"batch {BATCH}, ms of the device",
        "inference",
        "ResNet50 / this",
        "training",
        "ResNet50 / this",
    ]
    return markdown.table(head, rows)


def check_table() -> str:
    """The run that calibrates the model, by kind of kernel: what each reached, and what the model says of the DDF."""
    rows = []
    for mode, measured in timing.MEASURED.items():
        training = mode == "training"
        floors = timing.total(model.network(model.MEASURED_STEP, training, False), timing.H200)
        floors |= timing.total(model.network(None, training, False), timing.H200)
        predicted = timing.predict(model.MEASURED_STEP, training, False, timing.H200, new_tiles=False)
        predicted["convolution"] += predicted.pop("weight gradient", 0)
        predicted["rest"] += predicted.pop("small")
        for kind, (of_plain, of_ddf) in measured.items():
            floor = "" if kind == "rest" else f"{floors[kind]:.2f}"
            reached = "" if kind == "rest" else f"{floors[kind] / (of_plain or of_ddf):.2f}"
            plain = f"{of_plain:.2f}" if of_plain else ""
            ddf = f"{predicted[kind]:.2f}", f"{of_ddf:.2f}", f"{predicted[kind] / of_ddf:.2f}"
            rows.append((f"{mode}, {kind.split(',')[0]}", floor, plain, reached, *ddf))
    head = ["ms of a step", "floor", "ResNet50", "reached", "DDF: predicted", "measured", "predicted / measured"]
    return markdown.table(head, rows)


def whole_table() -> str:
    """Whole steps of the same run."""
    plain = {(True, False): 53.7, (False, False): 16.1, (False, True): timing.RESNET50_COMPILED_INFERENCE}
    ddf = {(True, False): 60.6, (False, False): 17.2, (False, True): 256 / 20837 * 1e3}
    rows = []
    for (training, compiled), ms in ddf.items():
        # the layers were compiled too, into fewer small kernels: as of one operator
        step = model.ONE_OPERATOR if compiled else model.MEASURED_STEP
        predicted = sum(timing.predict(step, training, compiled, timing.H200, new_tiles=False).values())
        base = sum(timing.predict(None, training, compiled, timing.H200).values())
        what = f"{'compiled' if compiled else 'eager'} {'training' if training else 'inference'}"
        was = plain[training, compiled] / ms
        rows.append((what, f"{predicted:.1f}", f"{ms:.1f}", f"{base / predicted:.3f}", f"{was:.3f}"))
    return markdown.table(["DDF-ResNet50", "predicted ms", "measured", "predicted ratio", "measured"], rows)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args(argv)
    for title, table in (
        (f"Bytes and launches of a layer's training step, batch {BATCH}, bfloat16", module_table()),
        ("Predicted, each step with those before it", ratio_table()),
        ("An H200 and its tiles of 2026-11-27, predicted and measured", check_table()),
        ("The same, whole steps", whole_table()),
    ):
        print(f"## {title}\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
