"""The training loop. It counts optimizer steps and never looks inside a batch: that is the task's."""

import inspect
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddfnet.checkpoint import FORMAT, read_checkpoint, save_checkpoint, save_safetensors
from ddfnet.engine.batch_norm import averaged_statistics, load_statistics, local_statistics, synchronize_batch_norm
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate import evaluate
from ddfnet.engine.logging import Meter, RunLog
from ddfnet.engine.precision import autocast
from ddfnet.engine.signals import StopSignal
from ddfnet.optim import build_optimizer, clip_gradients, learning_rate
from ddfnet.tasks import Config, Task
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import CheckpointError, NonFiniteLossError, raised_on_one_process
from ddfnet.utils.files import write_atomically

# torch 2.15 renamed the argument and warns of the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_LOCAL_BUFFERS = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
# What an optimizer's group holds of the configuration; some keep state of their own there, too.
_SETTINGS = {"weight_decay", "momentum", "nesterov", "betas", "eps", "alpha"}
_NO_STEP = torch.iinfo(torch.int64).max


class Trainer:
    """Trains one model of one task.

    Args:
        config, plan: the run.
        task: data, loss, evaluator.
        model: random or initial weights, on any device.
        distributed: this process.
        folder: run folder; None keeps nothing (dry run).
        log: console and files.
    """

    def __init__(
        self,
        config: Config,
        plan: RunPlan,
        task: Task,
        model: nn.Module,
        distributed: Distributed,
        *,
        folder: Path | None,
        log: RunLog,
        max_eval_batches: int | None = None,
    ) -> None:
        self.config, self.plan, self.task, self.log = config, plan, task, log
        self.distributed, self.device, self.folder = distributed, distributed.device, folder
        self.max_eval_batches = max_eval_batches
        settings = config.train
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        if settings.sync_bn and distributed.world_size > 1:
            model = synchronize_batch_norm(model, self.device)
        self.model = model.to(self.device, memory_format=memory_format)
        self.optimizer = build_optimizer(self.model, config.optim, plan.lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.ema = None
        if settings.ema is not None:
            self.ema = ModelEmaV3(self.model, decay=settings.ema.decay, use_warmup=settings.ema.warmup)

        self.step = 0
        self.best: dict[str, Any] = {"value": math.inf if task.lower_is_better else -math.inf, "step": None}
        self.evaluation_due = False  # an epoch has ended and was saved, but not evaluated
        self.meter = Meter()
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_count = 0
        self.grad_norm = torch.zeros((), device=self.device)
        self.first_nonfinite_step = torch.tensor(_NO_STEP, device=self.device)
        self.last_finite_loss: float | None = None
        self._saved_step: int | None = None
        local = self._resume()

        self.replica: nn.Module = self.model
        if distributed.world_size > 1:
            # Running statistics stay local (no broadcast in the step); see `averaged_statistics`.
            self.replica = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **_LOCAL_BUFFERS)
        if local is not None:  # after DDP, which copies the statistics of rank 0 to all
            self._load_local(local)
        # Compiled around the replica: names of parameters stay those of the raw model.
        self.forward = torch.compile(self.replica) if settings.compile else self.replica

    # The recipe.

    def fit(self, stop: StopSignal | None = None) -> bool:
        """Trains from the current step to the end of the run.

        Returns:
            True when finished; False when a signal asked to stop: `last.pt` is written and a new start goes on.

        Raises:
            NonFiniteLossError: NaN or infinite loss; names the step, and nothing it touched is saved.
        """
        plan, run = self.plan, self.config.run
        if self.step >= plan.total_steps and not self.evaluation_due:
            return True
        batches = self.task.train_batches(plan, rank=self.distributed.rank, start_step=self.step, device=self.device)
        eval_batches = self.task.eval_batches(
            rank=self.distributed.rank, world_size=self.distributed.world_size, device=self.device
        )
        if self.evaluation_due:
            self._evaluate_epoch(eval_batches)
        self.model.train()
        self.meter.restart()
        while self.step < plan.total_steps:
            self.train_step(batches)
            self.log.tick(self.step)
            epoch_ends = self.step % plan.steps_per_epoch == 0 or self.step == plan.total_steps
            if self.step % run.log_every == 0 or epoch_ends:
                self._log_interval()
            if epoch_ends:
                self.evaluation_due = self._evaluates()
                self.save()  # first: an evaluation that fails must not cost the epoch
                if self.evaluation_due:
                    self._evaluate_epoch(eval_batches)
                self.meter.restart()
            elif run.save_every and self.step % run.save_every == 0:
                self.save()
            if stop is not None and self.step < plan.total_steps and stop.agreed(self.step):
                if self._saved_step != self.step:
                    self.save()
                return False
        return True

    def train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimizer step: accumulate, clip, step, average."""
        config, accumulation = self.config, self.plan.accumulation
        lr = learning_rate(self.step, config.schedule, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

        step_loss = torch.zeros((), device=self.device)
        for micro_batch in range(accumulation):
            waiting = time.perf_counter()
            with raised_on_one_process():
                batch = next(batches)
            self.meter.add(self.task.batch_images(batch), time.perf_counter() - waiting)
            self._seed(micro_batch)
            last = micro_batch == accumulation - 1
            with nullcontext() if last or self.replica is self.model else self.replica.no_sync():
                with autocast(self.device, self.config.train.precision):
                    loss = self.task.loss(self.forward, batch)["loss"]
                self.scaler.scale(loss / accumulation).backward()
            step_loss += loss.detach() / accumulation

        self.scaler.unscale_(self.optimizer)
        self.grad_norm = clip_gradients(self.model, config.optim.clip_grad, config.optim.clip_mode)
        # With fp16 the scaler looks for overflow in the gradients and skips such a step by itself.
        self._note_nonfinite(step_loss if self.scaler.is_enabled() else step_loss + 0 * self.grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        self.loss_sum += step_loss
        self.loss_count += 1

    def save(self, metrics: dict[str, float] | None = None, *, best: bool = False) -> None:
        """Writes `last.pt`, with everything needed to go on bit for bit; with `best` also `best.pt` and
        `best.safetensors`, the weights alone. All processes call this, the main one writes.
        """
        self.check_finite()
        if self.folder is None:
            return
        models = {"model": self.model, **({"ema": self.ema.module} if self.ema is not None else {})}
        weights: dict[str, Any] = {"ema": None}
        # Each process has its own running statistics. Random numbers need no state: they are keyed by the step.
        local = {"loss_sum": self.distributed.gather(self.loss_sum).cpu()}
        for key, model in models.items():
            local[key] = self.distributed.gather(local_statistics(model).to(self.device)).cpu()
            with averaged_statistics(model, self.distributed):
                if self.distributed.is_main:
                    weights[key] = {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}
        self._saved_step = self.step
        if not self.distributed.is_main:
            return
        about = {
            "meta": {
                **self.task.meta(),
                "precision": self.config.train.precision,
                "step": self.step,
                "epoch": self.epoch,
                "metrics": metrics or {},
            },
            "config": self.config.model_dump(mode="json"),
        }
        if best:
            save_checkpoint(self.folder / "best.pt", {**about, **weights})
            kind = "model" if weights["ema"] is None else "ema"
            save_safetensors(self.folder / "best.safetensors", weights[kind], about["meta"], kind=kind)
        state = {
            "step": self.step,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "evaluation_due": self.evaluation_due,
            "images": {"train": self.task.train_images, "val": self.task.val_images},
            "loss_count": self.loss_count,
            "local": local,
        }
        save_checkpoint(self.folder / "last.pt", {**about, **weights, **state})

    # Its parts.

    @property
    def epoch(self) -> float:
        return self.step / self.plan.steps_per_epoch

    def check_finite(self) -> None:
        """Raises NonFiniteLossError if any loss since the last check was not finite (waits for the device)."""
        bad = int(self.distributed.min_(self.first_nonfinite_step.clone()))
        if bad == _NO_STEP:
            return
        lr = learning_rate(bad, self.config.schedule, self.plan)
        report = {
            "step": bad,
            "epoch": bad / self.plan.steps_per_epoch,
            "lr": lr,
            "last_finite_loss": self.last_finite_loss,
            "samples": self.task.sample_names(self.plan, bad),
        }
        where = ""
        if self.folder is not None and self.distributed.is_main:
            path = self.folder / f"nonfinite_step{bad}.json"
            write_atomically(path, lambda file: file.write((json.dumps(report, indent=1) + "\n").encode()))
            where = f" Its samples are listed in {path}."
        raise NonFiniteLossError(
            f"the loss or gradient of step {bad} (epoch {report['epoch']:.2f}, lr {lr:.3g}) is not finite; "
            f"last finite mean loss {self.last_finite_loss}. Nothing was saved since the last checkpoint.{where} "
            "Lower the learning rate, lengthen the warm-up, clip gradients (optim.clip_grad=1) or use bf16"
        )

    def _seed(self, micro_batch: int) -> None:
        # Dropout and stochastic depth draw from the default generators: keyed by the place in the run, they depend
        # neither on the number of processes nor on where the run was resumed.
        place = self.step, micro_batch * self.plan.world_size + self.distributed.rank
        torch.manual_seed(int(np.random.SeedSequence([self.config.run.seed, *place]).generate_state(1, np.uint64)[0]))

    def _note_nonfinite(self, loss: Tensor) -> None:
        # On the device: reading the loss at every step would make the host wait for it.
        step = torch.where(loss.isfinite(), _NO_STEP, self.step)
        self.first_nonfinite_step = torch.minimum(self.first_nonfinite_step, step)

    def _log_interval(self) -> None:
        self.check_finite()
        loss = self.distributed.sum_(self.loss_sum / self.loss_count) / self.distributed.world_size
        images_per_second, data_wait = self.meter.read()
        images_per_second *= self.distributed.world_size
        self.last_finite_loss = loss.item()
        record = {
            "epoch": self.epoch,
            "loss": self.last_finite_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": float(self.grad_norm),
            "images_per_second": images_per_second,
            "data_wait": data_wait,
            "eta_seconds": (self.plan.total_steps - self.step) * self.config.train.batch_size / images_per_second,
        }
        if self.device.type == "cuda":
            record["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.log.train(self.step, self.plan.total_steps, record)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0

    def _evaluates(self) -> bool:
        return self.step == self.plan.total_steps or round(self.epoch) % self.config.eval.every == 0

    def _evaluate_epoch(self, eval_batches: Any) -> None:
        metrics = self._evaluate("val", self.model, eval_batches)
        if self.ema is not None:
            metrics = self._evaluate("val_ema", self.ema.module, eval_batches)
        value = metrics[self.task.best_metric]
        better = value < self.best["value"] if self.task.lower_is_better else value > self.best["value"]
        # A network that gives NaN can still be right by chance: it is never the best.
        improved = better and all(map(math.isfinite, metrics.values()))
        if improved:
            self.best = {"value": value, "step": self.step}
        self.evaluation_due = False
        self.save(metrics, best=improved)

    def _evaluate(self, name: str, model: nn.Module, batches: Any) -> dict[str, float]:
        limit = self.max_eval_batches
        with averaged_statistics(model, self.distributed):
            metrics = evaluate(
                model,
                batches if limit is None else (batch for _, batch in zip(range(limit), batches, strict=False)),
                self.task.evaluator(self.device),
                distributed=self.distributed,
                autocast=autocast(self.device, self.config.train.precision),
                expected=self.task.val_images if limit is None else None,
            )
        self.log.evaluation(self.step, self.epoch, name, metrics)
        return metrics

    def _resume(self) -> dict[str, Tensor] | None:
        """Loads `last.pt` of the run folder if there is one; returns what each process keeps for itself."""
        path = self.folder / "last.pt" if self.folder is not None else None
        payload = self._read_last(path) if path is not None and path.exists() else None
        self._all_found_the_same(payload)
        if payload is None:
            return None
        try:
            self.model.load_state_dict(payload["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(payload["ema"] or payload["model"])
            configured = [
                {key: group[key] for key in _SETTINGS & group.keys()} for group in self.optimizer.param_groups
            ]
            self.optimizer.load_state_dict(payload["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"{path} is of another model or optimizer than the config: {first}") from None
        for group, settings in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(settings)  # the state goes on, with the settings of the config (run.allow_changes)
        if self.scaler.is_enabled() and payload["scaler"]:
            self.scaler.load_state_dict(payload["scaler"])
        self.step, self.best, self.evaluation_due = payload["step"], payload["best"], payload["evaluation_due"]
        self.loss_count = payload["loss_count"]
        self.log.message(f"resuming from {path}: step {self.step} of {self.plan.total_steps}")
        return payload["local"]

    def _read_last(self, path: Path) -> dict[str, Any]:
        """A training checkpoint of this task and these data."""
        other = (
            f"start a new run with run.dir=NEW_FOLDER, with model.init_checkpoint={path.parent / 'best.pt'} if you like"
        )
        try:
            payload = read_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or {other}") from None
        if payload.get("format") != FORMAT or "optimizer" not in payload:
            raise CheckpointError(f"{path} is no checkpoint that training can go on from: {other}")
        if not self.config.run.allow_changes:
            own = {**self.task.meta(), "images": {"train": self.task.train_images, "val": self.task.val_images}}
            saved = {**payload["meta"], "images": payload["images"]}
            changed = [key for key in own if key != "ddfnet" and own[key] != saved.get(key)]
            if changed:
                raise CheckpointError(
                    f"{path} was trained on other data or another model ({', '.join(changed)} differ): {other}, "
                    "or accept it with run.allow_changes=true"
                )
        return payload

    def _all_found_the_same(self, payload: dict[str, Any] | None) -> None:
        step = torch.tensor(-1 if payload is None else payload["step"], device=self.device)
        steps = self.distributed.gather(step).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes do not see the same {self.folder / 'last.pt'} (steps {steps}; -1: none): "
                "put run.dir on a disk that all machines share"
            )

    def _load_local(self, local: dict[str, Tensor]) -> None:
        rank = self.distributed.rank
        if len(local["model"]) != self.distributed.world_size:
            self.loss_sum.copy_(local["loss_sum"].mean())
            self.log.message("another number of processes: each goes on from the mean of the batch-norm statistics")
            return
        self.loss_sum.copy_(local["loss_sum"][rank])
        load_statistics(self.model, local["model"][rank])
        if self.ema is not None and "ema" in local:
            load_statistics(self.ema.module, local["ema"][rank])
