"""A small network with random weights, evaluated."""

import csv

from ddfnet.engine.evaluate_checkpoint import evaluate_checkpoint

NAME = "ddf_mul_resnet14_32px"
FILES = ["report.json", "report.md", "per_class.csv", "report.html"]
COMMON = {"device": "cpu", "workers": 0, "batch_size": 4}


def evaluated(*arguments, **options):
    """The content of report.json, or of sets.json."""
    return evaluate_checkpoint(*arguments, **options).to_dict()


def table(folder):
    with (folder / "per_class.csv").open() as file:
        return list(csv.DictReader(file))
