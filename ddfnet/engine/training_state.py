"""All that changes while a run trains: written to `last.pt`, and read back so that it continues bit for bit."""

import math
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.engine.batch_norm import averaged_statistics, load_statistics, local_statistics
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.ema import Ema
from ddfnet.engine.pacing import Plateau
from ddfnet.engine.resumable import images_of, read_resumable
from ddfnet.engine.resumed_optimizer import load_optimizer
from ddfnet.engine.run_checkpoints import LAST, resumable
from ddfnet.optim import build_optimizer
from ddfnet.tasks import Config, Task
from ddfnet.utils.errors import CheckpointError, ConfigError, DamagedCheckpointError, did_you_mean


class TrainingState:
    """Weights, EMA weights, optimizer, loss scaler, position and best result of one run.

    Random numbers need no state: they are keyed by the step.

    Args:
        config: the run.
        task: names the data in a checkpoint, and which result is better.
        model: on its device.
        lr: peak learning rate.
        distributed: this process.

    Attributes:
        step: optimizer steps done.
        best: value of the metric that ranks, and the step it was reached at (None: not yet).
        ranking: value and step of the best evaluations, best first, as many as are kept.
        data_offset: steps by which the data is ahead: those of batches that a rollback has left out.
        non_finite: steps that were skipped, or rollbacks.
        rollback: the last step from which the run went back ("failed") and where to ("to"); -1: none.
        resumed_from, resumed_meta, optimizer_note, damaged: see `resume`.
        plateau: state of the plateau schedule, see `ddfnet.engine.pacing`.
        evaluation_due: an epoch has ended and was saved, but not evaluated.
        loss_sum, loss_count: losses of this process since the last log line.
    """

    def __init__(self, config: Config, task: Task, model: nn.Module, lr: float, distributed: Distributed) -> None:
        self.config, self.task, self.model, self.distributed = config, task, model, distributed
        self.optimizer = build_optimizer(model, config.optim, lr)
        self.scaler = torch.amp.GradScaler(distributed.device.type, enabled=config.train.precision == "fp16")
        ema = config.train.ema
        self.ema = None if ema is None else Ema(model, decay=ema.decay, use_warmup=ema.warmup)
        self.step = 0
        self.metric, self.lower_is_better = _ranking_metric(config, task)
        self.best = self._no_best()
        self.ranking: list[tuple[float, int]] = []
        self.data_offset = self.non_finite = 0
        self.rollback = {"failed": -1, "to": -1}
        self.resumed_from: Path | None = None
        self.resumed_meta: dict[str, Any] = {}
        self.optimizer_note: str | None = None
        self.damaged: list[tuple[Path, DamagedCheckpointError]] = []
        self.evaluation_due = False
        self.plateau: Plateau = {}
        self.loss_sum = torch.zeros((), device=distributed.device)
        self.loss_count = 0

    def _no_best(self) -> dict[str, Any]:
        return {"value": math.inf if self.lower_is_better else -math.inf, "step": None}

    def rank(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics are among the best so far, as many as are kept; notes it. A network that gives NaN,
        which its loss tells, is never among them."""
        ranking = self._ranking_with(metrics)
        if not ranking:
            return False
        self.ranking = ranking
        self.best = {"value": ranking[0][0], "step": ranking[0][1]}
        return any(step == self.step for _, step in ranking)

    def leads(self, metrics: dict[str, float]) -> bool:
        """Whether these metrics are the best so far; notes nothing."""
        ranking = self._ranking_with(metrics)
        return bool(ranking) and ranking[0][1] == self.step

    def _ranking_with(self, metrics: dict[str, float]) -> list[tuple[float, int]]:
        """`ranking` with these metrics in their place, if they are good enough; empty for those that have none."""
        value = metrics[self.metric]
        if not (math.isfinite(value) and math.isfinite(metrics.get("loss", 0.0))):
            return []
        entries = [entry for entry in self.ranking if entry[1] != self.step]
        entries.append((value, self.step))
        entries.sort(key=lambda entry: entry[0] if self.lower_is_better else -entry[0])  # stable: the earlier one leads
        return entries[: self.config.checkpoints.best]

    def snapshot(self, epoch: float, metrics: dict[str, float]) -> dict[str, Any]:
        """All that `last.pt` holds, copied to the memory of the CPU: what training does next does not change it.

        All processes call this; those that are not the main one get nothing.
        """
        models = {"model": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}
        weights: dict[str, Any] = {"ema": None}
        local = {"loss_sum": self.distributed.gather(self.loss_sum).to("cpu", copy=True)}
        for key, model in models.items():  # each process has its own running statistics
            local[key] = self.distributed.gather(local_statistics(model).to(self.distributed.device)).cpu()
            with averaged_statistics(model, self.distributed):
                if self.distributed.is_main:
                    weights[key] = _copied(dict(model.state_dict()))
        if not self.distributed.is_main:
            return {}
        how = {"precision": self.config.train.precision, "channels_last": self.config.train.channels_last}
        progress = {**how, "step": self.step, "epoch": epoch, "metrics": metrics}
        return {
            "meta": {**self.task.meta(), **progress},
            "config": self.config.model_dump(mode="json"),
            **weights,
            "step": self.step,
            "best": dict(self.best),
            "metric": self.metric,
            "ranking": list(self.ranking),
            "optimizer": _copied(self.optimizer.state_dict()),
            "scaler": dict(self.scaler.state_dict()),
            "evaluation_due": self.evaluation_due,
            "plateau": dict(self.plateau),
            "images": images_of(self.task),
            "class_hashes": self.task.class_hashes,
            "loss_count": self.loss_count,
            "data_offset": self.data_offset,
            "non_finite": self.non_finite,
            "rollback": dict(self.rollback),
            "local": local,
        }

    def resume(self, folder: Path, *, last_step: int, before: int | None = None) -> dict[str, Tensor] | None:
        """Loads the newest whole checkpoint of a run folder, if there is any.

        Sets `resumed_from` to its path, `resumed_meta` to its meta, `optimizer_note` where its state of the optimizer
        is of no use, and `damaged` to the files that were passed over, with what is wrong with them.

        Args:
            last_step: of the run.
            before: only checkpoints of earlier steps are considered.

        Returns:
            What each process keeps for itself, for `load_local`.

        Raises:
            CheckpointError: none is whole, or they are of another run, or not the same for all processes.
        """
        payload, self.resumed_from, self.damaged = None, None, []
        for path in resumable(folder):
            try:
                payload = read_resumable(path, self.config, self.task, last_step=last_step)
                if before is not None and payload["step"] >= before:
                    payload = None
                    continue
                self._load(path, payload)
                self.resumed_from = path
                break
            except DamagedCheckpointError as error:
                payload = None
                self.damaged.append((path, error))
        self._check_same_everywhere(self.resumed_from or folder / LAST, payload)
        if payload is None:
            if self.damaged:
                raise self.damaged[0][1]
            return None
        self.step, self.best, self.evaluation_due = payload["step"], payload["best"], payload["evaluation_due"]
        self.loss_count, self.resumed_meta = payload["loss_count"], payload["meta"]
        self.plateau = payload.get("plateau") or {}
        self.data_offset, self.non_finite = payload.get("data_offset", 0), payload.get("non_finite", 0)
        self.rollback = payload.get("rollback") or {"failed": -1, "to": -1}
        self.ranking = list(payload.get("ranking") or [])
        if not self.ranking and self.best["step"] is not None:
            self.ranking = [(self.best["value"], self.best["step"])]
        if (payload.get("metric") or self.task.best_metric) != self.metric:  # run.allow_changes
            self.best, self.ranking = {**self._no_best(), "since": self.step}, []
            self.plateau = {key: value for key, value in self.plateau.items() if key == "falls"}
        return payload["local"]

    def _load(self, path: Path, payload: dict[str, Any]) -> None:
        """Weights, optimizer and scaler of a checkpoint. DamagedCheckpointError where they do not fit, or with
        `run.allow_changes`, with which the configuration may be another one, CheckpointError."""
        unfit = CheckpointError if self.config.run.allow_changes else DamagedCheckpointError
        try:
            self.model.load_state_dict(payload["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(payload["ema"] or payload["model"])
            then = payload["config"].get("optim")
            self.optimizer_note = load_optimizer(
                self.optimizer, payload["optimizer"], self.model, self.config.optim, then
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" ...")
            fix = "start a new run with run.dir=NEW_FOLDER"
            raise unfit(f"{path} is of another model or optimizer than the config; {fix} ({reason})") from None
        self._check_local(path, payload["local"])
        if self.scaler.is_enabled() and payload["scaler"]:
            try:
                self.scaler.load_state_dict(payload["scaler"])
            except (RuntimeError, KeyError, TypeError) as error:
                raise unfit(f"{path}: the state of the loss scaler is damaged ({error!r})") from None

    def load_local(self, local: dict[str, Tensor]) -> bool:
        """Gives this process its own statistics back; False if there were another number of processes: then their
        losses are averaged, and the statistics stay the mean that `last.pt` holds."""
        rank = self.distributed.rank
        if len(local["model"]) != self.distributed.world_size:
            self.loss_sum.copy_(local["loss_sum"].mean())
            return False
        self.loss_sum.copy_(local["loss_sum"][rank])
        load_statistics(self.model, local["model"][rank])
        if self.ema is not None and "ema" in local:
            load_statistics(self.ema.module, local["ema"][rank])
        return True

    def _check_local(self, path: Path, local: dict[str, Tensor]) -> None:
        """That statistics of single processes are of this model."""
        models = {"model": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}
        for key, model in models.items():
            have, need = local[key].shape[1] if key in local else None, local_statistics(model).numel()
            if have not in (None, need):
                raise DamagedCheckpointError(
                    f"{path} is damaged or of another model: local.{key} has {have} statistics a process, the model "
                    f"{need}"
                )

    def _check_same_everywhere(self, path: Path, payload: dict[str, Any] | None) -> None:
        step = torch.tensor(-1 if payload is None else payload["step"], device=self.distributed.device)
        steps = self.distributed.gather(step).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes do not see the same {path} (steps {steps}; -1: none): "
                "put run.dir on a disk that all machines share"
            )


def _ranking_metric(config: Config, task: Task) -> tuple[str, bool]:
    """The metric that ranks checkpoints, and whether lower is better. ConfigError where the task has no such metric."""
    known = {task.best_metric: task.lower_is_better, **dict(task.other_metrics)}
    metric = config.checkpoints.metric or task.best_metric
    if metric not in known:
        hint = did_you_mean(metric, known, otherwise=f"this task has {', '.join(known)}")
        raise ConfigError(f"checkpoints.metric={metric} is no metric of {config.task} that can rank: {hint}")
    return metric, known[metric]


def _copied(value: Any) -> Any:
    """Tensors, in dictionaries and lists, as copies in the memory of the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
