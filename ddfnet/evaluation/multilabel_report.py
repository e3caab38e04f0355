"""The report of an evaluation of images with any number of classes: JSON, Markdown, CSV and a page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ddfnet.evaluation.figures import draw_multilabel_figures
from ddfnet.evaluation.multilabel import METRICS, ClassScore
from ddfnet.evaluation.multilabel_page import multilabel_html
from ddfnet.evaluation.page_parts import About
from ddfnet.evaluation.report import PAGE, ImageReport
from ddfnet.evaluation.report_page import figure_parts, weakest_title
from ddfnet.evaluation.statistics import calibrated
from ddfnet.utils.markdown import plain, table

_MOST = 10  # rows of the table of weakest classes


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport(ImageReport):
    """The results on one set of images with any number of classes each."""

    percentages: Sequence[str] = METRICS
    rows: list[ClassScore]
    threshold: float
    logits: Tensor  # float32 (N, classes)
    truth: Tensor  # bool (N, classes)

    @cached_property
    def results(self) -> dict[str, Any]:
        head = {"data": self.data, "classes": len(self.classes), "threshold": self.threshold}
        return {**head, **self.metrics, "images_per_second": self.images_per_second}

    def console(self) -> str:
        """Settings and metrics in lines."""
        return f"{super().console()}\n\npredicted from {self.threshold:g} of the sigmoid on"

    def _page(self, about: About) -> str:
        threshold = ("threshold", f"{self.threshold:g} of the sigmoid")
        loss = ("loss (binary cross-entropy)", f"{self.metrics['loss']:.4f} nats, mean of all decisions")
        about = replace(about, facts=[*about.facts[:3], threshold, loss, *about.facts[3:]])
        return multilabel_html(self.logits, self.truth, self.threshold, self.rows, about)

    def _figures(self) -> dict[str, bytes]:
        probability = self.logits.sigmoid().double().flatten()
        return draw_multilabel_figures(
            self.images, calibrated(probability, self.truth.flatten()), self.rows, self.names
        )

    def _csv(self) -> str:
        """One line for each class; a fraction that is not defined is empty."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write(["class", "name", "positives", "predicted", "average_precision", "precision", "recall", "f1"])
        for own, name, row in zip(self.classes, self.names, self.rows, strict=True):
            fractions = [row.average_precision, row.precision, row.recall, row.f1]
            write([own, name, row.positives, row.predicted, *(_percent(value, "") for value in fractions)])
        return text.getvalue()

    def _markdown(self) -> str:
        """report.md."""
        settings, metrics = self.settings, self.metrics
        figures = [
            ("mAP, mean over classes", f"**{metrics['map_macro']:.2f} %**"),
            ("mAP, all pairs of image and class", f"{metrics['map_micro']:.2f} %"),
            (f"F1 at {self.threshold:g}, mean over classes", f"{metrics['f1_macro']:.2f} %"),
            (f"F1 at {self.threshold:g}, all pairs", f"{metrics['f1_micro']:.2f} %"),
            ("loss (binary cross-entropy)", f"{metrics['loss']:.4f}"),
            ("images", f"{metrics['n']:,}, {int((~self.truth.any(1)).sum()):,} of them without a class"),
        ]
        named = list(zip(map(plain, self.names), self.rows, strict=True))
        weakest = sorted((pair for pair in named if pair[1].positives), key=lambda pair: pair[1].average_precision)
        rows = [
            (name, _percent(row.average_precision), _percent(row.precision), _percent(row.recall), str(row.positives))
            for name, row in weakest[:_MOST]
        ]
        page = f" To look at the images: [{PAGE}]({PAGE})." if PAGE in self.files else ""
        absent = [name for name, row in named if not row.positives]
        parts = [
            f"# {settings.model} on {self.data}",
            table(("", "result"), figures),
            weakest_title(len(rows), len(weakest)),
            table(("class", "average precision", "precision", "recall", "images"), rows),
            f"No image has these {len(absent)}, which count in no mean: {', '.join(absent)}." if absent else "",
            *figure_parts(self.files),
            "## How it was measured",
            f"{'; '.join(settings.lines)}. Checkpoint `{settings.checkpoint}`. `{settings.command}`, "
            f"{settings.date[:10]}. Machine and versions: [report.json](report.json); each class: "
            f"[per_class.csv](per_class.csv).{page}",
        ]
        return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _percent(value: float, unit: str = " %") -> str:
    return "" if value != value else f"{100 * value:.2f}{unit}"
