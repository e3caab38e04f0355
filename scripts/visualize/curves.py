"""Figure of `python scripts/visualize curves`: the training curves of runs."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ddfnet.pages.palette import SERIES
from ddfnet.utils.errors import UserError
from ddfnet.utils.files import read_jsonl

Records = list[dict[str, Any]]
KINDS = {"train": (":", "training"), "val": ("-", "validation"), "val_ema": ("--", "validation, EMA weights")}
# Of each task what ranks its checkpoints: its title, the loss, and whether the highest is best.
METRICS = {
    "top1": ("top-1, %", "loss, nats", True),
    "map_macro": ("mAP (mean over classes), %", "loss, nats", True),
    "map": ("mAP (boxes), %", "loss", True),
    "rmse": ("RMSE, cm", "loss", False),
}


def draw_curves(runs: list[Path]) -> Figure:
    """Loss, what ranks the checkpoints (top-1, mAP or RMSE) and learning rate over epochs; one color per run, one line
    style per kind of record."""
    figure = Figure(figsize=(12, 3.9), dpi=120, layout="constrained")
    loss, top1, rate = figure.subplots(1, 3)
    sizes: set[int] = set()  # of the validation sets
    metrics: set[str] = set()
    short = len({run.name for run in runs}) == len(runs)  # the name alone tells the runs apart
    for color, run in zip(SERIES * len(runs), runs, strict=False):
        records, name = _read_run(run), run.name if short else str(run)
        metric = next((key for key in METRICS if any(key in record for record in records)), "top1")
        metrics.add(metric)
        for kind, (style, label) in KINDS.items():
            label = f"{name}: {label}" if len(runs) > 1 else label
            line = {"color": color, "ls": style, "lw": 1.8, "label": label}
            _line(loss, records, kind, "loss", **line)
            _line(top1, records, kind, metric, **line)
        _line(rate, records, "train", "lr", color=color, lw=1.8, label=name)
        _mark_best(top1, records, metric, color)
        sizes |= {record["n"] for record in records if record["kind"] == "val" and "n" in record}
    counted = f", n = {', '.join(f'{n:,}' for n in sorted(sizes))} images" if sizes else ""
    shown = [METRICS[metric] for metric in METRICS if metric in metrics]
    quality, losses = (" and ".join(dict.fromkeys(titles)) for titles in ([s[0] for s in shown], [s[1] for s in shown]))
    for axes, title in ((loss, losses), (top1, f"{quality}{counted}"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlim(left=0)  # the first record comes later: what is missing before it is seen to be
        axes.grid(color="#E4E8EC")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines and (axes is not rate or len(runs) > 1):
            axes.legend(frameon=False, fontsize=8)
    rate.set_ylim(bottom=0)
    return figure


def _read_run(folder: Path) -> Records:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a run folder, e.g. runs/demo")
    if records := read_jsonl(path):
        return records
    raise UserError(f"{path} holds no records yet: the run has taken no steps")


def _line(axes: Axes, records: Records, kind: str, key: str, **style: Any) -> None:
    points = [(r["epoch"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) == 1 else None, **style)  # a line has two ends


def _mark_best(axes: Axes, records: Records, metric: str, color: str) -> None:
    """A dot on the best evaluation, and its value in the legend."""
    # The weights that training ranks: EMA weights where there are any.
    kind = "val_ema" if any(r["kind"] == "val_ema" for r in records) else "val"
    points = [(r[metric], r["epoch"]) for r in records if r["kind"] == kind and r.get(metric) is not None]
    if points:
        value, epoch = (max if METRICS[metric][2] else min)(points, key=lambda point: point[0])
        axes.plot([epoch], [value], "o", color=color, ms=6, label=f"best: {value:.2f}")
