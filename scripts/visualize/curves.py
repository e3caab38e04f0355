#!/usr/bin/env python
"""Draw the training curves of one or several runs: loss, top-1, learning rate.

    python scripts/visualize/curves.py runs/demo                     # writes runs/demo/curves.png
    python scripts/visualize/curves.py runs/a runs/b --output ab.png

Reads each run folder's metrics.jsonl. Exit code 2 if a run has none or matplotlib is missing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError:
    print("plot_curves: matplotlib is missing: pip install matplotlib", file=sys.stderr)
    sys.exit(2)

Records = list[dict[str, Any]]
COLORS = ("#1F6FB5", "#D9690D", "#2E8B57", "#7A3E9D", "#B5305A", "#5B6770")
STYLES = {"train": ":", "val": "-", "val_ema": "--"}
NAMES = {"train": "training", "val": "validation", "val_ema": "validation, averaged weights"}


def read_run(folder: Path) -> Records:
    """Records of a run's metrics.jsonl; a last line that a crash cut short is left out.

    Raises:
        ValueError: no such file, or nothing in it.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a run folder, e.g. runs/demo")
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if not records:
        raise ValueError(f"{path} holds no records yet: the run has taken no steps")
    return records


def draw(runs: dict[str, Records]) -> Figure:
    """Three panels over epochs; one color per run, one line style per kind of record."""
    figure = Figure(figsize=(12, 3.9), dpi=120, layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    for color, (name, records) in zip(COLORS * len(runs), runs.items(), strict=False):
        prefix = f"{name}: " if len(runs) > 1 else ""
        for kind, style in STYLES.items():
            line = {"color": color, "ls": style, "lw": 1.8, "label": prefix + NAMES[kind]}
            _line(loss, records, kind, "loss", **line)
            _line(top1, records, kind, "top1", **line)
        _line(rate, records, "train", "lr", color=color, lw=1.8, label=name)
        _mark_best(top1, records, color)
    for axes, title in ((loss, "loss"), (top1, "top-1, %"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(color="#E4E8EC")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (loss, top1, *([rate] if len(runs) > 1 else [])):
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, records: Records, kind: str, key: str, **style: Any) -> None:
    points = [(r["epoch"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _mark_best(axes: Axes, records: Records, color: str) -> None:
    """A dot on the best evaluation, and its value in the legend."""
    # The weights that training ranks: the averaged ones where there are any.
    kind = "val_ema" if any(r["kind"] == "val_ema" for r in records) else "val"
    points = [(r["top1"], r["epoch"]) for r in records if r["kind"] == kind and r.get("top1") is not None]
    if points:
        value, epoch = max(points, key=lambda point: point[0])
        axes.plot([epoch], [value], "o", color=color, ms=6, label=f"best: {value:.2f}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--output", type=Path, metavar="PNG", help="default: RUN/curves.png; of several runs: curves.png"
    )
    arguments = parser.parse_args(argv)
    output = arguments.output or (arguments.runs[0] / "curves.png" if len(arguments.runs) == 1 else Path("curves.png"))
    try:
        # By folder, shortened to the name where that tells the runs apart.
        short = {run.name for run in arguments.runs}
        named = {run.name if len(short) == len(arguments.runs) else str(run): read_run(run) for run in arguments.runs}
        draw(named).savefig(output)
    except (ValueError, OSError) as error:
        print(f"plot_curves: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
