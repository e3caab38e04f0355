"""Contract of task and engine: data, loss, evaluator. It knows nothing of processes, precision or checkpoints."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ddfnet.config.reader import KeyPath
from ddfnet.data.batches import Batch
from ddfnet.data.loader import Finish, LoaderConfig, eval_batches, train_batches
from ddfnet.data.sampler import Request, TrainSampler, epoch_order
from ddfnet.tasks.config import Config
from ddfnet.tasks.evaluation import stored_evaluation
from ddfnet.tasks.plan import RunPlan

C = TypeVar("C", bound=Config)
S = TypeVar("S", bound="Named")


class Evaluator(Protocol):
    """Accumulates over the batches of one process; the states of all processes make the metrics."""

    def update(self, model: nn.Module, batch: Batch) -> None: ...

    def state(self) -> Any:
        """The part of this process, on the CPU: sums, counts or records, whatever `compute` needs."""

    def compute(self, states: Sequence[Any]) -> dict[str, float]:
        """Metrics of the whole set from the states of all processes; `n` is the number of images counted."""


class Named(Protocol):
    """Samples of a task: an `ImageSource`, for one."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...


class Task(ABC, Generic[C, S]):
    """One kind of training: what differs between tasks, and the batch streams that all share."""

    config_class: type[C]
    """The configuration of this kind of training."""
    best_metric: str
    """Key of the evaluator's result that ranks checkpoints."""
    lower_is_better: bool = False
    """Whether the best checkpoint is the one of the lowest `best_metric`."""
    other_metrics: Sequence[tuple[str, bool]] = ()
    """Further metrics that can rank checkpoints: name, and whether lower is better."""
    percentages: Sequence[str] = ()
    """Those of the evaluator's results that are in percent."""
    fixed_input_size: bool = True
    """Whether all training batches have one shape, so that it pays to search for the fastest convolutions."""
    train_shape: tuple[int, int, int] | None = None
    """Channels, height and width of a training image, where all have the same."""
    repeats: int = 1
    """Times that an epoch shows each of its samples."""
    balance: np.ndarray | None = None
    """Label of each training sample, where an epoch is to show all classes equally often."""
    notes: list[str]
    """What a user should know of this run and its data, one line each."""
    train_in_process: bool = False
    """Set by `train_reader` where reading a batch takes less than handing it over: no workers are started then, with
    `data.workers: auto`."""
    eval_in_process: bool = False
    """The same of `eval_reader`."""
    _val: S

    def __init__(self, config: C) -> None:
        self.config = config
        self.notes = []

    @cached_property
    @abstractmethod
    def _train(self) -> S: ...

    @property
    def train_images(self) -> int:
        return len(self._train)

    @property
    def val_images(self) -> int:
        return len(self._val)

    def samples(self, split: str) -> S:
        """Those of `train` or `val`."""
        return self._train if split == "train" else self._val

    @cached_property
    def class_hashes(self) -> dict[str, dict[str, str]]:
        """By split and class: a hash of its images (`ddfnet.data.class_hashes`). Tasks without classes have none."""
        return {}

    def name_hashes(self) -> dict[str, str]:
        """By split: a hash of the names of its samples, in order, below `data.root`."""
        hashes = {}
        for split, samples in (("train", self._train), ("val", self._val)):
            digest = hashlib.blake2b(digest_size=8)
            for i in range(len(samples)):
                name = os.path.relpath(samples.name(i), self.config.data.root)
                digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            hashes[split] = digest.hexdigest()
        return hashes

    def open_data(self, *, writes: bool = True) -> None:
        """Opens what the readers need besides images, such as caches; the engine does so before it writes anything.

        Args:
            writes: False in a dry run: caches are read, and left as they are.

        Raises:
            UserError: something cannot be had.
        """

    def batch_images(self, batch: Batch) -> int:
        return len(batch["index"])

    def _loader(self, in_process: bool) -> dict[str, Any]:
        options = self.config.data.model_dump(include=set(LoaderConfig.model_fields))
        return {**options, "workers": 0} if in_process and options["workers"] == "auto" else options

    def train_batches(self, plan: RunPlan, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        """This rank's micro-batches from a step to the end of the run, on the device."""
        sampler = TrainSampler(
            length=self.train_images,
            global_batch=self.config.train.batch_size,
            rank=rank,
            world_size=plan.world_size,
            accumulation=plan.accumulation,
            seed=self.config.run.seed,
            start_step=start_step,
            end_step=plan.total_steps,
            repeats=self.repeats,
            labels=self.balance,
        )
        read, finish = self.train_reader(device)
        options = self._loader(self.train_in_process)
        return train_batches(read, sampler, finish, device=device, name=self._train.name, **options)

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        """This rank's validation batches, on the device."""
        read, finish = self.eval_reader(device)
        return eval_batches(
            read,
            self.val_images,
            finish,
            batch_size=self.config.eval.batch_size or self.config.train.device_batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
            name=self._val.name,
            **self._loader(self.eval_in_process),
        )

    def sample_names(self, plan: RunPlan, step: int) -> list[str]:
        """The samples of one optimizer step over all processes, in the order of the global batch."""
        epoch, step_of_epoch = divmod(step, plan.steps_per_epoch)
        batch = self.config.train.batch_size
        order = epoch_order(self.train_images, self.config.run.seed, epoch, self.repeats, self.balance)
        return [self._train.name(i) for i in order[step_of_epoch * batch : (step_of_epoch + 1) * batch, 0].tolist()]

    @classmethod
    def fill_in(cls, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        """Adds values to a configuration of this task, a nested dict that is not checked yet, where it has none, and
        their origins. UserError where they cannot be had."""

    @classmethod
    def describe(cls, config: Any, origins: dict[KeyPath, str]) -> list[str]:
        """Lines on a checked configuration of this task, to be printed at the start of its run."""
        return []

    def present_meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's meta, which an earlier version may have written, as `meta` has it now."""
        return meta

    evaluation = classmethod(stored_evaluation)
    """A checkpoint of this task, ready to be evaluated."""

    @abstractmethod
    def build_model(self) -> nn.Module: ...

    def prepare_start(self, model: nn.Module) -> None:
        """Changes the weights that a new run starts from, in place; those to start from are loaded."""

    @abstractmethod
    def train_reader(self, device: torch.device) -> tuple[Callable[[list[Request]], Batch], Finish]:
        """`read` and `finish` of `ddfnet.data.loader.train_batches`."""

    @abstractmethod
    def eval_reader(self, device: torch.device) -> tuple[Callable[[list[int]], Any], Finish]:
        """`read` and `finish` of `ddfnet.data.loader.eval_batches`."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """`{"loss": scalar, ...}` of one micro-batch."""

    def shown(self, batch: Batch, most: int) -> list[tuple[Tensor, str]]:
        """Some images of a batch as the network sees them, for people: (3, H, W) with values in [0, 1], and a caption
        each. A task without any has nothing to show."""
        return []

    def mistakes(self, output: Any, batch: Batch) -> Batch | None:
        """The rows of a validation batch, with `score`, (B,) float: 0 where the network is right, the more the worse
        its mistake is; and what `shown` needs, on the device of the batch. None: the task has no mistakes to show."""
        return None

    @abstractmethod
    def evaluator(self, device: torch.device) -> Evaluator: ...

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """Facts that a checkpoint holds so that its weights can be used without the configuration."""
