"""report.md: the report of one set, on one page of Markdown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddfnet.checkpoint import kind_note
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.evaluation.statistics import BINS, ClassRow, confusions
from ddfnet.utils.markdown import plain, table
from ddfnet.utils.text import rate_text

if TYPE_CHECKING:
    from ddfnet.evaluation.report import ImageReport, PredictionReport

FIGURES = {
    "calibration.png": "Calibration",
    "precision_recall.png": "Precision and recall of the labels with the lowest F1",
    "confusion.png": "Confusions",
    "mistakes.png": "The mistakes made with the highest confidence",
}
_MOST = 10  # rows of the tables


def weakest_title(shown: int, classes: int) -> str:
    """Heading of a table of the weakest classes, or of all."""
    return "## All classes, the weakest first" if shown == classes else f"## The {shown} weakest of {classes} classes"


def report_page(report: "PredictionReport", rows: Sequence[ClassRow]) -> str:
    """report.md; rows of `class_rows`."""
    settings, result, names = report.settings, report.results, [plain(name) for name in report.names]
    where = f"{result['set']} ({report.data})" if result["set"] else report.data
    n, pairs, counts = f"{result['n']:,}", confusions(report.predictions), {row.label: row.n for row in rows}
    figures = [
        ("top-1", f"**{result['top1']:.2f} %** ({result['top1_count']:,} of {n})"),
        ("top-5", f"{result['top5']:.2f} % ({result['top5_count']:,} of {n})"),
        ("expected calibration error", f"{result['ece']:.2f} % ({BINS} bins)"),
        ("loss (cross-entropy)", loss_text(result)),
    ]
    parts = [f"# {settings.model} on {where}", table(("", "result"), figures), result["note"]]
    if settings.facts["tta"]:
        parts.append(
            "With test-time augmentation (`--tta`): softmax averaged over each image and its mirror image. Not to be "
            "compared with figures of single predictions."
        )
    weakest = [
        (names[row.label], f"{100 * row.top1 / row.n:.1f} %", f"{row.top1} of {row.n}", f"{row.confidence:.2f}",
         "" if row.predicted_as is None else f"{names[row.predicted_as]} ({row.predicted_as_count})")
        for row in sorted(rows, key=lambda row: (row.top1 / row.n, row.label))[:_MOST]
    ]  # fmt: skip
    columns = ("class", "top-1", "correct", "mean confidence", "most often predicted as")
    parts += [weakest_title(len(weakest), len(rows)), table(columns, weakest)]
    confused = [
        (names[pair.target], names[pair.predicted], str(pair.count), f"{100 * pair.count / counts[pair.target]:.1f} %")
        for pair in pairs[:_MOST]
    ]
    confusion_table = table(("true class", "predicted as", "images", "of its class"), confused)
    parts += ["## Most frequent confusions", confusion_table if pairs else "None: every prediction is correct."]
    if len(pairs) > _MOST:
        shown, total = (sum(pair.count for pair in some) for some in (pairs[:_MOST], pairs))
        parts.append(f"{shown} of {total} mistakes; {len(pairs)} pairs of classes in all.")
    parts += figure_parts(report.files)
    parts += ["## How it was measured", _settings_table(report)]
    others = ", ".join(f"[{name}]({name})" for name in report.files if name not in ("report.md", *FIGURES))
    return "\n\n".join(part.strip() for part in [*parts, f"All figures: {others}."] if part) + "\n"


def figure_parts(files: Sequence[str]) -> list[str]:
    """The figures among the files of a report, each with its heading."""
    return [f"## {title}\n\n![{title}]({name})" for name, title in FIGURES.items() if name in files]


def loss_text(result: dict[str, Any]) -> str:
    """The loss, or a dash where an image may have several correct labels."""
    return "-" if result["loss"] is None else f"{result['loss']:.4f}"


def _settings_table(report: "PredictionReport") -> str:
    return table(("", "value"), settings_rows(report))


def settings_rows(report: "ImageReport") -> list[tuple[str, str]]:
    """How a report was measured, as names and values."""
    settings, facts, machine = report.settings, report.settings.facts, report.settings.environment
    how = facts["preprocessing"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    kwargs = ", ".join(f"{key}={value!r}" for key, value in facts["model_kwargs"].items())
    return [
        ("model", f"{settings.model}{f' ({kwargs})' if kwargs else ''}, {settings.parameters:,} parameters"),
        ("checkpoint", f"`{settings.checkpoint}`{kind_note(settings.weights, ' weights')}"),
        ("data", f"`{report.data}`, {report.metrics['n']:,} images, {report.results['classes']:,} classes"),
        ("images", Preprocessing.from_dict(how).summary()),
        ("test-time augmentation", "mirror image" if facts["tta"] else "none"),
        ("precision", settings.precision),
        ("device", ", ".join(sorted(set(machine["gpus"]))) if settings.device == "cuda" else settings.device_name),
        ("processes, batch", f"{settings.processes}, {settings.batch_size} images each"),
        ("speed", f"{rate_text(report.images_per_second)} images per second, reading included"),
        ("command", f"`{settings.command}`"),
        ("date", settings.date),
        ("versions", f"Python {machine['python']}, {versions}"),
        ("git commit", machine["git"] or "not a checkout"),
    ]
