"""A report as text: per_class.csv and report.md."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from ddfnet.evaluation.statistics import BINS, ClassRow, Confusion

_MOST = 10

CSV_COLUMNS = (
    "class", "name", "n", "top1_count", "top1_percent", "top5_count", "top5_percent", "mean_confidence",
    "taken_for", "taken_for_name", "taken_for_count",
)  # fmt: skip


def per_class_csv(rows: Sequence[ClassRow], classes: Sequence[str], names: Sequence[str]) -> str:
    """One line per class that has predictions, under the header `CSV_COLUMNS`.

    Args:
        rows: see `class_rows`.
        classes: folder names in label order.
        names: readable names in label order.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        taken = ("", "", 0)
        if row.taken_for is not None:
            taken = (classes[row.taken_for], names[row.taken_for], row.taken_for_count)
        shares = (f"{100 * row.top1 / row.n:.2f}", row.top5, f"{100 * row.top5 / row.n:.2f}", f"{row.confidence:.4f}")
        writer.writerow([classes[row.label], names[row.label], row.n, row.top1, *shares, *taken])
    return text.getvalue()


def report_page(
    report: dict[str, Any], rows: Sequence[ClassRow], pairs: Sequence[Confusion], names: Sequence[str]
) -> str:
    """The report on one page of Markdown.

    Args:
        report: content of report.json.
        rows: see `class_rows`.
        pairs: see `confusions`.
        names: readable names in label order.
    """
    where = f"{report['set']} ({report['data']})" if report["set"] else report["data"]
    parts = [f"# {report['model']} on {where}", _figures(report), *_remarks(report)]
    weakest = sorted(rows, key=lambda row: (row.top1 / row.n, row.label))[:_MOST]
    parts += [f"## The {len(weakest)} weakest of {len(rows)} classes", _weakest(weakest, names)]
    parts.append("## Most frequent confusions")
    counts = {row.label: row.n for row in rows}
    most = pairs[:_MOST]
    parts.append(_confusions(most, counts, names) if most else "None: every image was recognized.")
    if len(pairs) > len(most):
        total = sum(pair.count for pair in pairs)
        parts.append(f"{sum(pair.count for pair in most)} of {total} mistakes; {len(pairs)} pairs of classes in all.")
    captions = {
        "calibration.png": "Calibration",
        "confusion.png": "Confusions",
        "mistakes.png": "The mistakes made with the highest confidence",
    }
    for file, caption in captions.items():
        if file in report["files"]:
            parts.append(f"## {caption}\n\n![{caption}]({file})")
    parts += ["## How it was measured", _settings(report)]
    others = ", ".join(f"[{name}]({name})" for name in report["files"] if name not in ("report.md", *captions))
    parts.append(f"All figures: {others}.")
    return "\n\n".join(parts) + "\n"


def _figures(report: dict[str, Any]) -> str:
    n = f"{report['n']:,}"
    rows = [
        ("top-1", f"**{report['top1']:.2f} %** ({report['top1_count']:,} of {n})"),
        ("top-5", f"{report['top5']:.2f} % ({report['top5_count']:,} of {n})"),
        ("expected calibration error", f"{report['ece']:.2f} % ({BINS} bins)"),
        ("loss (cross-entropy)", "-" if report["loss"] is None else f"{report['loss']:.4f}"),
    ]
    return _table(("", "result"), rows)


def _remarks(report: dict[str, Any]) -> list[str]:
    remarks = [report["note"]] if report["note"] else []
    if report["tta"]:
        remarks.append(
            "With test-time augmentation (`--tta`): softmax averaged over each image and its mirror image. Not to be "
            "compared with figures of single predictions."
        )
    return remarks


def _weakest(rows: Sequence[ClassRow], names: Sequence[str]) -> str:
    def taken(row: ClassRow) -> str:
        return "" if row.taken_for is None else f"{names[row.taken_for]} ({row.taken_for_count})"

    cells = [
        (names[row.label], f"{100 * row.top1 / row.n:.1f} %", f"{row.top1} of {row.n}", f"{row.confidence:.2f}",
         taken(row))
        for row in rows
    ]  # fmt: skip
    return _table(("class", "top-1", "right", "mean confidence", "most often taken for"), cells)


def _confusions(pairs: Sequence[Confusion], counts: dict[int, int], names: Sequence[str]) -> str:
    cells = [
        (names[pair.target], names[pair.predicted], str(pair.count), f"{100 * pair.count / counts[pair.target]:.1f} %")
        for pair in pairs
    ]
    return _table(("is", "taken for", "images", "of its class"), cells)


def _settings(report: dict[str, Any]) -> str:
    how, where = report["preprocessing"], report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items() if version)
    kwargs = ", ".join(f"{key}={value!r}" for key, value in report["model_kwargs"].items())
    rows = [
        ("model", f"{report['model']}{f' ({kwargs})' if kwargs else ''}, {report['parameters']:,} parameters"),
        ("checkpoint", f"`{report['checkpoint']}`, {report['weights']} weights"),
        ("data", f"`{report['data']}`, {report['n']:,} predictions, {report['classes']:,} classes"),
        ("images", f"{how['input_size']} px, crop {how['crop_pct']:g}, {how['interpolation']}"),
        ("test-time augmentation", "mirror image" if report["tta"] else "none"),
        ("precision", report["precision"]),
        ("device", ", ".join(sorted(set(where["gpus"]))) if report["device"] == "cuda" else "CPU"),
        ("processes, batch", f"{report['processes']}, {report['batch_size']} images each"),
        ("speed", f"{report['images_per_second']} images per second, reading included"),
        ("command", f"`{report['command']}`"),
        ("date", report["date"]),
        ("versions", f"Python {where['python']}, {versions}"),
        ("git commit", where["git"] or "not a checkout"),
    ]
    return _table(("", "value"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
