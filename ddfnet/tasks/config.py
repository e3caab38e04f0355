"""Sections of the configuration that all tasks share; others stand beside their components, as in `ddfnet.optim`."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ddfnet.config import Fault, Fraction, Positive, Section
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.loader import LoaderConfig
from ddfnet.optim import OptimConfig, ScheduleConfig
from ddfnet.tasks.checkpoints import CheckpointsConfig
from ddfnet.utils.text import plural

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class RunConfig(Section):
    dir: str | None = None
    """Run folder: checkpoints, logs, resolved config. Default: runs/<name of the config file>.
    A folder that already holds a checkpoint to resume from is resumed."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of weights, data order and augmentation."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """auto: cuda where there is one, else cpu. mps: the GPU of a Mac, in one process."""
    log_every: Positive = 50
    """Steps between two log lines; loss and rates are averaged over them."""
    save_every: Positive | None = None
    """Steps between two `last.pt`, besides those at the end of each epoch. null: only those."""
    trackers: list[TrackerName] | None = None
    """Where the log goes besides metrics.jsonl: tensorboard (event files in the run folder), wandb, trackio, mlflow,
    each by its own package and as its environment variables say. null: [tensorboard]."""
    tensorboard: bool | None = None
    """Short for run.trackers: true adds tensorboard, false leaves none where run.trackers is null."""
    timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds without any progress of a process after which the run ends and names it. Where one waits for another,
    that one is meant."""
    allow_changes: bool = False
    """Resume even though the config differs from the one the run folder was started with."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "output": "dir",
        "output_dir": "dir",
        "work_dir": "dir",
        "log_dir": "dir",
        "save_dir": "dir",
        "log_interval": "log_every",
        "logging_steps": "log_every",
        "save_steps": "save_every",
        "gpu": "device",
        "wandb": "trackers",
        "report_to": "trackers",
    }

    def faults(self) -> Iterator[Fault]:
        if self.tensorboard is False and "tensorboard" in (self.trackers or ()):
            yield Fault(
                {"run.tensorboard": False, "run.trackers": self.trackers},
                "contradict: leave tensorboard out of the list, or set run.tensorboard=null",
            )

    @property
    def used_trackers(self) -> list[TrackerName]:
        """The trackers of the run, each once."""
        default: list[TrackerName] = [] if self.tensorboard is False else ["tensorboard"]
        names = default if self.trackers is None else self.trackers
        return list(dict.fromkeys([*names, "tensorboard"] if self.tensorboard else names))


_STEPS = r"^\d+:\d+$"


class ProfileConfig(Section):
    steps: Annotated[str, Field(json_schema_extra={"pattern": _STEPS})] | None = None
    """FIRST:END, e.g. 10:15 for the steps 10 to 14, counted from 0: their Chrome trace, and a table of the time by
    cause (data, host, kernels, communication), in the run folder. A dry run takes its second step. null: none."""

    def faults(self) -> Iterator[Fault]:
        if self.steps is not None and not re.match(_STEPS, self.steps):
            yield Fault({"profile.steps": self.steps}, "must be FIRST:END, e.g. 10:15")
        elif self.range is not None and self.range[0] >= self.range[1]:
            yield Fault({"profile.steps": self.steps}, "holds no step: END of FIRST:END must be above FIRST, as 10:15")

    @property
    def range(self) -> tuple[int, int] | None:
        """(first, end) as in Python."""
        if self.steps is None:
            return None
        first, end = map(int, self.steps.split(":"))
        return first, end


class ModelSection(Section):
    name: str
    """Name of the network."""
    init_checkpoint: str | None = None
    """Start from these weights."""

    no_start: ClassVar[dict[str, Any]] = {"init_checkpoint": None}
    """Values of the keys that name weights to start from, where a checkpoint has the weights."""

    @property
    def start(self) -> str | None:
        """Where the weights to start from are, for `ddfnet.models.weights.read_source`; None: a random start."""
        return self.init_checkpoint


class DataSection(LoaderConfig):
    root: str
    """Folder with the data."""
    max_pixels: Positive = MAX_PIXELS
    """Width times height of the largest image that is read; a larger one counts as one that cannot be decoded. Of the
    size alone: files that unpack to far more than they should are met by it, too."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        **LoaderConfig.called_elsewhere,
        "path": "root",
        "data_dir": "root",
        "data_path": "root",
        "dataset": "root",
    }


class FlipConfig(Section):
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""


class EmaConfig(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Weight of the old average at each step."""
    warmup: bool = True
    """Ramp the decay up from 0, so that early averages are not dominated by the random start."""


