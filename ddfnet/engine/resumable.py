"""What a checkpoint must hold so that training can resume from it: checked before any of it is used."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ddfnet.checkpoint import FORMAT, read_checkpoint
from ddfnet.data.class_hashes import differing_classes
from ddfnet.engine.run_checkpoints import BEST, HISTORY
from ddfnet.tasks import Config, Task
from ddfnet.utils.errors import CheckpointError, DamagedCheckpointError

_Count = Annotated[int, Field(ge=0)]
_MOST_FAULTS = 3  # in a message
_MOST_NAMES = 5


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class _Best(_Checked):
    value: float
    step: _Count | None


class _Optimizer(_Checked):
    state: dict[int, Any]
    param_groups: Annotated[list[dict[str, Any]], Field(min_length=1)]


class ResumableCheckpoint(_Checked):
    """The keys of `last.pt`; see `TrainingState.save`. Further ones are allowed: later versions may add some."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    meta: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    step: _Count
    best: _Best
    optimizer: _Optimizer
    scaler: dict[str, Any]
    evaluation_due: bool
    images: dict[Literal["train", "val"], _Count]
    loss_count: _Count
    plateau: dict[str, float | int] = {}
    local: dict[str, Tensor]
    metric: str | None = None  # that ranks; this and the following: since there are several best checkpoints
    ranking: list[tuple[float, int]] = []
    data_offset: _Count = 0
    non_finite: _Count = 0
    rollback: dict[Literal["failed", "to"], int] = {}

    @model_validator(mode="after")
    def _local_has_a_row_for_each_process(self) -> "ResumableCheckpoint":
        shapes = {key: tuple(tensor.shape) for key, tensor in self.local.items()}
        if {"loss_sum", "model"} - shapes.keys():
            raise ValueError(f"local must hold loss_sum and model, it holds {sorted(shapes)}")
        rows = len(self.local["loss_sum"]) if len(shapes["loss_sum"]) == 1 else 0
        if not rows or any(len(shape) != 2 or shape[0] != rows for key, shape in shapes.items() if key != "loss_sum"):
            raise ValueError(f"local must have a row for each process, its shapes are {shapes}")
        return self


def faults_of_resumable(payload: dict[str, Any]) -> list[str]:
    """What keeps training from resuming from a checkpoint that was read; empty where nothing does."""
    try:
        ResumableCheckpoint.model_validate(payload)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'it'}: {_sentence(fault)}" for fault in error.errors()]
        more = len(faults) - _MOST_FAULTS
        return faults[:_MOST_FAULTS] + ([f"and {more} more"] if more > 0 else [])
    return []


def _sentence(fault: Any) -> str:
    if fault["type"] == "missing":
        return "missing"
    text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be").partition(" or instance")[0]
    value = fault["input"]
    return f"{text[:1].lower()}{text[1:]}" + (f", got {value!r}" if isinstance(value, int | float | str) else "")


def read_resumable(path: Path, config: Config, task: Task, *, last_step: int) -> dict[str, Any]:
    """A training checkpoint of this task, these data and a run of `last_step` steps.

    Raises:
        DamagedCheckpointError: it cannot be read, or lacks what training needs.
        CheckpointError: it is of another run.
    """
    folder = path.parent.parent if path.parent.name == HISTORY else path.parent
    fix = f"start a new run with run.dir=NEW_FOLDER, or from it: model.init_checkpoint={folder / BEST}"
    try:
        payload = read_checkpoint(path)
    except CheckpointError as error:
        raise DamagedCheckpointError(f"{error}; or {fix}") from None
    faults = faults_of_resumable(payload)
    if faults:
        text = f"{path} is no checkpoint that training can resume from ({'; '.join(faults)}): {fix}"
        raise DamagedCheckpointError(text)
    if config.run.allow_changes:
        return payload
    own = {**task.meta(), "images": images_of(task)}
    saved = {**task.present_meta(payload["meta"]), "images": payload["images"]}
    changed = [f"{key} differ" for key in own if key != "ddfnet" and own[key] != saved.get(key)]
    changed = changed or _changed_images(payload.get("class_hashes") or {}, task)
    if changed:
        raise CheckpointError(
            f"{path} was trained on other data or another model ({', '.join(changed)}): {fix}, "
            "or accept it with run.allow_changes=true"
        )
    if payload["step"] > last_step:
        raise DamagedCheckpointError(
            f"{path} is at step {payload['step']}, beyond the end of the run at {last_step}: it is damaged, or the run "
            "was longer; start a new one with run.dir=NEW_FOLDER"
        )
    return payload


def images_of(task: Task) -> dict[str, int]:
    """Number of training and validation images."""
    return {"train": task.train_images, "val": task.val_images}


def _changed_images(saved: dict[str, dict[str, str]], task: Task) -> list[str]:
    """The classes whose images are not those that the run began with, the first of each split in words."""
    changed = []
    for split, now in task.class_hashes.items():
        names = differing_classes(saved.get(split, now), now)
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            changed.append(f"names or sizes of the {split} images differ in {', '.join(names[:_MOST_NAMES])}{more}")
    return changed
