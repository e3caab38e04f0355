#!/usr/bin/env python
"""Write the tables of docs/reference/models.md: every model of the package and timm's ResNets, with what they cost.

    python scripts/dev/write_models.py

Parameters and multiply-adds are counted here. Accuracy is that of the weights of the zoo that were measured. Images per
second come from docs/results/models_cpu.json, which `python scripts/benchmarks/models.py --output docs/results` writes;
without it the column says that they are not measured. What became of timm's own tests of models stands in
docs/results/timm_tests.json, which `bash scripts/dev/timm_tests.sh SOURCE --record` writes.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import torch

from ddfnet.models import create_model, list_models
from ddfnet.models.complexity import Complexity, model_complexity
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import write_text
from ddfnet.zoo import entries
from scripts.benchmarks import common as bench

PAGE, RESULTS = ROOT / "docs" / "reference" / "models.md", ROOT / "docs" / "results"
CPU_RESULTS, TIMM_TESTS = "models_cpu.json", "timm_tests.json"
TIMM_MODELS = ("resnet18", "resnet50", "resnet101", "resnet152")  # the baselines of the paper
OUTCOMES = ("passed", "refused", "skipped", "failed")
COLUMNS = ("model", "parameters, M", "multiply-adds, B", "as papers count, B", "top-1, measured", "images/s on a CPU")


def listed_models() -> list[str]:
    """Names of the models of the table."""
    return sorted([*list_models(), *TIMM_MODELS])


@functools.lru_cache
def input_size(name: str) -> int:
    """Usual side of a model's images, pixels."""
    with torch.device("meta"):
        return vars(create_model(name))["pretrained_cfg"]["input_size"][-1]


@functools.lru_cache
def complexity(name: str) -> Complexity:
    """Cost of one image of that size; with 10 classes for small images, 1000 for others."""
    size = input_size(name)
    return model_complexity(name, (3, size, size), num_classes=classes(size))


def classes(size: int) -> int:
    """Outputs of the networks that are counted."""
    return 1000 if size > 64 else 10


def page(results: Path = RESULTS) -> str:
    """docs/reference/models.md; `results`: the folder with the measured speeds."""
    measured = _read(results / CPU_RESULTS)
    sizes = sorted({input_size(name) for name in listed_models()}, reverse=True)
    tables = []
    for size in sizes:
        names = [name for name in listed_models() if input_size(name) == size]
        names.sort(key=lambda name: (complexity(name).multiply_adds, name))
        rows = [_row(name, measured) for name in names]
        tables.append(f"### {size} pixels, {classes(size):,} classes\n\n{markdown.table(COLUMNS, rows)}")
    parts = {"models": "\n".join(tables), "machine": _machine(measured)}
    return markdown.fill(PAGE.read_text(), {**parts, "timm_tests": _timm_tests(_read(results / TIMM_TESTS))})


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _row(name: str, measured: dict[str, Any] | None) -> tuple[str, ...]:
    cost = complexity(name)
    speeds = {row["model"]: row["images_per_second"] for row in (measured or {}).get("rows", [])}
    accuracies = [
        f"{entry.metrics['top1']:g} % ([{entry.name.partition('.')[2]}](models/{entry.name}.md), n = {entry.images:,})"
        for entry in entries()
        if entry.model == name and entry.status == "verified" and entry.images
    ]
    return (
        name,
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.multiply_adds / 1e9:.3f}",
        f"{cost.printed / 1e9:.3f}",
        "; ".join(accuracies) or "not measured",
        bench.number(speeds[name]) if name in speeds else "not measured",
    )


def _machine(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "Images per second: not measured yet."
    how, rounds = measured["environment"], sorted({row["rounds"] for row in measured["rows"]})
    counted = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return (
        f"Images per second: {how['cpu']}, {measured['threads']} thread(s), batch {measured['batch']}, float32, eager, "
        f"PyTorch {how['torch']}, {how['date'][:10]}; all models in turn in one run, median of n = {counted} rounds; "
        f"load of the machine before: {how['load']}. `{how['command']}` ([all figures](../results/{CPU_RESULTS}))."
    )


def _timm_tests(record: dict[str, Any] | None) -> str:
    """How many models each of timm's tests passed with."""
    if record is None:
        return "Not run yet."
    counts = {test: list(outcomes.values()) for test, outcomes in record["tests"].items()}
    rows = [(test, *(outcomes.count(outcome) for outcome in OUTCOMES)) for test, outcomes in counts.items()]
    total = [sum(row[i + 1] for row in rows) for i in range(len(OUTCOMES))]
    failed = [
        f"{test} of {model}"
        for test, outcomes in record["tests"].items()
        for model, outcome in outcomes.items()
        if outcome == "failed"
    ]
    models = {model.partition(".")[0] for outcomes in record["tests"].values() for model in outcomes}  # without tags
    missing = sorted(set(list_models()) - models)
    lines = f"timm {record['timm']}, PyTorch {record['torch']}, on a CPU, {record['date']}: {len(models)} models."
    lines += f" Not run: {', '.join(missing)}." * bool(missing) + f" Failed: {', '.join(failed)}." * bool(failed)
    return f"{markdown.table(('test', *OUTCOMES), [*rows, ('all', *total)])}\n{lines}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    write_text(PAGE, page())
    print("wrote docs/reference/models.md")
