"""The report folder of an evaluated classifier: figures, tables, images and how they were made."""

import io
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ddfnet.data.decode import decode_error, open_rgb
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.data.sources import ImageSource
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate_task import write_report
from ddfnet.evaluation.class_names import readable_names
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.predictions import Predictions
from ddfnet.evaluation.report_console import sets_page
from ddfnet.evaluation.report_tables import per_class_csv, report_page
from ddfnet.evaluation.statistics import ClassRow, Confusion, calibration, class_rows, confusions, worst_mistakes
from ddfnet.inference.classifier import Classifier
from ddfnet.utils.environment import environment
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.files import write_atomically

TEXTS = ("report.json", "report.md", "per_class.csv")
FIGURES = ("calibration.png", "confusion.png", "mistakes.png")
NO_FIGURES = "no figures: matplotlib is missing (pip install matplotlib)"
_MISTAKES = 20


def figures_available() -> bool:
    """Whether matplotlib, an optional dependency, can be imported."""
    try:
        import matplotlib  # noqa: F401

        import ddfnet.evaluation.figures  # noqa: F401
    except ImportError:
        return False
    return True


def describe(
    loaded: Classifier, checkpoint: Path, *, preprocessing: Preprocessing, distributed: Distributed, **settings: Any
) -> dict[str, Any]:
    """What is the same for every set: the network, the settings and the machine."""
    return {
        "checkpoint": str(checkpoint),
        "weights": loaded.weights,
        "model": loaded.name,
        "model_kwargs": loaded.kwargs,
        "parameters": sum(p.numel() for p in loaded.network.parameters()),
        "preprocessing": preprocessing.to_dict(),
        **settings,
        "device": distributed.device.type,
        "processes": distributed.world_size,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
    }


def results(images: ImageSet, predictions: Predictions, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
    """The figures of one set, in percent where they are shares."""
    return {
        "set": images.name or None,
        "data": images.index.root,
        "classes": len(images.classes),
        "note": images.note,
        **metrics,
        # The cross-entropy wants one right answer.
        "loss": metrics["loss"] if images.accepted is None else None,
        "top1_count": int(predictions.right.sum()),
        "top5_count": int(predictions.right5.sum()),
        "ece": calibration(predictions).ece,
        "images_per_second": round(len(predictions) / seconds, 1),
    }


def write_report_folder(
    folder: Path, report: dict[str, Any], images: ImageSet, predictions: Predictions, *, outputs: int
) -> dict[str, Any]:
    """Writes the report folder of one set and returns the report with its `files`.

    The texts are written before anything is drawn: a figure that cannot be drawn is missing in `files`, and a line on
    stderr says why.

    Args:
        folder: made if need be; figures of an earlier report are removed from it.
        report: of `describe` and `results`.
        images, predictions: what was evaluated, and its rows.
        outputs: number of outputs of the network that were scored.

    Raises:
        UserError: the folder cannot be written.
    """
    # A network may have more outputs than the data has classes (model.num_classes): it can answer with those, too.
    classes = [*images.classes, *(f"output {i}" for i in range(len(images.classes), outputs))]
    names, rows, pairs = readable_names(classes), class_rows(predictions), confusions(predictions)
    report = {**report, "files": [*TEXTS]}
    _write(folder, "per_class.csv", _text(per_class_csv(rows, classes, names)))
    _write(folder, "report.md", _text(report_page(report, rows, pairs, names)))
    write_report(folder / "report.json", report)
    for name in FIGURES:
        (folder / name).unlink(missing_ok=True)
    figures = _figures(images.index, predictions, rows, pairs, names, report) if figures_available() else {}
    for name, drawn in figures.items():
        _write(folder, name, drawn)
    if figures:
        report = {**report, "files": [*TEXTS, *figures]}
        _write(folder, "report.md", _text(report_page(report, rows, pairs, names)))
        write_report(folder / "report.json", report)
    return report


def write_summary(
    folder: Path, about: dict[str, Any], reports: dict[str, dict[str, Any]], *, write: bool
) -> dict[str, Any]:
    """The results of several sets side by side: sets.json and sets.md; returns the content of sets.json.

    Args:
        folder: that holds a report folder for each set.
        about: see `describe`.
        reports: by the name of the set.
        write: false on processes that write nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    results = {name: {k: v for k, v in report.items() if k not in about} for name, report in reports.items()}
    parts = [f"{name}/{file}" for name, report in reports.items() for file in report.get("files", [])]
    summary = {**about, "sets": results, "files": ["sets.json", "sets.md", *parts]}
    if write:
        _write(folder, "sets.md", _text(sets_page(summary)))
        write_report(folder / "sets.json", summary)
    return summary


def _write(folder: Path, name: str, content: bytes) -> None:
    try:
        write_atomically(folder / name, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"cannot write {folder / name}: {error.strerror}; give --output FOLDER") from None


def _text(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # names of files and folders need not be UTF-8


def _figures(
    index: ImageSource,
    predictions: Predictions,
    rows: Sequence[ClassRow],
    pairs: Sequence[Confusion],
    names: Sequence[str],
    report: dict[str, Any],
) -> dict[str, bytes]:
    """PNG files by name, without those that cannot be drawn."""
    from ddfnet.evaluation.figures import draw_calibration, draw_confusion, draw_mistakes

    draws = {
        "calibration.png": lambda: draw_calibration(calibration(predictions)),
        "confusion.png": lambda: draw_confusion(rows, pairs, names),
    }
    total = len(predictions) - report["top1_count"]
    if total:
        draws["mistakes.png"] = lambda: draw_mistakes(_mistakes(index, predictions, names, report), total)
    drawn = {}
    for name, draw in draws.items():
        file = io.BytesIO()
        try:
            draw().savefig(file, format="png")
        except Exception as error:  # hours of evaluation must not end without a report for the sake of a figure
            of_set = f" of set {report['set']}" if report["set"] else ""
            print(f"no {name}{of_set}: {decode_error(error)}", file=sys.stderr, flush=True)
        else:
            drawn[name] = file.getvalue()
    return drawn


def _mistakes(index: ImageSource, predictions: Predictions, names: Sequence[str], report: dict[str, Any]) -> list[Any]:
    """For `draw_mistakes`; DataError where a image cannot be read any more."""
    from ddfnet.evaluation.figures import Mistake

    as_seen = eval_transform(Preprocessing.from_dict(report["preprocessing"]))
    found = []
    for i in worst_mistakes(predictions, _MISTAKES):
        try:
            image = open_rgb(index.read(i))
        except Exception as error:
            raise DataError(f"image {index.name(i)} cannot be read ({decode_error(error)})") from None
        pixels = as_seen(image).permute(1, 2, 0).numpy()
        said = names[predictions.target[i]], names[predictions.predicted[i]]
        found.append(Mistake(pixels, *said, float(predictions.confidence[i])))
    return found
