"""Evaluation of a checkpoint whose stored configuration rebuilds its task: data, network and evaluator."""

from pathlib import Path
from typing import Any

from ddfnet.checkpoint import Weights, load_weights, read_checkpoint
from ddfnet.config import check
from ddfnet.tasks.base import Evaluation, EvaluationOptions, EvaluationSet, Task
from ddfnet.tasks.config import Config
from ddfnet.utils.errors import CheckpointError, UserError
from ddfnet.zoo.entries import Entry

# Where weights to start from come from: the checkpoint replaces them, and their files may be gone.
_STARTS = {"init_checkpoint": None, "backbone_checkpoint": None, "backbone_pretrained": False}


def stored_evaluation(
    task_class: type[Task], path: Path, weights: Weights, entry: Entry | None, options: EvaluationOptions
) -> Evaluation:
    """`Task.evaluation` for `best.pt` and `last.pt` of a task: evaluated as in training, with its report.json alone.

    Raises:
        UserError: options that only another task takes, or a checkpoint or data that cannot be used.
    """
    others = ("model", "input_size", "crop_pct", "interpolation", "sets", "tta")
    given = [key for key in others if getattr(options, key) not in (None, False)]
    if given:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        task = weights.meta["task"]
        raise UserError(f"{flags} cannot be used with a checkpoint of the task {task}, whose configuration says it")
    config = _stored_config(task_class.config_class, path, options)
    task = task_class(config)
    meta = task.meta()
    changed = [key for key in meta if key != "ddfnet" and meta[key] != weights.meta.get(key)]
    if changed:
        raise CheckpointError(
            f"{path} was trained on other data ({', '.join(changed)} differ): give such data as --data"
        )
    network = task.build_model()
    load_weights(network, weights, source=path, name=config.model.name)
    return Evaluation(
        network,
        model=config.model.name,
        precision=config.train.precision if options.precision == "auto" else options.precision,
        batch_size=config.eval.batch_size or config.train.device_batch_size,
        channels_last=config.train.channels_last,
        facts={"config": config.model_dump(mode="json")},
        sets=[EvaluationSet("", config.data.root, task.val_images, task.eval_batches, task.evaluator)],
    )


def _stored_config(schema: type[Config], path: Path, options: EvaluationOptions) -> Config:
    """The configuration of the training run, with the data and sizes of this evaluation."""
    values: Any = None if path.suffix == ".safetensors" else read_checkpoint(path).get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold the configuration of its run: give best.pt or last.pt")
    if options.data is not None:
        values["data"]["root"] = str(options.data)
    values["data"]["workers"] = options.workers if options.workers == "auto" else int(options.workers)
    values["run"]["dir"] = None
    if options.batch_size is not None:
        values["eval"]["batch_size"] = options.batch_size
    values["model"].update({key: value for key, value in _STARTS.items() if key in values["model"]})
    return check(schema, values)
