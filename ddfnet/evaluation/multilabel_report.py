"""The report of an evaluation of images with any number of classes: JSON, Markdown and CSV."""

import csv
import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ddfnet.evaluation.class_names import readable_names
from ddfnet.evaluation.multilabel import ClassScore
from ddfnet.evaluation.report import PAGE, Report
from ddfnet.evaluation.report_page import FIGURES, weakest_title
from ddfnet.utils.files import write_json, write_text
from ddfnet.utils.markdown import plain, table

FILES = ("report.json", "report.md", "per_class.csv")
NO_PAGE = "no report.html, which shows images with one label each"
_MOST = 10  # rows of the table of weakest classes


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport(Report):
    """The results on one set, class by class."""

    classes: list[str]
    rows: list[ClassScore]
    threshold: float

    @cached_property
    def results(self) -> dict[str, Any]:
        head = {"data": self.data, "classes": len(self.classes), "threshold": self.threshold}
        return {**head, **self.metrics, "images_per_second": self.images_per_second}

    def console(self) -> str:
        """Settings and metrics in lines."""
        note = f"predicted from {self.threshold:g} of the sigmoid on; {NO_PAGE}"
        return f"{super().console()}\n\n{note}"

    def write(self, folder: Path) -> "MultiLabelReport":
        """Writes report.json, report.md and per_class.csv, in place of those of an earlier report."""
        for name in (PAGE, *FIGURES):  # of the same folder, by weights with one label for each image
            (folder / name).unlink(missing_ok=True)
        report = replace(self, files=FILES)
        write_text(folder / "per_class.csv", report.csv())
        write_text(folder / "report.md", report.page())
        write_json(folder / "report.json", report.to_dict())
        return report

    def csv(self) -> str:
        """One line for each class; a fraction that is not defined is empty."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write(["class", "name", "positives", "predicted", "average_precision", "precision", "recall", "f1"])
        for own, name, row in zip(self.classes, readable_names(self.classes), self.rows, strict=True):
            fractions = [row.average_precision, row.precision, row.recall, row.f1]
            write([own, name, row.positives, row.predicted, *(_percent(value, "") for value in fractions)])
        return text.getvalue()

    def page(self) -> str:
        """report.md."""
        settings, metrics = self.settings, self.metrics
        figures = [
            ("mAP, mean over classes", f"**{metrics['map_macro']:.2f} %**"),
            ("mAP, all pairs of image and class", f"{metrics['map_micro']:.2f} %"),
            (f"F1 at {self.threshold:g}, mean over classes", f"{metrics['f1_macro']:.2f} %"),
            (f"F1 at {self.threshold:g}, all pairs", f"{metrics['f1_micro']:.2f} %"),
            ("loss (binary cross-entropy)", f"{metrics['loss']:.4f}"),
            ("images", f"{metrics['n']:,}"),
        ]
        named = list(zip(map(plain, readable_names(self.classes)), self.rows, strict=True))
        weakest = sorted((pair for pair in named if pair[1].positives), key=lambda pair: pair[1].average_precision)
        rows = [
            (name, _percent(row.average_precision), _percent(row.precision), _percent(row.recall), str(row.positives))
            for name, row in weakest[:_MOST]
        ]
        absent = [name for name, row in named if not row.positives]
        parts = [
            f"# {settings.model} on {self.data}",
            table(("", "result"), figures),
            weakest_title(len(rows), len(weakest)),
            table(("class", "average precision", "precision", "recall", "images"), rows),
            f"No image has {len(absent)} classes, which count in no mean: {', '.join(absent)}." if absent else "",
            "## How it was measured",
            f"{'; '.join(settings.lines)}. Checkpoint `{settings.checkpoint}`. `{settings.command}`, "
            f"{settings.date[:10]}. Machine and versions: [report.json](report.json); each class: "
            "[per_class.csv](per_class.csv).",
        ]
        return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _percent(value: float, unit: str = " %") -> str:
    return "" if value != value else f"{100 * value:.2f}{unit}"
