"""The training loop. It counts optimizer steps and never looks inside a batch: that is the task's."""

import inspect
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddfnet.engine.batch_norm import averaged_statistics, synchronize_batch_norm
from ddfnet.engine.batch_of_one import check_batch_of_one, explained_batch_of_one
from ddfnet.engine.distributed import Distributed
from ddfnet.engine.evaluate import autocast, evaluate, place
from ddfnet.engine.freeze import Freeze
from ddfnet.engine.grad_checkpointing import checkpoint_gradients, kept_buffers
from ddfnet.engine.logging import Meter, RunLog
from ddfnet.engine.pacing import paced_learning_rate, plateau_after, stops_early
from ddfnet.engine.signals import StopSignal
from ddfnet.engine.training_state import TrainingState
from ddfnet.ops.compile_ahead import compile_ahead
from ddfnet.optim import clip_gradients
from ddfnet.tasks import Config, Task
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import CheckpointError, NonFiniteLossError, raised_on_one_process
from ddfnet.utils.files import write_json

# torch 2.15 renamed the argument and warns of the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_LOCAL_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
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
        max_eval_batches: a dry run evaluates so many alone.
    """

    def __init__(
        self, config: Config, plan: RunPlan, task: Task, model: nn.Module, distributed: Distributed,
        *, folder: Path | None, log: RunLog, max_eval_batches: int | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.task, self.log = config, plan, task, log
        self.distributed, self.device, self.folder = distributed, distributed.device, folder
        self.max_eval_batches = max_eval_batches
        settings = config.train
        if settings.sync_bn and distributed.world_size > 1:
            model = synchronize_batch_norm(model, self.device)
        self.model = place(model, self.device, channels_last=settings.channels_last)
        self.freeze = Freeze(self.model, settings.freeze)
        if settings.freeze:
            log.message(str(self.freeze))
        if settings.grad_checkpointing:
            checkpoint_gradients(self.model)
        shared_norms = settings.sync_bn and distributed.world_size > 1  # several images in any case
        if settings.device_batch_size == 1 and task.train_shape is not None and not shared_norms:
            check_batch_of_one(self.model, self.freeze, task.train_shape)
        self.state = TrainingState(config, task, self.model, plan.lr, distributed)
        self.meter = Meter()
        self.grad_norm = torch.zeros((), device=self.device)
        self.first_nonfinite_step = torch.tensor(_NO_STEP, device=self.device)
        self.last_finite_loss: float | None = None
        self._saved_step: int | None = None
        last = None if folder is None else folder / "last.pt"
        local = self.state.resume(last) if last is not None else None
        if local is not None:
            if self.state.step > plan.total_steps and not config.run.allow_changes:
                raise CheckpointError(
                    f"{last} is at step {self.state.step}, beyond the end of the run at {plan.total_steps}: it is "
                    "damaged, or the run was longer; start a new one with run.dir=NEW_FOLDER"
                )
            log.message(f"resuming from {last}: step {self.state.step} of {plan.total_steps}")

        self.replica: nn.Module = self.model
        if distributed.world_size > 1:
            # Running statistics stay local (no broadcast in the step); see `averaged_statistics`.
            self.replica = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **_LOCAL_BUFFERS)
        # After DDP, which copies the statistics of rank 0 to all.
        if local is not None and not self.state.load_local(local):
            log.message("another number of processes: each resumes from the mean of the batch-norm statistics")
        # Compiled around the replica: names of parameters stay those of the raw model.
        self.forward = torch.compile(self.replica) if settings.compile else self.replica
        if task.fixed_input_size and not settings.compile:
            compile_ahead(self.model, log=log.message)

    def fit(self, stop: StopSignal | None = None) -> bool:
        """Trains from the current step to the end of the run.

        Returns:
            True when finished; False when a signal asked to stop: `last.pt` is written and a new start resumes.

        Raises:
            NonFiniteLossError: NaN or infinite loss; names the step, and nothing it touched is saved.
        """
        state, plan, run = self.state, self.plan, self.config.run
        if self._is_finished():
            return True
        rank, world_size = self.distributed.rank, self.distributed.world_size
        batches = self.task.train_batches(plan, rank=rank, start_step=state.step, device=self.device)
        eval_batches = self.task.eval_batches(rank=rank, world_size=world_size, device=self.device)
        if state.evaluation_due:
            self._evaluate_epoch(eval_batches)
        self.model.train()
        self.freeze.hold()
        self.meter.restart()
        while not self._is_finished():
            self.train_step(batches)
            self.log.tick(state.step)
            epoch_ends = state.step % plan.steps_per_epoch == 0 or state.step == plan.total_steps
            if state.step % run.log_every == 0 or epoch_ends:
                self._log_interval()
            if epoch_ends:
                due = state.step == plan.total_steps or round(self.epoch) % self.config.eval.every == 0
                state.evaluation_due = due
                self.save()  # first: an evaluation that fails must not cost the epoch
                if due:
                    self._evaluate_epoch(eval_batches)
                self.meter.restart()
            elif run.save_every and state.step % run.save_every == 0:
                self.save()
            if stop is not None and state.step < plan.total_steps and stop.agreed(state.step):
                if self._saved_step != state.step:
                    self.save()
                return False
        return True

    def _is_finished(self) -> bool:
        state, plan = self.state, self.plan
        if state.evaluation_due:
            return False
        best = state.best["step"]
        if state.step < plan.total_steps and stops_early(state.step, best, self.config, plan):
            epochs = (state.step - (best or 0)) // plan.steps_per_epoch
            self.log.message(f"stopped early: {self.task.best_metric} has not been better for {epochs} epochs")
            return True
        return state.step >= plan.total_steps

    def train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimizer step: accumulate, clip, step, average."""
        config, state, accumulation = self.config, self.state, self.plan.accumulation
        lr = paced_learning_rate(state.step, config, self.plan, state.plateau)
        for group in state.optimizer.param_groups:
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
                with (
                    autocast(self.device, config.train.precision),
                    explained_batch_of_one(config.train.device_batch_size),
                ):
                    loss = self.task.loss(self.forward, batch)["loss"]
                with kept_buffers(self.model) if config.train.grad_checkpointing else nullcontext():
                    state.scaler.scale(loss / accumulation).backward()
            step_loss += loss.detach() / accumulation

        state.scaler.unscale_(state.optimizer)
        self.grad_norm = clip_gradients(self.model, config.optim.clip_grad, config.optim.clip_mode)
        # With fp16 the scaler looks for overflow in the gradients and skips such a step by itself.
        self._note_nonfinite(step_loss if state.scaler.is_enabled() else step_loss + 0 * self.grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema is not None:
            state.ema.update(self.model, step=state.step)
        state.loss_sum += step_loss
        state.loss_count += 1

    @property
    def epoch(self) -> float:
        return self.state.step / self.plan.steps_per_epoch

    def save(self, metrics: dict[str, float] | None = None, *, best: bool = False) -> None:
        """`TrainingState.save` into the run folder, unless a loss since the last check was not finite."""
        self.check_finite()
        if self.folder is not None:
            self.state.save(self.folder, self.epoch, metrics or {}, best=best)
            self._saved_step = self.state.step

    def check_finite(self) -> None:
        """Raises NonFiniteLossError if any loss since the last check was not finite (waits for the device)."""
        step = int(self.distributed.reduce_(self.first_nonfinite_step.clone(), "min"))
        if step == _NO_STEP:
            return
        lr = paced_learning_rate(step, self.config, self.plan, self.state.plateau)
        epoch = step / self.plan.steps_per_epoch
        where = ""
        if self.folder is not None and self.distributed.is_main:
            path = self.folder / f"nonfinite_step{step}.json"
            samples = self.task.sample_names(self.plan, step)
            facts = {"step": step, "epoch": epoch, "lr": lr, "last_finite_loss": self.last_finite_loss}
            write_json(path, {**facts, "samples": samples}, indent=1)
            where = f" Its samples are listed in {path}."
        raise NonFiniteLossError(
            f"the loss or gradient of step {step} (epoch {epoch:.2f}, lr {lr:.3g}) is not finite; "
            f"last finite mean loss {self.last_finite_loss}. Nothing was saved since the last checkpoint.{where} "
            "Lower the learning rate, lengthen the warm-up, clip gradients (optim.clip_grad=1) or use bf16"
        )

    def _seed(self, micro_batch: int) -> None:
        # Dropout and stochastic depth draw from the default generators: keyed by the position in the run, they depend
        # neither on the number of processes nor on where the run was resumed.
        position = self.state.step, micro_batch * self.plan.world_size + self.distributed.rank
        sequence = np.random.SeedSequence([self.config.run.seed, *position])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def _note_nonfinite(self, loss: Tensor) -> None:
        # On the device: reading the loss at every step would make the host wait for it.
        step = torch.where(loss.isfinite(), _NO_STEP, self.state.step)
        self.first_nonfinite_step = torch.minimum(self.first_nonfinite_step, step)

    def _log_interval(self) -> None:
        self.check_finite()
        state = self.state
        loss = self.distributed.reduce_(state.loss_sum / state.loss_count, "sum") / self.distributed.world_size
        images_per_second, data_wait = self.meter.read()
        images_per_second *= self.distributed.world_size
        self.last_finite_loss = loss.item()
        record = {
            "epoch": self.epoch,
            "loss": self.last_finite_loss,
            "lr": paced_learning_rate(
                state.step - 1, self.config, self.plan, state.plateau
            ),  # of the step that is done
            "grad_norm": float(self.grad_norm),
            "images_per_second": images_per_second,
            "data_wait": data_wait,
            "eta_seconds": (self.plan.total_steps - state.step) * self.config.train.batch_size / images_per_second,
        }
        if self.device.type == "cuda":
            record["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.log.train(state.step, self.plan.total_steps, record)
        state.loss_sum, state.loss_count = torch.zeros_like(state.loss_sum), 0

    def _evaluate_epoch(self, eval_batches: Any) -> None:
        metrics = self._evaluate("val", self.model, eval_batches)
        if self.state.ema is not None:
            metrics = self._evaluate("val_ema", self.state.ema.module, eval_batches)
        improved = self.state.is_better(metrics)
        value, worse = metrics[self.task.best_metric], self.task.lower_is_better
        self.state.plateau = plateau_after(
            value, self.state.step, self.config, self.plan, self.state.plateau, lower_is_better=worse
        )
        self.state.evaluation_due = False
        self.save(metrics, best=improved)

    def _evaluate(self, name: str, model: nn.Module, batches: Any) -> dict[str, float]:
        limit = self.max_eval_batches
        # One that trains compiled is evaluated as it is, with kernels that training had no use for.
        ahead = self.config.train.compile and self.task.fixed_input_size
        kernels = compile_ahead(model, log=self.log.message) if ahead else nullcontext()
        with averaged_statistics(model, self.distributed), kernels:
            metrics = evaluate(
                model,
                batches if limit is None else (batch for _, batch in zip(range(limit), batches, strict=False)),
                self.task.evaluator(self.device),
                distributed=self.distributed,
                precision=self.config.train.precision,
                expected=self.task.val_images if limit is None else None,
            )
        self.log.evaluation(self.state.step, self.epoch, name, metrics)
        return metrics
