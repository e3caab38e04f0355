"""The report of an evaluation: typed, and as JSON, console text, Markdown and CSV."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ddfnet.checkpoint import kind_note
from ddfnet.data.decode import decode_error
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.evaluation.class_names import readable_names
from ddfnet.evaluation.figures import draw_figures
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page import report_html
from ddfnet.evaluation.page_parts import About
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.report_page import FIGURES, loss_text, report_page, settings_rows
from ddfnet.evaluation.statistics import BINS, calibration, class_rows, per_class_csv
from ddfnet.utils.environment import environment
from ddfnet.utils.files import write_atomically, write_json, write_text
from ddfnet.utils.markdown import table
from ddfnet.utils.text import plural, printable, rate_text, with_weights, wrap

TEXTS = ("report.json", "report.md", "per_class.csv")
PAGE = "report.html"
R = TypeVar("R", bound="ImageReport")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an evaluation was made; the same for all its sets. `facts`: what the task adds, as plain values."""

    checkpoint: str
    task: str
    weights: str
    model: str
    parameters: int
    facts: dict[str, Any]
    precision: str
    batch_size: int
    device: str
    processes: int
    command: str = field(default_factory=lambda: shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def network(self) -> str:
        return f"{self.model}{kind_note(self.weights, ' weights')}, {self.parameters:,} parameters"

    @property
    def device_name(self) -> str:
        if self.device == "cuda":
            return str(self.environment["gpus"][0])
        return "Apple GPU" if self.device == "mps" else "CPU"

    @property
    def machine(self) -> str:
        return f"{self.precision} on {self.device_name}, {plural(self.processes, 'process', 'processes')}"

    @property
    def lines(self) -> list[str]:
        """Network, preprocessing and machine of an evaluation image by image."""
        how = self.facts["preprocessing"]
        images = f"{Preprocessing.from_dict(how).summary()}; {self.machine}"
        tta = ["test-time augmentation: mean softmax of image and mirror image"] if self.facts["tta"] else []
        return [self.network, images, *tta]

    def to_dict(self) -> dict[str, Any]:
        """The keys that all tasks have, and those of `facts`."""
        return {**{key: value for key, value in vars(self).items() if key != "facts"}, **self.facts}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results on one set of images."""

    settings: Settings
    data: str  # where the images are
    metrics: dict[str, float]  # of the task's evaluator; `n` is the number of images
    images_per_second: float  # over all processes, reading included
    percentages: Sequence[str] = ()  # metrics in percent
    files: tuple[str, ...] = ()  # in the report folder; none before it is written

    @cached_property
    def results(self) -> dict[str, Any]:
        """The results without the settings, which are the same for all sets of an evaluation."""
        return {"data": self.data, **self.metrics, "images_per_second": self.images_per_second}

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        return {**self.settings.to_dict(), **self.results, "files": [*self.files]}

    def console(self) -> str:
        """Settings and metrics in lines."""
        settings, width = self.settings, max(map(len, self.metrics))
        head = [settings.network, f"{settings.task} on {self.data}"]
        head += [f"{settings.machine}, {rate_text(self.images_per_second)} images/s", ""]
        units = dict.fromkeys(self.percentages, " %")
        for key, value in self.metrics.items():
            how = "9.2f" if key in units else "9d" if isinstance(value, int) else "9.4f"
            text = f"{'-':>9}" if key in units and value < 0 else f"{value:{how}}{units.get(key, '')}"
            head.append(f"  {key:{width}}  {text}")
        return "\n".join(head)

    def write(self, folder: Path) -> "Report":
        """Writes report.json; returns the report with its `files`."""
        report = replace(self, files=("report.json",))
        write_json(folder / "report.json", report.to_dict())
        return report


@dataclass(frozen=True, kw_only=True)
class ImageReport(Report):
    """The results on one set, image by image: texts, report.html and figures."""

    images: ImageSet
    classes: list[str]  # names of the scored outputs, which may be more than the classes of the data
    network: nn.Module | None = None  # report.html shows its filters; None: not

    @cached_property
    def names(self) -> list[str]:
        """Readable names of the classes."""
        return readable_names(self.classes)

    def write(self: R, folder: Path) -> R:
        """Writes the texts, then the page and the figures; those of an earlier report are removed.

        A page or figure that cannot be made is missing in `files`, and a line on stderr says why.
        """
        report = replace(self, files=TEXTS)
        report._write_texts(folder)
        for name in (PAGE, *FIGURES):
            (folder / name).unlink(missing_ok=True)
        if page := self._html():
            write_text(folder / PAGE, page)
            report = replace(self, files=(*TEXTS, PAGE))
            report._write_texts(folder)
        figures = self._figures()
        for name, png in figures.items():
            write_atomically(folder / name, methodcaller("write", png))
        if figures:
            report = replace(report, files=(*report.files, *figures))
            report._write_texts(folder)
        return report

    def _html(self) -> str:
        """The text of report.html; none where it cannot be made."""
        where = f"{self.images.name} ({self.data})" if self.images.name else self.data
        about = About(
            images=self.images,
            names=self.names,
            preprocessing=self.settings.facts["preprocessing"],
            network=self.network,
            precision=self.settings.precision,
            results=self.results,
            heading=with_weights(self.settings.model, self.settings.checkpoint),
            subject=printable(where),
            facts=[(key, printable(value).replace("`", "")) for key, value in settings_rows(self)],
        )
        try:
            return self._page(about)
        except Exception as error:  # hours of evaluation must not end without a report for the sake of a page
            print(f"no {PAGE}: {decode_error(error)}", file=sys.stderr, flush=True)
            return ""

    def _write_texts(self, folder: Path) -> None:
        """Writes `TEXTS`."""
        write_text(folder / "per_class.csv", self._csv())
        write_text(folder / "report.md", self._markdown())
        write_json(folder / "report.json", self.to_dict())

    def _page(self, about: About) -> str:
        raise NotImplementedError

    def _csv(self) -> str:
        raise NotImplementedError

    def _markdown(self) -> str:
        raise NotImplementedError

    def _figures(self) -> dict[str, bytes]:
        """PNG files by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PredictionReport(ImageReport):
    """The results on one set of images with one label each."""

    predictions: Predictions

    @cached_property
    def results(self) -> dict[str, Any]:
        return {
            "set": self.images.name or None,
            "classes": len(self.images.classes),
            "note": self.images.note,
            "data": self.data,
            **self.metrics,
            # The cross-entropy wants one correct label.
            "loss": self.metrics["loss"] if self.images.accepted is None else None,
            "top1_count": int(self.predictions.correct.sum()),
            "top5_count": int(self.predictions.correct5.sum()),
            "ece": calibration(self.predictions).ece,
            "images_per_second": self.images_per_second,
        }

    def console(self) -> str:
        result = self.results
        rows = [
            f"  top-1  {result['top1']:6.2f} %  ({result['top1_count']} of {result['n']})",
            f"  top-5  {result['top5']:6.2f} %  ({result['top5_count']} of {result['n']})",
            f"  ece    {result['ece']:6.2f} %  (expected calibration error, {BINS} bins)",
            f"  loss   {loss_text(result):>7}",
            f"  n      {result['n']:6d}",
            f"  speed  {rate_text(self.images_per_second):>6} images/s",
        ]
        return "\n".join([*map(wrap, self.settings.lines), self.data, "", *rows])

    def row(self) -> str:
        """The set in one line, below `sets_header`."""
        result = self.results
        return (
            f"{result['set']:<12}{result['n']:>9}{result['classes']:>9}{result['top1']:>7.2f} %{result['top5']:>7.2f} %"
            f"{result['ece']:>7.2f} %{loss_text(result):>9}{rate_text(self.images_per_second):>10}"
        )

    def _page(self, about: About) -> str:
        return report_html(self.predictions, about)

    def _csv(self) -> str:
        return per_class_csv(class_rows(self.predictions), self.classes, self.names)

    def _markdown(self) -> str:
        return report_page(self, class_rows(self.predictions))

    def _figures(self) -> dict[str, bytes]:
        return draw_figures(self.images, self.predictions, self.names, self.settings.facts["preprocessing"])


@dataclass(frozen=True, kw_only=True)
class SetsReport:
    """Several sets side by side, each with a report folder of its own."""

    settings: Settings
    reports: dict[str, PredictionReport]
    files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The content of sets.json."""
        results = {name: {**report.results, "files": [*report.files]} for name, report in self.reports.items()}
        return {**self.settings.to_dict(), "sets": results, "files": [*self.files]}

    def write(self, folder: Path) -> "SetsReport":
        """Writes sets.json and sets.md beside the folders of the sets."""
        parts = [f"{name}/{file}" for name, report in self.reports.items() for file in report.files]
        summary = replace(self, files=("sets.json", "sets.md", *parts))
        write_text(folder / "sets.md", sets_page(summary))
        write_json(folder / "sets.json", summary.to_dict())
        return summary


def sets_header(settings: Settings) -> str:
    """The lines above those of several sets."""
    header = f"{'set':<12}{'images':>9}{'classes':>9}{'top-1':>9}{'top-5':>9}{'ece':>9}{'loss':>9}{'images/s':>10}"
    return "\n".join([*map(wrap, settings.lines), "", header])


def _links(name: str, report: PredictionReport) -> str:
    page = f" ([page]({name}/{PAGE}))" if PAGE in report.files else ""
    return f"[{name}]({name}/report.md){page}"


def sets_page(summary: SetsReport) -> str:
    """sets.md: one row per set, with links to the reports."""
    settings, results = summary.settings, {name: report.results for name, report in summary.reports.items()}
    rows = [
        (_links(name, summary.reports[name]), f"{result['n']:,}", f"{result['classes']:,}",
         f"{result['top1']:.2f} % ({result['top1_count']:,})", f"{result['top5']:.2f} % ({result['top5_count']:,})",
         f"{result['ece']:.2f} %", loss_text(result))
        for name, result in results.items()
    ]  # fmt: skip
    columns = ("set", "images", "classes", "top-1", "top-5", f"ECE ({BINS} bins)", "loss")
    parts = [
        f"# {settings.model} on {len(results)} sets",
        table(columns, rows),
        *(f"{name}: {result['note']}" for name, result in results.items() if result["note"]),
        f"{'; '.join(settings.lines)}. Checkpoint `{settings.checkpoint}`.",
        f"`{settings.command}`, {settings.date[:10]}. Machine and versions: [sets.json](sets.json).",
    ]
    return "\n\n".join(map(str.strip, parts)) + "\n"