class TrainConfig(Section):
    epochs: Positive
    batch_size: Positive
    """Images per optimizer step, over all processes and micro-batches."""
    device_batch_size: Positive
    """Images per process and micro-batch; batch_size / (processes * device_batch_size) micro-batches accumulate."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: automatic mixed precision; fp16 scales the loss."""
    channels_last: bool = True
    """Memory format of the model and its input. Left out, it is false on a CPU for the few networks that PyTorch cannot
    train so there (strided 1x1 convolutions of images, as in RepVGG and FastViT); the log says so."""
    compile: bool = False
    """torch.compile the model, in the first training step: about a minute for a ResNet50 on an H200, longer for a DDF.
    Every start pays it, unless PyTorch's cache on disk has the same model and versions."""
    sync_bn: bool = False
    """Batch statistics over all processes. false: per process, running statistics averaged before evaluation."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """What a loss or gradient does that is not finite. stop: the run ends. skip: the step changes nothing; the host
    waits for the loss of each step, to know. rollback: back to the checkpoint before, and from there with the batches
    that follow the failed one."""
    max_non_finite: Annotated[int, Field(ge=0)] = 10
    """Skipped steps, or rollbacks, of a run; one more ends it."""
    deterministic: bool = False
    """Algorithms of PyTorch and cuDNN alone that give the same bits each time; slower on GPUs."""
    ema: EmaConfig | None = None
    """Keep EMA weights and evaluate them too; null: off."""
    early_stop: Positive | None = None
    """Stop when the run's metric (top-1, say) has not been better for so many epochs. null: train all epochs."""
    grad_checkpointing: bool = False
    """Keep only the activations between blocks, and compute the others again in the backward pass: less memory,
    one more forward pass, the same gradients. Of networks that have it (timm's set_grad_checkpointing)."""
    freeze: list[str] | Literal["all_but_head"] | None = None
    """Parts that do not train: names of modules or parameters, also with * ? [0-5], e.g. [conv1, bn1, layer1]. Batch
    norms without a part that trains keep their statistics. all_but_head: all but the classifier (linear probing)."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "num_epochs": "epochs",
        "max_epochs": "epochs",
        "bs": "batch_size",
        "amp": "precision",
        "fp16": "precision",
        "bf16": "precision",
        "mixed_precision": "precision",
        "micro_batch_size": "device_batch_size",
        "model_ema": "ema",
        "model_ema_decay": "ema.decay",
        "torchcompile": "compile",
    }

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.non_finite == "stop":
            yield "max_non_finite", "train.non_finite is stop"


class EvalConfig(Section):
    every: Positive = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: Positive | None = None
    """Images per process; null: train.device_batch_size."""


class Config(Section):
    """One run, as the engine sees it; a task's own schema narrows `task`, `model` and `data` and adds to them."""

    task: str
    run: RunConfig = RunConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    profile: ProfileConfig = ProfileConfig()
    model: ModelSection
    data: DataSection
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()

    def faults(self) -> Iterator[Fault]:
        warmup, epochs = self.schedule.warmup_epochs, self.train.epochs
        if warmup > epochs:
            yield Fault(
                {"schedule.warmup_epochs": warmup, "train.epochs": epochs},
                "contradict: lower the first or raise the second, which counts the warm-up",
            )

    def remarks(self) -> list[str]:
        """What may not be meant, a line each, apart from keys without effect."""
        schedule, every, epochs = self.schedule, self.eval.every, self.train.epochs
        counted = sum(epoch >= schedule.warmup_epochs for epoch in {*range(every, epochs, every), epochs})
        # The first evaluation is the best so far; after the last one there is no step.
        if schedule.name != "plateau" or schedule.patience + 2 < counted:
            return []
        after = " after the warm-up" if schedule.warmup_epochs else ""
        return [
            f"note: the learning rate stays constant{after}: schedule.name=plateau waits for more than "
            f"schedule.patience={schedule.patience} evaluations without a better one, and the run has {counted}{after}"
        ]

    def without_effect(self) -> Iterator[tuple[str, str]]:
        train, evaluations = self.train, -(-self.train.epochs // self.eval.every)
        if train.early_stop is not None and train.early_stop >= train.epochs:
            yield "train.early_stop", f"the run has {plural(train.epochs, 'epoch')}"
        elif train.early_stop is not None and evaluations == 1:
            yield "train.early_stop", f"the run has one evaluation (eval.every is {self.eval.every})"
        every = self.checkpoints.every_epochs
        if every is not None and every > train.epochs:
            yield "checkpoints.every_epochs", f"the run has {plural(train.epochs, 'epoch')}"
        if train.freeze == "all_but_head":
            yield from self._without_effect_on_the_head()
        schedule, end = self.schedule, f"is after the end, {plural(self.train.epochs, 'epoch')}"
        before = schedule.warmup_epochs if schedule.warmup_prefix else 0
        if before:
            end = f"from the end of the warm-up (schedule.warmup_prefix), epoch {before:g}, {end}"
        late = [f"{epoch:g}" for epoch in schedule.milestones if before + epoch >= self.train.epochs]
        if late:
            yield "schedule.milestones", f"{' and '.join(late)} {end}"
        if schedule.decay_epochs is not None and before + schedule.decay_epochs >= self.train.epochs:
            yield "schedule.decay_epochs", f"{schedule.decay_epochs:g} {end}"

    def _without_effect_on_the_head(self) -> Iterator[tuple[str, str]]:
        """Of a run in which the classifier alone trains."""
        alone = "train.freeze=all_but_head trains the classifier alone"
        yield "optim.kwargs.layer_decay", f"{alone}, the last layer, whose rate it leaves as it is"
        if self.optim.clip_grad is not None and self.optim.clip_mode == "agc":
            yield "optim.clip_grad", f"{alone}, which optim.clip_mode=agc leaves as it is"
        if self.train.grad_checkpointing:
            yield "train.grad_checkpointing", f"{alone}, and what is before it has no gradients"
        if self.train.sync_bn:
            yield "train.sync_bn", f"{alone}: batch norms keep their statistics"
