"""What a checkpoint must hold so that training can resume from it: checked before any of it is used."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ddfnet.checkpoint import FORMAT

_Count = Annotated[int, Field(ge=0)]
_MOST_FAULTS = 3


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
