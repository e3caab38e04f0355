"""The report folder of an evaluated classifier: figures, tables, pictures and how they were made."""

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from ddfnet.checkpoint import write_atomically
from ddfnet.data import FolderIndex, Preprocessing, eval_transform, open_rgb
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate_task import write_report
from ddfnet.engine.run_folder import environment
from ddfnet.errors import UserError
from ddfnet.evaluation.class_names import readable_names
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.pictures import Pictures
from ddfnet.evaluation.report_console import sets_page
from ddfnet.evaluation.report_tables import per_class_csv, report_page
from ddfnet.evaluation.statistics import ClassRow, Confusion, calibration, class_rows, confusions, worst_mistakes
from ddfnet.zoo.classifier import Classifier

FIGURES = ("calibration.png", "confusion.png", "mistakes.png")
NO_FIGURES = "no figures: matplotlib is missing (pip install matplotlib)"
_MISTAKES = 20

Writers = dict[str, Callable[[BinaryIO], Any]]


def figures_available() -> bool:
    """Whether matplotlib, an optional dependency, can be imported."""
    try:
        import matplotlib  # noqa: F401

        import ddfnet.evaluation.report_figures  # noqa: F401
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


def results(images: ImageSet, pictures: Pictures, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
    """The figures of one set, in percent where they are shares."""
    return {
        "set": images.name or None,
        "data": images.index.root,
        "classes": len(images.classes),
        "note": images.note,
        **metrics,
        # The cross-entropy wants one right answer.
        "loss": metrics["loss"] if images.accepted is None else None,
        "top1_count": int(pictures.right.sum()),
        "top5_count": int(pictures.right5.sum()),
        "ece": calibration(pictures).ece,
        "images_per_second": round(len(pictures) / seconds, 1),
    }


def write_report_folder(
    folder: Path, report: dict[str, Any], images: ImageSet, pictures: Pictures, *, outputs: int
) -> dict[str, Any]:
    """Writes the report folder of one set and returns the report with its `files`; report.json comes last.

    Args:
        folder: made if need be; figures of an earlier report that are not drawn again are removed from it.
        report: of `describe` and `results`.
        images, pictures: what was evaluated, and its rows.
        outputs: number of outputs of the network that were scored.

    Raises:
        UserError: the folder cannot be written.
    """
    # A network may have more outputs than the data has classes (model.num_classes): it can answer with those, too.
    classes = [*images.classes, *(f"output {i}" for i in range(len(images.classes), outputs))]
    names, rows, pairs = readable_names(classes), class_rows(pictures), confusions(pictures)
    figures = _figures(images.index, pictures, rows, pairs, names, report) if figures_available() else {}
    report = {**report, "files": ["report.json", "report.md", "per_class.csv", *figures]}
    page = report_page(report, rows, pairs, names)
    _write(folder, {**figures, "per_class.csv": _text(per_class_csv(rows, classes, names)), "report.md": _text(page)})
    for name in FIGURES:
        if name not in figures:
            (folder / name).unlink(missing_ok=True)
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
        _write(folder, {"sets.md": _text(sets_page(summary))})
        write_report(folder / "sets.json", summary)
    return summary


def _write(folder: Path, writers: Writers) -> None:
    for name, write in writers.items():
        try:
            write_atomically(folder / name, write)
        except OSError as error:
            raise UserError(f"cannot write {folder / name}: {error.strerror}; give --output FOLDER") from None


def _text(text: str) -> Callable[[BinaryIO], Any]:
    return lambda file: file.write(text.encode())


def _figures(
    index: FolderIndex,
    pictures: Pictures,
    rows: Sequence[ClassRow],
    pairs: Sequence[Confusion],
    names: Sequence[str],
    report: dict[str, Any],
) -> Writers:
    from ddfnet.evaluation.report_figures import Mistake, draw_calibration, draw_confusion, draw_mistakes

    as_seen = eval_transform(Preprocessing.from_dict(report["preprocessing"]))
    mistakes = [
        Mistake(
            as_seen(open_rgb(index.path(i))).permute(1, 2, 0).numpy(),
            names[pictures.target[i]],
            names[pictures.predicted[i]],
            float(pictures.confidence[i]),
        )
        for i in worst_mistakes(pictures, _MISTAKES)
    ]
    drawn = {
        "calibration.png": draw_calibration(calibration(pictures)),
        "confusion.png": draw_confusion(rows, pairs, names),
    }
    if mistakes:
        drawn["mistakes.png"] = draw_mistakes(mistakes, len(pictures) - report["top1_count"])
    return {name: lambda file, figure=figure: figure.savefig(file, format="png") for name, figure in drawn.items()}
