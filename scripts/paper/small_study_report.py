"""The report of scripts/paper/small_study.py: the accuracy of each variant as a page, JSON and a chart."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfnet.config.reader import read_yaml
from ddfnet.models.complexity import Complexity, model_complexity
from ddfnet.pages.palette import BLUE, GRAY, VERMILLION
from ddfnet.tasks import check_config
from ddfnet.tasks.config import Config
from ddfnet.utils import markdown
from ddfnet.utils.environment import cpu_name
from ddfnet.utils.files import read_jsonl, write_json, write_text


@dataclass(frozen=True)
class Variant:
    """One network of the study."""

    label: str  # in tables and charts
    overrides: tuple[str, ...] = ()  # of the study's YAML
    paper: float | None = None  # top-1 of its counterpart in the paper, ResNet50 on ImageNet, if it has one


# In the order of the paper's table 3; ddf_add is from the released models.
VARIANTS = {
    "dense": Variant("dense 3x3 convolution", ("model.name=resnet14_32px",), 77.2),
    "depthwise": Variant("static depthwise 3x3", ("model.name=dw_resnet14_32px",)),
    "spatial": Variant("spatial filters only", ("model.kwargs.filters=spatial",), 74.4),
    "channel": Variant("channel filters only", ("model.kwargs.filters=channel",), 78.7),
    "ddf": Variant("both (DDF)", (), 79.1),
    "ddf_add": Variant("both, added", ("model.name=ddf_add_resnet14_32px",), 78.8),
    "batch_norm": Variant("batch norm for filter norm", ("model.kwargs.normalization=batch",), 76.0),
    "sigmoid": Variant("sigmoid for filter norm", ("model.kwargs.normalization=sigmoid",), 78.2),
    "sigma_0.3": Variant("squeeze ratio 0.3", ("model.kwargs.squeeze_ratio=0.3",), 79.0),
    "sigma_0.4": Variant("squeeze ratio 0.4", ("model.kwargs.squeeze_ratio=0.4",), 79.2),
}
# Pairs that the paper compares: the first is the better one.
CLAIMS = (
    *(("ddf", "dense"), ("channel", "dense"), ("dense", "spatial"), ("ddf", "channel")),
    *(("ddf", "spatial"), ("ddf", "batch_norm"), ("ddf", "sigmoid"), ("ddf", "ddf_add")),
)
Scores = dict[str, dict[int, float]]  # top-1 in %, or training loss, by variant and seed


@dataclass(frozen=True)
class FinishedRun:
    """A run as its folder records it: top-1 in % after the last epoch, of so many held-out images, and the training
    loss of that epoch: the mean of what was logged in it."""

    folder: Path
    config: Config
    starts: list[dict[str, Any]]
    top1: float
    held_out: int
    train_loss: float


def read_run(folder: Path) -> FinishedRun | None:
    """The record of a run, or None if it has not finished."""
    if not (folder / "run.json").exists():
        return None
    starts = json.loads((folder / "run.json").read_text())["starts"]
    records, derived = read_jsonl(folder / "metrics.jsonl"), starts[-1]["derived"]
    begin = derived["total_steps"] - derived["steps_per_epoch"]
    losses = [record["loss"] for record in records if record["kind"] == "train" and record["step"] > begin]
    for record in reversed(records):
        if record["kind"] == "val" and record["step"] == derived["total_steps"]:
            config = check_config(read_yaml(folder / "config.yaml")[0])
            return FinishedRun(folder, config, starts, record["top1"], record["n"], statistics.mean(losses))
    return None


def write_report(output: Path, runs: dict[tuple[str, int], Path], data: Path, command: str) -> None:
    """Writes OUTPUT.md, OUTPUT.json and OUTPUT.png from the runs, by variant and seed, that have finished.

    ValueError if none has, or if two differ in more than the network and the seed.
    """
    finished = {key: run for key, folder in runs.items() if (run := read_run(folder)) is not None}
    if not finished:
        raise ValueError(f"no run of the study has finished under {next(iter(runs.values())).parent}")
    recipes = [(run.folder, run.config.model_dump(exclude={"model", "run"})) for run in finished.values()]
    for folder, recipe in recipes:
        if recipe != recipes[0][1]:
            both = f"{recipes[0][0]} and {folder}"
            raise ValueError(f"{both} were trained with different recipes or data: give another --runs")
    classes = sum(path.is_dir() for path in (data / "train").iterdir())
    scores: Scores = {}
    losses: Scores = {}
    costs: dict[str, Complexity] = {}
    for (variant, seed), run in sorted(finished.items(), key=lambda item: list(VARIANTS).index(item[0][0])):
        scores.setdefault(variant, {})[seed] = run.top1
        losses.setdefault(variant, {})[seed] = run.train_loss
        model, shape = run.config.model, run.config.data.input.input_size
        costs[variant] = model_complexity(model.name, shape, num_classes=classes, **model.kwargs)
    missing = sorted(map(str, set(runs) - set(finished)))
    record = {"command": command, **_facts(list(finished.values()), data.name), "top1": scores}
    record |= {"train_loss": losses, "missing": missing}
    write_json(output.with_suffix(".json"), record)
    write_text(output.with_suffix(".md"), _page(output.name, record, costs))
    _chart(output.with_suffix(".png"), scores, costs, record["held_out"])
    for ending in (".md", ".json", ".png"):
        print(output.with_suffix(ending))


def _facts(runs: list[FinishedRun], data: str) -> dict[str, Any]:
    """Facts of all runs; where they differ, all values."""

    def all_of(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values)))

    config, starts = runs[0].config, [run.starts[0] for run in runs]
    return {
        "data": data,
        "images_per_epoch": starts[0]["derived"]["steps_per_epoch"] * config.train.batch_size,
        "held_out": runs[0].held_out,
        "epochs": config.train.epochs,
        "recipe": f"{config.optim.name}, learning rate {starts[0]['derived']['lr']:g}, batch {config.train.batch_size}",
        "date": all_of(start["time"][:10] for start in starts),
        "device": all_of(", ".join(start["gpus"]) or cpu_name() for start in starts),
        "git": all_of((start["git"] or "unknown")[:12] for start in starts),
        "versions": {name: all_of(start["packages"][name] for start in starts) for name in ("torch", "timm")},
    }


def _page(name: str, record: dict[str, Any], costs: dict[str, Complexity]) -> str:
    scores, missing = record["top1"], len(record["missing"])
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    rows = []
    for variant, by_seed in scores.items():
        values, cost, paper = list(by_seed.values()), costs[variant], VARIANTS[variant].paper
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        figures = (f"{cost.parameters:,}", f"{cost.multiply_adds / 1e6:.2f}", f"{statistics.mean(values):.2f}", spread)
        each = (f"{by_seed[seed]:.2f}" if seed in by_seed else "-" for seed in seeds)
        loss = statistics.mean(record["train_loss"][variant].values())
        rows.append((VARIANTS[variant].label, *figures, *each, f"{loss:.3f}", "-" if paper is None else f"{paper:.1f}"))
    head = (
        "variant",
        "parameters",
        "M multiply-adds",
        "top-1",
        "std",
        *(f"seed {seed}" for seed in seeds),
        "training loss",
        "paper",
    )
    claims, verdicts = [], {"every": [], "some": [], "no": []}
    for better, worse in CLAIMS:
        common = sorted(set(scores.get(better, {})) & set(scores.get(worse, {})))
        differences = [scores[better][seed] - scores[worse][seed] for seed in common]
        if differences:
            agree = sum(difference > 0 for difference in differences)
            claim = f"{VARIANTS[better].label} > {VARIANTS[worse].label}"
            verdicts["every" if agree == len(common) else "some" if agree else "no"].append(claim)
            printed = f"{VARIANTS[better].paper - VARIANTS[worse].paper:+.1f}"
            claims.append((claim, printed, f"{statistics.mean(differences):+.2f}", f"{agree} of {len(common)}"))
    unfinished = f"**Not finished**: {missing} of the runs are missing.\n\n" if missing else ""
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    return f"""# The paper's table 3 at small scale

