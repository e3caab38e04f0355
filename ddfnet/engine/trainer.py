"""The training loop. It counts optimizer steps and never looks inside a batch: that is the task's."""

import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddfnet.engine.batch_norm import averaged_statistics
from ddfnet.engine.batch_of_one import explained_batch_of_one
from ddfnet.engine.distributed import LOCAL_BUFFERS, Distributed
from ddfnet.engine.evaluate import autocast, evaluate_in_training
from ddfnet.engine.grad_checkpointing import kept_buffers
from ddfnet.engine.logging import RunLog
from ddfnet.engine.non_finite import NonFinitePolicy
from ddfnet.engine.numerics import KeptBuffers, seed_at
from ddfnet.engine.pacing import is_finished, next_plateau, paced_learning_rate
from ddfnet.engine.prepare_model import prepare_model
from ddfnet.engine.profile import StepProfiler
from ddfnet.engine.saver import CheckpointSaver
from ddfnet.engine.signals import Interrupted, StopSignal
from ddfnet.engine.tracker_pages import TrackerPages
from ddfnet.engine.training_records import TrainingRecords
from ddfnet.engine.training_state import TrainingState
from ddfnet.engine.watch import Watch
from ddfnet.models.weights import classifier_names
from ddfnet.ops.compile_ahead import compile_ahead
from ddfnet.optim import clip_gradients
from ddfnet.tasks import Config, Task
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import NonFiniteLossError, raised_on_one_process


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
        watch: is told what this process is doing.
    """

    def __init__(
        self, config: Config, plan: RunPlan, task: Task, model: nn.Module, distributed: Distributed,
        *, folder: Path | None, log: RunLog, max_eval_batches: int | None = None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.task, self.log = config, plan, task, log
        self.distributed, self.device, self.folder = distributed, distributed.device, folder
        self.max_eval_batches, self.watch = max_eval_batches, watch or Watch()
        settings = config.train
        self.model, self.freeze = prepare_model(model, config, task, distributed, log=log.message)
        self.state = TrainingState(config, task, self.model, plan.lr, distributed)
        self.saver = CheckpointSaver(self.state, folder, plan.steps_per_epoch)
        self.pages = TrackerPages(log.trackers, task, config, plan, self.device)
        self.profiler = StepProfiler(config.profile.range, self.device, folder, log)
        self.records = TrainingRecords(config, plan, self.state, distributed)
        self.classifiers = classifier_names(self.model)
        self.non_finite = NonFinitePolicy(config, plan, task, self.state, distributed, folder=folder, log=log)
        self.watch.samples = lambda step: task.sample_names(plan, step + self.state.data_offset)
        gives_up_steps = settings.non_finite == "skip" or plan.accumulation > 1  # a signal between micro-batches does
        self.buffers = KeptBuffers(self.model) if gives_up_steps else None
        self.stop: StopSignal | None = None
        self._in_step = False
        local = self.state.resume(folder, last_step=plan.total_steps) if folder is not None else None
        for path, error in self.state.damaged:
            log.warning(f"{path} cannot be used, an older checkpoint takes its place: {error}")
        if local is not None:
            log.message(f"resuming from {self.state.resumed_from}: step {self.state.step} of {plan.total_steps}")

        self.replica: nn.Module = self.model
        if distributed.world_size > 1:
            # Running statistics stay local (no broadcast in the step); see `averaged_statistics`.
            self.replica = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **LOCAL_BUFFERS)
        # After DDP, which copies the statistics of rank 0 to all.
        if local is not None and not self.state.load_local(local):
            log.message("another number of processes: each resumes from the mean of the batch-norm statistics")
        # Compiled around the replica: names of parameters stay those of the raw model.
        self.forward = torch.compile(self.replica) if settings.compile else self.replica
        if task.fixed_input_size and not settings.compile:
            compile_ahead(self.model, log=log.message)
        # Here, before a run folder is written: what is decoded at once may be corrupt.
        self.eval_batches = task.eval_batches(
            rank=distributed.rank, world_size=distributed.world_size, device=self.device
        )

    def fit(self, stop: StopSignal | None = None) -> bool:
        """Trains from the current step to the end of the run.

        Returns:
            True when finished; False when a signal asked to stop: `last.pt` is written and a new start resumes.

        Raises:
            NonFiniteLossError: NaN or infinite loss; names the step, and nothing it touched is saved.
        """
        self.stop = stop
        try:
            if stop is not None:
                stop.begin()
            while True:
                try:
                    finished = self._fit()
                    break
                except NonFiniteLossError as error:
                    if self.config.train.non_finite != "rollback":
                        raise
                    self.non_finite.roll_back(error, self.saver)
                    self._in_step = False
        except Interrupted as interrupted:
            if not interrupted.agreed and self.distributed.world_size > 1:
                interrupted.in_step = True
                raise  # the others are somewhere else: there is nobody to save with
            self._save_finished_step()
            finished = False
        except BaseException:
            with suppress(Exception):  # what is being written is written, whatever happened
                self.saver.wait()
            raise
        self.watch.phase("save")
        self.saver.wait()
        return finished

    def _fit(self) -> bool:
        state, plan = self.state, self.plan
        if is_finished(state, self.config, plan, log=self.log.message):
            return True
        # A run that went back reads other data from then on, as if it were some steps further.
        ahead = replace(plan, total_steps=plan.total_steps + state.data_offset)
        start = state.step + state.data_offset
        batches = self.task.train_batches(ahead, rank=self.distributed.rank, start_step=start, device=self.device)
        try:
            return self._loop(batches)
        finally:
            if isinstance(batches, Generator):  # not when it is collected: an error's traceback keeps it
                batches.close()

    def _loop(self, batches: Iterator[dict[str, Any]]) -> bool:
        state, plan, run, stop = self.state, self.plan, self.config.run, self.stop
        if state.evaluation_due:
            self._evaluate_epoch()
        self.model.train()
        self.freeze.hold()
        self.records.meter.restart()
        while not is_finished(state, self.config, plan, log=self.log.message):
            with self.profiler.at(state.step, last=state.step + 1 == plan.total_steps):
                self.train_step(batches)
            self.saver.check()
            self.log.tick(state.step)
            epoch_ends = state.step % plan.steps_per_epoch == 0 or state.step == plan.total_steps
            if state.step % run.log_every == 0 or epoch_ends:
                self._log_interval()
            if epoch_ends:
                state.evaluation_due = state.step == plan.total_steps or round(self.epoch) % self.config.eval.every == 0
                self.save()  # first: an evaluation that fails must not cost the epoch
                if state.evaluation_due:
                    self._evaluate_epoch()
                self.records.meter.restart()
            elif run.save_every and state.step % run.save_every == 0:
                self.save()
            if stop is not None and state.step < plan.total_steps:
                if stop.agreed(state.step, save=self.saver.is_old()):
                    self._save_finished_step()
                    return False
                if stop.save_agreed and self.saver.step != state.step:
                    self.save()
        return True

    def _save_finished_step(self) -> None:
        """Saves the last step that was finished; of one that was begun nothing stays."""
        if self.saver.step == self.state.step or self.state.step == 0:
            return
        if self.buffers is not None and self._in_step:
            self.buffers.restore()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.save()

    def train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimizer step: accumulate, clip, step, average."""
        config, state, accumulation = self.config, self.state, self.plan.accumulation
        lr = paced_learning_rate(state.step, config, self.plan, state.plateau)
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

        self._in_step = True
        step_loss = torch.zeros((), device=self.device)
        if self.buffers is not None:
            self.buffers.keep()
        for micro_batch in range(accumulation):
            waiting = time.perf_counter()
            self.watch.phase("data", state.step)
            with self.profiler.data(), raised_on_one_process(), self.stop.waiting() if self.stop else nullcontext():
                batch = next(batches)
            self.watch.phase("forward")
            self.records.meter.add(self.task.batch_images(batch), time.perf_counter() - waiting)
            self.pages.see_batch(batch)
            self._seed(micro_batch)
            last = micro_batch == accumulation - 1
            with nullcontext() if last or self.replica is self.model else self.replica.no_sync():
                with (
                    autocast(self.device, config.train.precision),
                    explained_batch_of_one(config.train.device_batch_size),
                ):
                    loss = self.task.loss(self.forward, batch)["loss"]
                self.watch.phase("backward")
                with kept_buffers(self.model) if config.train.grad_checkpointing else nullcontext():
                    state.scaler.scale(loss / accumulation).backward()
            step_loss += loss.detach() / accumulation

        state.scaler.unscale_(state.optimizer)
        self.pages.see_gradients(state.optimizer, state.step + 1)
        clip, mode = config.optim.clip_grad, config.optim.clip_mode
        grad_norm = self.records.grad_norm = clip_gradients(self.model, clip, mode, classifiers=self.classifiers)
        # With fp16 the scaler looks for overflow in the gradients and skips such a step by itself.
        checked = step_loss if state.scaler.is_enabled() else step_loss + 0 * grad_norm
        if config.train.non_finite == "skip" and self.non_finite.is_met(checked):
            assert self.buffers is not None
            self.buffers.restore()
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            self.non_finite.give_up_step(float(grad_norm))
            state.step += 1
            self._in_step = False
            return
        self.non_finite.check.note(state.step, checked, grad_norm)
        self.watch.phase("optimizer")
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema is not None:
            state.ema.update(self.model, step=state.step)
        state.loss_sum += step_loss
        state.loss_count += 1
        self._in_step = False

    @property
    def epoch(self) -> float:
        return self.state.step / self.plan.steps_per_epoch

    def save(self, metrics: dict[str, float] | None = None, *, ranked: bool = False) -> None:
        """Saves a copy of the state into the run folder, in the background, unless a loss since the last check was not
        finite. Waits for the save before."""
        self.non_finite.stop_if_found(self.records.last_finite_loss)
        self.watch.phase("save", self.state.step)
        self.saver.save(metrics, ranked=ranked)

    def _seed(self, micro_batch: int) -> None:
        position = self.state.step + self.state.data_offset, micro_batch * self.plan.world_size + self.distributed.rank
        seed_at(self.config.run.seed, *position, device=self.device)

    def _log_interval(self) -> None:
        self.non_finite.stop_if_found(self.records.last_finite_loss)
        self.log.train(self.state.step, self.plan.total_steps, self.records.next())
        self.pages.log_step(self.state.optimizer, self.state.step, self.epoch)

    def _evaluate_epoch(self) -> None:
        self.watch.phase("evaluation", self.state.step)
        metrics = self._evaluate("val", self.model)
        if self.state.ema is not None:
            metrics = self._evaluate("val_ema", self.state.ema.module)
        ranked = self.state.rank(metrics)
        self.state.plateau = next_plateau(metrics, self.state, self.config, self.plan)
        self.state.evaluation_due = False
        self.save(metrics, ranked=ranked)

    def _evaluate(self, name: str, model: nn.Module) -> dict[str, float]:
        state = self.state
        with averaged_statistics(model, self.distributed):
            metrics = evaluate_in_training(
                model, self.eval_batches, self.task, self.config, self.distributed,
                limit=self.max_eval_batches, log=self.log.message, stop=self.stop, watch=self.watch,
                watched=self.pages.watched, bar=self.log.progress(name),
            )  # fmt: skip
            best = (state.ema is None or model is not self.model) and state.leads(metrics)  # of two, the EMA's rank
            units = self.task.percentages
            self.log.evaluation(state.step, self.epoch, name, metrics, percentages=units, best=best)
            self.pages.log_evaluation(name, model, state.step)
        return metrics
