"""Evaluation of a checkpoint on its own, whatever its task: what `eval.py` does."""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddfnet.checkpoint import DEFAULT_TASK, read_weights
from ddfnet.engine.distributed import Distributed, distributed_session, mps_notes
from ddfnet.engine.evaluate import counted, evaluate, place
from ddfnet.evaluation.earlier import keep_earlier
from ddfnet.evaluation.figures import NO_FIGURES, figures_available
from ddfnet.evaluation.report import PredictionReport, Report, SetsReport, Settings, sets_header
from ddfnet.ops.compile_ahead import compile_ahead
from ddfnet.tasks import task_class, task_names
from ddfnet.tasks.evaluation import Evaluation, EvaluationOptions, EvaluationSet
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.progress import ProgressBar, no_progress
from ddfnet.utils.text import printable, wrap
from ddfnet.zoo.download import HUB, locate

_NO_BREAK = "\0"  # for a space in the name of a set, where no line may end; no file name holds it


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    weights: str = "auto",
    device: str = "auto",
    output: str | Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Report | SetsReport:
    """Evaluates a checkpoint over all processes, prints the result and writes the report folder.

    Args:
        checkpoint: see `ddfnet.models.classifier.load_classifier`.
        weights: `auto` (the EMA weights if there are any), `raw` or `ema`.
        device: `auto`, `cuda`, `cpu` or `mps`.
        output: folder of the report; None: `eval_<name>` beside the checkpoint, of `zoo:NAME` in `runs/`.
        quiet: show no progress.
        **options: see `EvaluationOptions`.

    Raises:
        UserError: the checkpoint, an option or the data cannot be used; nothing is written then.
    """
    with no_progress(quiet):
        return _evaluate_checkpoint(checkpoint, weights, device, output, EvaluationOptions(**options))


def _evaluate_checkpoint(
    checkpoint: str | Path, weights: str, device: str, output: str | Path | None, how: EvaluationOptions
) -> Report | SetsReport:
    path, entry = locate(checkpoint)
    read = read_weights(path, prefer=weights)
    if output:
        folder = Path(output)
    else:  # that of one set must not mix with the files of several; an entry's is not among the files of the zoo
        kind = "_sets" * (how.sets is not None) + "_tta" * how.tta + "_fuse_bn" * how.fuse_bn
        hub = str(checkpoint).startswith(HUB)  # its files are in a cache
        title = entry.name if entry else str(checkpoint).rpartition("/")[2] if hub else path.name.split(".")[0]
        folder = (Path("runs") if entry or hub else path.parent) / f"eval_{title}{kind}"
    task = read.meta.get("task") if isinstance(read.meta, dict) else DEFAULT_TASK
    if task not in task_names():
        raise CheckpointError(f"{path} is of the task {task}: this package has {', '.join(task_names())}")
    evaluation = task_class(task).evaluation(path, read, entry, how)
    _check_writable(folder)  # before the work, not after it
    with distributed_session(device) as distributed:
        place(evaluation.network, distributed.device, channels_last=evaluation.channels_last)
        if task_class(task).fixed_input_size:
            compile_ahead(evaluation.network, log=partial(_print, distributed))
        settings = Settings(
            checkpoint=str(path),
            task=task,
            weights=read.kind,
            model=evaluation.model,
            parameters=sum(parameter.numel() for parameter in evaluation.network.parameters()),
            facts=evaluation.facts,
            precision=evaluation.precision,
            batch_size=evaluation.batch_size,
            device=distributed.device.type,
            processes=distributed.world_size,
        )
        for note in (*evaluation.notes, *mps_notes(distributed.device)):
            _print(distributed, note)
        if not evaluation.sets[0].name:
            report = _evaluate_set(evaluation, evaluation.sets[0], settings, distributed)
            _print(distributed, report.console())
        else:
            data = {"sets": {images.name: images.data for images in evaluation.sets}}
            _keep_earlier(distributed, folder, "sets.json", settings.to_dict() | data)
            _print(distributed, sets_header(settings))
            reports: dict[str, PredictionReport] = {}
            for images in evaluation.sets:
                reports[images.name] = _evaluate_set(evaluation, images, settings, distributed)
                _print(distributed, reports[images.name].row())
                reports[images.name] = _write(distributed, reports[images.name], folder / images.name)
            report = SetsReport(settings=settings, reports=reports)
        report = _write(distributed, report, folder)
        _print(distributed, "\n" + files_lines(folder, report.files))
        if len(report.files) > 1 and not figures_available():
            _print(distributed, NO_FIGURES)
    return report


def files_lines(folder: Path, files: Sequence[str]) -> str:
    """Where the report is, and its files; sub-folders with the same files stand in one line."""
    if len(files) == 1:
        return f"report: {folder / files[0]}"
    inside: dict[str, list[str]] = {}
    for file in files:
        parent, _, name = file.rpartition("/")
        inside.setdefault(parent.replace(" ", _NO_BREAK), []).append(name)
    parents: dict[str, list[str]] = {}
    for parent, names in inside.items():
        parents.setdefault(", ".join(names), []).append(f"{parent}/" if parent else "")
    lines = [f"{', '.join(folders)}: {names}" if folders[0] else names for names, folders in parents.items()]
    text = "\n".join([f"report: {folder}", *(wrap(line, first="  ", indent="  ") for line in lines)])
    return text.replace(_NO_BREAK, " ")


def _evaluate_set(evaluation: Evaluation, images: EvaluationSet, settings: Settings, distributed: Distributed) -> Any:
    evaluator, bar = images.evaluator(distributed.device), ProgressBar(images.name or "evaluation")
    started = time.perf_counter()
    batches = images.batches(rank=distributed.rank, world_size=distributed.world_size, device=distributed.device)
    metrics = evaluate(
        evaluation.network,
        counted(batches, images.size, distributed.world_size, bar),
        evaluator,
        distributed=distributed,
        precision=evaluation.precision,
        expected=images.size,
    )
    speed = float(f"{metrics['n'] / (time.perf_counter() - started):.4g}")
    return images.report(evaluator, settings=settings, data=images.data, metrics=metrics, images_per_second=speed)


def _write(distributed: Distributed, report: Any, folder: Path) -> Any:
    """The report with its files, which the main process writes."""
    if isinstance(report, Report):
        _keep_earlier(distributed, folder, "report.json", report.to_dict(), report.results)
    try:
        return report.write(folder) if distributed.is_main else report
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error.strerror}; give --output FOLDER") from None


def _keep_earlier(
    distributed: Distributed, folder: Path, name: str, new: dict[str, Any], results: Sequence[str] | dict[str, Any] = ()
) -> None:
    """Says so where an earlier report was moved aside, see `keep_earlier`."""
    if not distributed.is_main:
        return
    try:
        kept = keep_earlier(folder, name, new, results=results)
    except OSError as error:
        raise UserError(f"cannot keep the earlier report in {folder}: {error.strerror}; give --output FOLDER") from None
    if kept:
        _print(distributed, f"\n{kept}")


def _print(distributed: Distributed, text: str) -> None:
    if distributed.is_main:
        print(printable(text), flush=True)


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # some disks refuse whatever the rights say
    except OSError as error:
        raise UserError(f"cannot write a report into {folder} ({error.strerror}): give --output FOLDER") from None
