"""The paper's tables, from tables.yaml: `write_docs.py` prints them beside what this code gives; tests compare both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfnet.config.reader import read_yaml


@dataclass(frozen=True)
class Row:
    """One row of a table, with the figures that the paper prints."""

    label: str
    config: str | None = None  # YAML below configs/; where this project has no such network, `note` says why
    parameters: str | None = None  # millions
    flops: str | None = None  # billions of multiply-adds
    top1: float | None = None  # %, ImageNet validation set at 224 pixels; so is top5
    top5: float | None = None
    retrained: float | None = None  # top-1 of a baseline with the authors' recipe, where `top1` is an older report
    note: str | None = None  # shown under the table


def _rows(values: list[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(Row(**row | ({"note": _values["notes"][row["note"]]} if "note" in row else {})) for row in values)


_values, _ = read_yaml(Path(__file__).with_name("tables.yaml"))
TABLES = {part: _rows(rows) for part, rows in _values["tables"].items()}
MODERN = _rows(_values["recipes"])
DETECTION: dict[str, tuple[str, str]] = _values["detection"]
