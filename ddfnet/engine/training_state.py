"""All that changes while a run trains: written to `last.pt`, and read back so that it continues bit for bit."""

import math
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ddfnet.checkpoint import read_checkpoint, save_checkpoint, save_safetensors
from ddfnet.data.class_hashes import differing_classes
from ddfnet.engine.batch_norm import averaged_statistics, load_statistics, local_statistics
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.pacing import Plateau
from ddfnet.engine.resumable import faults_of_resumable
from ddfnet.optim import build_optimizer
from ddfnet.tasks import Config, Task
from ddfnet.utils.errors import CheckpointError

_MOST_NAMES = 5  # in a message

# What an optimizer's group holds of the configuration; some keep state of their own there, too.
_SETTINGS = {"weight_decay", "momentum", "nesterov", "betas", "eps", "alpha"}


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
        best: value of the task's best metric and the step it was reached at (None: not yet).
        plateau: state of the plateau schedule, see `ddfnet.engine.pacing`.
        evaluation_due: an epoch has ended and was saved, but not evaluated.
        loss_sum, loss_count: losses of this process since the last log line.
    """

    def __init__(self, config: Config, task: Task, model: nn.Module, lr: float, distributed: Distributed) -> None:
        self.config, self.task, self.model, self.distributed = config, task, model, distributed
        self.optimizer = build_optimizer(model, config.optim, lr)
        self.scaler = torch.amp.GradScaler(distributed.device.type, enabled=config.train.precision == "fp16")
        ema = config.train.ema
        self.ema = None if ema is None else ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup)
        self.step = 0
        self.best: dict[str, Any] = {"value": math.inf if task.lower_is_better else -math.inf, "step": None}
        self.evaluation_due = False
        self.plateau: Plateau = {}
        self.loss_sum = torch.zeros((), device=distributed.device)
        self.loss_count = 0

    def is_better(self, metrics: dict[str, float]) -> bool:
        """Whether these are the best metrics so far; notes it. A network that gives NaN is never the best."""
        value, best = metrics[self.task.best_metric], self.best["value"]
        better = value < best if self.task.lower_is_better else value > best
        if better and all(map(math.isfinite, metrics.values())):
            self.best = {"value": value, "step": self.step}
            return True
        return False

    def save(self, folder: Path, epoch: float, metrics: dict[str, float], *, best: bool) -> None:
        """Writes `last.pt`; with `best` also `best.pt` and `best.safetensors`, the weights alone.

        All processes call this, the main one writes.
        """
        models = {"model": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}
        weights: dict[str, Any] = {"ema": None}
        local = {"loss_sum": self.distributed.gather(self.loss_sum).cpu()}
        for key, model in models.items():  # each process has its own running statistics
            local[key] = self.distributed.gather(local_statistics(model).to(self.distributed.device)).cpu()
            with averaged_statistics(model, self.distributed):
                if self.distributed.is_main:
                    weights[key] = {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}
        if not self.distributed.is_main:
            return
        how = {"precision": self.config.train.precision, "channels_last": self.config.train.channels_last}
        progress = {**how, "step": self.step, "epoch": epoch, "metrics": metrics}
        about = {"meta": {**self.task.meta(), **progress}, "config": self.config.model_dump(mode="json")}
        if best:
            save_checkpoint(folder / "best.pt", {**about, **weights})
            kind = "model" if weights["ema"] is None else "ema"
            save_safetensors(folder / "best.safetensors", weights[kind], about["meta"], kind=kind)
        state = {
            "step": self.step,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "evaluation_due": self.evaluation_due,
            "plateau": self.plateau,
            "images": self._images(),
            "class_hashes": self.task.class_hashes,
            "loss_count": self.loss_count,
            "local": local,
        }
        save_checkpoint(folder / "last.pt", {**about, **weights, **state})

    def resume(self, path: Path) -> dict[str, Tensor] | None:
        """Loads `last.pt` if there is one; returns what each process keeps for itself, for `load_local`.

        Raises:
            CheckpointError: it is damaged, of another run, or not the same for all processes.
        """
        payload = self._read(path) if path.exists() else None
        self._check_same_everywhere(path, payload)
        if payload is None:
            return None
        try:
            self.model.load_state_dict(payload["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(payload["ema"] or payload["model"])
            configured = [{key: g[key] for key in _SETTINGS & g.keys()} for g in self.optimizer.param_groups]
            self.optimizer.load_state_dict(payload["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path} is of another model or optimizer than the config: {reason}") from None
        self._check_local(path, payload["local"])
        for group, settings in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(settings)  # the state continues, with the settings of the config (run.allow_changes)
        if self.scaler.is_enabled() and payload["scaler"]:
            try:
                self.scaler.load_state_dict(payload["scaler"])
            except (RuntimeError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path}: the state of the loss scaler is damaged ({error!r})") from None
        self.step, self.best, self.evaluation_due = payload["step"], payload["best"], payload["evaluation_due"]
        self.loss_count, self.plateau = payload["loss_count"], payload.get("plateau") or {}
        return payload["local"]

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

    def _images(self) -> dict[str, int]:
        return {"train": self.task.train_images, "val": self.task.val_images}

    def _read(self, path: Path) -> dict[str, Any]:
        """A training checkpoint of this task and these data."""
        fix = f"start a new run with run.dir=NEW_FOLDER, or from it: model.init_checkpoint={path.parent / 'best.pt'}"
        try:
            payload = read_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or {fix}") from None
        faults = faults_of_resumable(payload)
        if faults:
            raise CheckpointError(f"{path} is no checkpoint that training can resume from ({'; '.join(faults)}): {fix}")
        if not self.config.run.allow_changes:
            own = {**self.task.meta(), "images": self._images()}
            saved = {**self.task.present_meta(payload["meta"]), "images": payload["images"]}
            changed = [f"{key} differ" for key in own if key != "ddfnet" and own[key] != saved.get(key)]
            changed = changed or self._changed_images(payload.get("class_hashes") or {})
            if changed:
                raise CheckpointError(
                    f"{path} was trained on other data or another model ({', '.join(changed)}): {fix}, "
                    "or accept it with run.allow_changes=true"
                )
        return payload

    def _changed_images(self, saved: dict[str, dict[str, str]]) -> list[str]:
        """The classes whose images are not those that the run began with, the first of each split in words."""
        changed = []
        for split, now in self.task.class_hashes.items():
            names = differing_classes(saved.get(split, now), now)
            if names:
                more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
                changed.append(f"names or sizes of the {split} images differ in {', '.join(names[:_MOST_NAMES])}{more}")
        return changed

    def _check_local(self, path: Path, local: dict[str, Tensor]) -> None:
        """That statistics of single processes are of this model."""
        models = {"model": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}
        for key, model in models.items():
            have, need = local[key].shape[1] if key in local else None, local_statistics(model).numel()
            if have not in (None, need):
                raise CheckpointError(
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
