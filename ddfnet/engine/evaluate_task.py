"""Evaluation of a checkpoint whose task needs more than a model's name: the stored configuration rebuilds the task."""

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ddfnet.checkpoint import Weights, load_weights, read_checkpoint
from ddfnet.engine.distributed import Distributed, distributed_session
from ddfnet.engine.evaluate import evaluate
from ddfnet.engine.precision import autocast
from ddfnet.tasks import Config, check_config, create_task
from ddfnet.utils.environment import environment
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.utils.files import write_json

# Where weights to start from come from: the checkpoint replaces them, and their files may be gone.
_STARTS = {"init_checkpoint": None, "backbone_checkpoint": None, "backbone_pretrained": False}


def evaluate_task(
    checkpoint: Path,
    found: Weights,
    *,
    data: str | Path | None,
    batch_size: int | None,
    workers: int | str,
    precision: str,
    device: str,
    folder: Path,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the validation data its configuration names, prints the result, writes `report.json`.

    Args:
        checkpoint: `best.pt` or `last.pt` of a run of ours.
        found: its weights.
        data: `data.root`, where it is not that of training.
        batch_size: images per process; None: that of training.
        workers: loader processes per rank, or `auto`.
        precision: `fp32`, `bf16`, `fp16` or `auto`: that of training.
        device: `auto`, `cuda` or `cpu`.
        folder: where the report goes.

    Returns:
        The report: metrics of the task, and how they were made.

    Raises:
        UserError: the checkpoint or the data cannot be used; nothing is written then.
    """
    config = _stored_config(checkpoint, data, batch_size, workers)
    precision = config.train.precision if precision == "auto" else precision
    task = create_task(config)
    _check_same_meta(task.meta(), found.meta, checkpoint)
    network = task.build_model()
    load_weights(network, found, source=checkpoint, name=config.model.name)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    with distributed_session(device) as distributed:
        network = network.to(distributed.device, memory_format=memory_format)
        started = time.perf_counter()
        metrics = evaluate(
            network,
            task.eval_batches(rank=distributed.rank, world_size=distributed.world_size, device=distributed.device),
            task.evaluator(distributed.device),
            distributed=distributed,
            autocast=autocast(distributed.device, precision),
            expected=task.val_images,
        )
        seconds = time.perf_counter() - started
        report = {
            "checkpoint": str(checkpoint),
            "task": config.task,
            "weights": found.kind,
            "model": config.model.name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "data": config.data.root,
            **metrics,
            "precision": precision,
            "processes": distributed.world_size,
            "batch_size": config.eval.batch_size or config.train.device_batch_size,
            "images_per_second": round(metrics["n"] / seconds, 1),
            "config": config.model_dump(mode="json"),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
        }
        if distributed.is_main:
            write_report(folder / "report.json", report)
            print(_table(report, metrics, distributed, folder / "report.json"))
    return report


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes a report as JSON, NaN and infinity as null; UserError where the folder cannot be written."""
    try:
        write_json(path, report)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give --output FOLDER") from None


def _stored_config(checkpoint: Path, data: str | Path | None, batch_size: int | None, workers: int | str) -> Config:
    """The configuration of the training run, with the places and sizes of this evaluation."""
    values = None if checkpoint.suffix == ".safetensors" else read_checkpoint(checkpoint).get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{checkpoint} does not hold the configuration of its run: give best.pt or last.pt")
    if data is not None:
        values["data"]["root"] = str(data)
    values["data"]["workers"] = workers
    values["run"]["dir"] = None
    if batch_size is not None:
        values["eval"]["batch_size"] = batch_size
    values["model"].update({key: value for key, value in _STARTS.items() if key in values["model"]})
    return check_config(values)


def _check_same_meta(own: dict[str, Any], saved: dict[str, Any], checkpoint: Path) -> None:
    changed = [key for key in own if key != "ddfnet" and own[key] != saved.get(key)]
    if changed:
        raise CheckpointError(
            f"{checkpoint} was trained on other data ({', '.join(changed)} differ): give such data as --data"
        )


def _table(report: dict[str, Any], metrics: dict[str, float], distributed: Distributed, path: Path) -> str:
    device = torch.cuda.get_device_name() if distributed.device.type == "cuda" else "CPU"
    width = max(map(len, metrics))
    return "\n".join(
        [
            f"{report['model']} ({report['weights']} weights), {report['parameters']:,} parameters",
            f"{report['task']} on {report['data']}",
            f"{report['precision']} on {device}, {report['processes']} process(es), "
            f"{report['images_per_second']} images/s",
            "",
            *(
                f"  {key:{width}}  {value:9d}" if isinstance(value, int) else f"  {key:{width}}  {value:9.4f}"
                for key, value in metrics.items()
            ),
            "",
            f"report: {path}",
        ]
    )
