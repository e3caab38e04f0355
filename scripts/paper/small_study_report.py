"""The report of scripts/paper/small_study.py: what each variant reached, as a page, JSON and a chart."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddfnet.config.reader import read_yaml
from ddfnet.models.complexity import Complexity, model_complexity
from ddfnet.tasks import check_config
from ddfnet.tasks.classification import ClassificationConfig
from scripts.benchmarks import common as bench


@dataclass(frozen=True)
class Variant:
    """What a variant is.

    Attributes:
        label: for tables and charts.
        overrides: of the study's YAML.
        paper: top-1 of its counterpart in the paper, ResNet50 on ImageNet; None: not in the paper.
    """

    label: str
    overrides: tuple[str, ...] = ()
    paper: float | None = None


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
# What the paper says of two variants: the first is the better one.
CLAIMS = (
    ("ddf", "dense"),
    ("channel", "dense"),
    ("dense", "spatial"),
    ("ddf", "channel"),
    ("ddf", "spatial"),
    ("ddf", "batch_norm"),
    ("ddf", "sigmoid"),
    ("ddf", "ddf_add"),
)
Scores = dict[str, dict[int, float]]


def read_score(folder: Path) -> tuple[float, int] | None:
    """(top-1 in %, held-out images) after the last epoch of a finished run; None if it has not finished."""
    try:
        total = json.loads((folder / "run.json").read_text())["starts"][-1]["derived"]["total_steps"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        record = json.loads(line)
        if record["kind"] == "val" and record["step"] == total:
            return record["top1"], record["n"]
    return None


def write_report(output: Path, runs: dict[tuple[str, int], Path], data: Path, command: str) -> None:
    """Writes OUTPUT.md, OUTPUT.json and OUTPUT.png from the runs that have finished.

    Args:
        runs: run folder of each variant and seed.
        data: what the study was given; its name and its number of classes are reported.

    Raises:
        ValueError: none has finished, or two differ in more than the network and the seed.
    """
    scores: Scores = {}
    finished = {key: score for key, folder in runs.items() if (score := read_score(folder)) is not None}
    for (variant, seed), (top1, _) in finished.items():
        scores.setdefault(variant, {})[seed] = top1
    if not scores:
        raise ValueError(f"no run of the study has finished under {next(iter(runs.values())).parent}")
    scores = {variant: scores[variant] for variant in VARIANTS if variant in scores}
    configs = {key: check_config(read_yaml(runs[key] / "config.yaml")[0]) for key in finished}
    _check_one_recipe({runs[key]: config for key, config in configs.items()})
    classes = sum(path.is_dir() for path in (data / "train").iterdir())
    costs = {variant: _complexity(configs[variant, next(iter(scores[variant]))], classes) for variant in scores}
    starts = [json.loads((runs[key] / "run.json").read_text())["starts"][0] for key in finished]
    facts = _facts(starts, next(iter(configs.values())), data.name, held_out=next(iter(finished.values()))[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    facts["missing"] = len(runs) - len(finished)
    record = {"command": command, **facts, "top1": scores, "missing": sorted(map(str, set(runs) - set(finished)))}
    bench.write_json(output.with_suffix(".json"), record)
    bench.write_text(output.with_suffix(".md"), _markdown(output, command, facts, scores, costs))
    _chart(output.with_suffix(".png"), scores, costs)
    for path in (output.with_suffix(ending) for ending in (".md", ".json", ".png")):
        print(path)


def _check_one_recipe(configs: dict[Path, ClassificationConfig]) -> None:
    recipes = {folder: config.model_dump(exclude={"model", "run"}) for folder, config in configs.items()}
    first, *others = recipes
    for folder in others:
        if recipes[folder] != recipes[first]:
            raise ValueError(f"{first} and {folder} were trained with different recipes or data: give another --runs")


def _complexity(config: ClassificationConfig, classes: int) -> Complexity:
    size = config.data.input.size
    return model_complexity(config.model.name, (3, size, size), num_classes=classes, **config.model.kwargs)


def _facts(starts: list[dict[str, Any]], config: ClassificationConfig, data: str, held_out: int) -> dict[str, Any]:
    """What the page says of the runs; what differs between them is listed."""

    def all_of(values: list[str]) -> str:
        return ", ".join(sorted(set(values)))

    cpu = bench.environment(torch.device("cpu"))["cpu"]
    packages = [start["packages"] for start in starts]
    return {
        "data": data,
        "images_per_epoch": starts[0]["derived"]["steps_per_epoch"] * config.train.batch_size,
        "held_out": held_out,
        "epochs": config.train.epochs,
        "recipe": f"{config.optim.name}, learning rate {starts[0]['derived']['lr']:g}, batch {config.train.batch_size}",
        "date": all_of([start["time"][:10] for start in starts]),
        "device": all_of([", ".join(start["gpus"]) or cpu for start in starts]),
        "git": all_of([(start["git"] or "unknown")[:12] for start in starts]),
        "versions": {name: all_of([p[name] for p in packages]) for name in ("torch", "timm")},
    }


def _markdown(output: Path, command: str, facts: dict[str, Any], scores: Scores, costs: dict[str, Complexity]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    lines = [
        "# The paper's table 3 at small scale\n",
        f"`{command}`\n",
        f"{facts['data']}: {facts['images_per_epoch']:,} training images per epoch, {facts['epochs']} epochs, "
        f"{facts['held_out']:,} held-out images; {facts['recipe']}; {facts['device']}; {versions}; "
        f"commit {facts['git']}; {facts['date']}.\n",
        "One recipe for every variant (configs/study/base.yaml says how it was chosen); accuracy of the last epoch, "
        "in %. The paper's column is ResNet50 on ImageNet (`both, added` from the README of its code): the order is "
        "to be compared, not the numbers. `--data` is any folder with train/ and val/, each with one folder per "
        "class.\n",
        *([f"**Not finished**: {facts['missing']} of the runs are missing.\n"] if facts["missing"] else []),
        f"![Accuracy of each variant and seed]({output.name}.png)\n",
        f"| variant | parameters | M multiply-adds | top-1 | std | {' | '.join(f'seed {s}' for s in seeds)} | paper |",
        "| --- " * (6 + len(seeds)) + "|",
    ]
    for variant, by_seed in scores.items():
        cost, values = costs[variant], list(by_seed.values())
        cells = [
            VARIANTS[variant].label,
            f"{cost.parameters:,}",
            f"{cost.multiply_adds / 1e6:.2f}",
            f"{statistics.mean(values):.2f}",
            f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-",
            *(f"{by_seed[seed]:.2f}" if seed in by_seed else "-" for seed in seeds),
            f"{VARIANTS[variant].paper:.1f}" if VARIANTS[variant].paper is not None else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    noise = 100 * (0.25 / facts["held_out"]) ** 0.5
    lines += [
        "\n## What the paper says of pairs, and what came out here\n",
        "Differences of top-1 between runs of the same seed. One whose sign changes with the seed is noise; the choice "
        f"of the {facts['held_out']:,} held-out images alone gives each accuracy a standard error of up to "
        f"{noise:.1f} points.\n",
        "| the paper says | by | here, mean | seeds that agree |",
        "| --- | --- | --- | --- |",
    ]
    verdicts: dict[str, list[str]] = {"every": [], "some": [], "no": []}
    for better, worse in CLAIMS:
        shared = sorted(set(scores.get(better, {})) & set(scores.get(worse, {})))
        if not shared:
            continue
        differences = [scores[better][seed] - scores[worse][seed] for seed in shared]
        printed = VARIANTS[better].paper - VARIANTS[worse].paper
        claim = f"{VARIANTS[better].label} > {VARIANTS[worse].label}"
        agree = sum(difference > 0 for difference in differences)
        verdicts["every" if agree == len(shared) else "some" if agree else "no"].append(claim)
        lines.append(f"| {claim} | {printed:+.1f} | {statistics.mean(differences):+.2f} | {agree} of {len(shared)} |")
    lines.append("")
    lines += [f"With {how} seed: {'; '.join(claims)}.\n" for how, claims in verdicts.items() if claims]
    return "\n".join(lines).rstrip() + "\n"


def _chart(path: Path, scores: Scores, costs: dict[str, Complexity]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    labels = [VARIANTS[variant].label for variant in scores]
    for row, (variant, by_seed) in enumerate(scores.items()):
        values = list(by_seed.values())
        mean = statistics.mean(values)
        color = {"dense": "#D9690D", "ddf": "#1F6FB5"}.get(variant, "#5B6770")
        left.plot(values, [row] * len(values), "o", color=color, ms=5, alpha=0.45)
        left.plot([mean], [row], "|", color=color, ms=18, mew=2.5)
        cost = costs[variant].multiply_adds / 1e6
        spread = statistics.stdev(values) if len(values) > 1 else 0
        right.errorbar([cost], [mean], yerr=[spread], fmt="o", color=color, ms=6, capsize=3)
        if variant in ("dense", "ddf"):
            side = {"dense": -10, "ddf": 10}[variant]
            label = {
                "textcoords": "offset points",
                "color": color,
                "va": "center",
                "ha": "right" if side < 0 else "left",
            }
            right.annotate(VARIANTS[variant].label, (cost, mean), (side, 0), **label)
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set(xlabel="top-1, % (dots: seeds; bar: mean)")
    right.set(xlabel="million multiply-adds", ylabel="top-1, % (mean, standard deviation of the seeds)")
    right.margins(x=0.2, y=0.15)
    for axes in (left, right):
        axes.grid(color="#E4E8EC")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
