#!/usr/bin/env python
"""Writes the table of docs/reference/model_zoo.md, and a card per entry of the zoo in docs/reference/models/.

    python scripts/dev/write_model_zoo.py

Figures come from ddfnet/zoo/entries.py and the logs that ship with the weights; parameters are counted. Cards of
entries that are gone are deleted.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a checkout without installation

import torch

from ddfnet.inference.cards import correct, way_to_get, zoo_card
from ddfnet.models import create_model
from ddfnet.utils import markdown
from ddfnet.utils.cli import HelpFormatter
from ddfnet.utils.files import read_jsonl, write_text
from ddfnet.zoo import Entry, entries
from ddfnet.zoo.download import SHIPPED

DOCS = ROOT / "docs" / "reference"
PAGE, CARDS = "model_zoo.md", "models"
COLUMNS = ("name", "top-1", "top-5", "held-out images", "parameters", "size", "status", "license", "way")


def pages(known: Sequence[Entry] | None = None) -> dict[str, str]:
    """All pages, by their paths below docs/reference/. `known`: instead of the entries of the zoo."""
    known = entries() if known is None else known
    written = {PAGE: markdown.fill((DOCS / PAGE).read_text(), {"entries": markdown.table(COLUMNS, map(_row, known))})}
    for entry in known:
        log = read_jsonl(SHIPPED / f"{entry.name}.metrics.jsonl") if entry.file.shipped else []
        parameters = count_parameters(entry.model, entry.num_classes)
        written[f"{CARDS}/{entry.name}.md"] = zoo_card(entry, parameters=parameters, log=log)
    return written


@functools.lru_cache
def count_parameters(model: str, num_classes: int) -> int:
    """Trainable values of a model; takes no memory."""
    with torch.device("meta"):
        network = create_model(model, num_classes=num_classes)
    return sum(parameter.numel() for parameter in network.parameters())


def _row(entry: Entry) -> tuple[str, ...]:
    count = {key: f" ({correct(value, entry.images)})" if entry.images else "" for key, value in entry.metrics.items()}
    figures = {key: f"{value:g} %{count[key]}" for key, value in entry.metrics.items()}
    return (
        f"[{entry.name}]({CARDS}/{entry.name}.md)",
        figures.get("top1", "-"),
        figures.get("top5", "-"),
        f"{entry.images:,}" if entry.images else "not stated",
        f"{count_parameters(entry.model, entry.num_classes):,}",
        f"{entry.file.size / 1e6:.2f} MB" if entry.file.size is not None else "not stated",
        entry.status,
        entry.license,
        way_to_get(entry),
    )


def main() -> None:
    """Writes the pages."""
    written = pages()
    for name, text in written.items():
        write_text(DOCS / name, text)
    for path in (DOCS / CARDS).glob("*.md"):
        if f"{CARDS}/{path.name}" not in written:
            path.unlink()
    print(f"wrote docs/reference/{PAGE} and {len(written) - 1} cards in docs/reference/{CARDS}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args()
    main()
