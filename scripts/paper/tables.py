"""The paper's tables, from tables.yaml: `write_docs.py` prints them beside what this code gives; tests compare both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfnet.config.reader import read_yaml


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as in the paper.
        config: YAML below configs/, or None where this project has no such network; then `note` says why.
        parameters: millions, as printed.
        flops: billions of multiply-adds, as printed.
        top1, top5: %, as printed; ImageNet validation set at 224 pixels.
        retrained: top-1 that the authors got for a baseline with their own recipe, where `top1` is an older report.
        note: shown under the table.
    """

    label: str
    config: str | None = None
    parameters: str | None = None
    flops: str | None = None
    top1: float | None = None
    top5: float | None = None
    retrained: float | None = None
    note: str | None = None


def _rows(values: list[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(Row(**row | ({"note": _values["notes"][row["note"]]} if "note" in row else {})) for row in values)


_values, _ = read_yaml(Path(__file__).with_name("tables.yaml"))
TABLES = {part: _rows(rows) for part, rows in _values["tables"].items()}
MODERN = _rows(_values["recipes"])
DETECTION: dict[str, tuple[str, str]] = _values["detection"]