`{record["command"]}`

{record["data"]}: {record["images_per_epoch"]:,} training images per epoch, {record["epochs"]} epochs, \
{record["held_out"]:,} held-out images; {record["recipe"]}; {record["device"]}; {versions}; commit {record["git"]}; \
{record["date"]}.

One recipe for every variant (configs/study/base.yaml says how it was chosen); accuracy of the last epoch, in %. The \
training loss is the mean of what was logged in that epoch, on augmented images. The paper's column is ResNet50 on \
ImageNet (`both, added` from the README of its code): the order is to be compared, not \
the numbers. `--data` is any folder with train/ and val/, each with one folder per class.

{unfinished}![Accuracy of each variant and seed]({name}.png)

{markdown.table(head, rows)}
## What the paper says of pairs, and what came out here

Differences of top-1 between runs of the same seed. One whose sign changes with the seed is noise; the choice of the \
{record["held_out"]:,} held-out images alone gives each accuracy a standard error of up to \
{100 * (0.25 / record["held_out"]) ** 0.5:.1f} points.

{markdown.table(("the paper says", "by", "here, mean", "seeds that agree"), claims)}
""" + "\n".join(f"With {how} seed: {'; '.join(texts)}.\n" for how, texts in verdicts.items() if texts)


def _chart(path: Path, scores: Scores, costs: dict[str, Complexity], held_out: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    marked = {"dense": (VERMILLION, -10, "right"), "ddf": (BLUE, 10, "left")}  # color, label's offset and side
    for row, (variant, by_seed) in enumerate(scores.items()):
        values, cost = list(by_seed.values()), costs[variant].multiply_adds / 1e6
        mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0
        color, offset, side = marked.get(variant, (GRAY, 0, ""))
        left.plot(values, [row] * len(values), "o", color=color, ms=5, alpha=0.45)
        left.plot([mean], [row], "|", color=color, ms=18, mew=2.5)
        right.errorbar([cost], [mean], yerr=[spread], fmt="o", color=color, ms=6, capsize=3)
        if variant in marked:
            style = {"textcoords": "offset points", "color": color, "va": "center", "ha": side}
            right.annotate(VARIANTS[variant].label, (cost, mean), (offset, 0), **style)
    left.set_yticks(range(len(scores)), [VARIANTS[variant].label for variant in scores])
    left.invert_yaxis()
    left.set(xlabel=f"top-1, % of n = {held_out:,} images (dots: seeds; bar: mean)")
    right.set(xlabel="million multiply-adds", ylabel="top-1, % (mean, standard deviation of the seeds)")
    right.margins(x=0.2, y=0.15)
    for axes in (left, right):
        axes.grid(color="#E4E8EC")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
