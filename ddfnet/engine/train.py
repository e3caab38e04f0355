"""A whole training run, from a loaded configuration to its last checkpoint."""

import os
import sys
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddfnet.checkpoint import kind_note
from ddfnet.config import LoadedConfig
from ddfnet.data.sources.folder import not_counted_text
from ddfnet.engine.agreement import check_same_config, check_same_data
from ddfnet.engine.disk_space import check_free_space
from ddfnet.engine.distributed import Distributed, device_name, distributed_session, is_lost_connection, mps_notes
from ddfnet.engine.evaluate import check_precision
from ddfnet.engine.logging import RunLog
from ddfnet.engine.memory_format import trainable_format
from ddfnet.engine.numerics import make_deterministic
from ddfnet.engine.run_checkpoints import restore_run, resumable, storage_errors
from ddfnet.engine.run_folder import check_same_run, flat, run_folder_lock, write_run_folder
from ddfnet.engine.run_notes import farewell, resume_notes
from ddfnet.engine.signals import EXIT_INTERRUPTED, Interrupted, StopSignal
from ddfnet.engine.start_signals import obeyed_while_waiting
from ddfnet.engine.tracker_libraries import RunFacts
from ddfnet.engine.trackers import Trackers, check_trackers
from ddfnet.engine.trainer import Trainer
from ddfnet.engine.watch import Watch
from ddfnet.layers import CARAFE, DDF, DDFUp, Involution
from ddfnet.models.preprocessing import described, trained_with
from ddfnet.models.weights import load_weights, read_source
from ddfnet.ops.ddf.native import cpu_path
from ddfnet.optim import check_optimizer, peak_learning_rate
from ddfnet.tasks import Config, Task, create_task
from ddfnet.tasks.plan import RunPlan, plan_run
from ddfnet.utils.cli import EXIT_FAILED
from ddfnet.utils.errors import ConfigError, FollowingError, NonFiniteLossError, StorageError, UserError, about
from ddfnet.utils.progress import no_progress
from ddfnet.utils.text import plural

DRY_RUN_STEPS = 2
DRY_RUN_EVAL_BATCHES = 2
DRY_RUN_CPU_IMAGES = 4  # per micro-batch: a full one would take minutes on a CPU


def train(loaded: LoadedConfig, *, dry_run: bool = False, quiet: bool = False) -> int:
    """Trains as configured, resuming from the run folder's `last.pt` if there is one.

    Args:
        loaded: see `load_config`.
        dry_run: build everything, run two steps and two evaluation batches, write nothing.
        quiet: show no progress: neither bars nor a line each `run.log_every` steps.

    Returns:
        Exit code: 0 when finished, 75 when a signal stopped the run and a new start will resume.

    Raises:
        UserError: the configuration, data or a checkpoint cannot be used; raised before anything is written.
    """
    timeout = loaded.config.run.timeout
    try:
        with ExitStack() as session, ExitStack() as stack:
            with obeyed_while_waiting():
                distributed = session.enter_context(distributed_session(loaded.config.run.device, timeout))
            stop, watch = StopSignal(distributed), Watch(distributed, timeout)
            stack.enter_context(no_progress(quiet))
            stack.callback(stop.restore)  # set before the loader forks its workers
            watch.start()
            try:
                return _train(loaded, distributed, stop, watch, stack, dry_run=dry_run, quiet=quiet)
            except Interrupted as interrupted:
                if interrupted.in_step:
                    watch.interrupted(str(interrupted))
                raise
            except Exception as error:
                if isinstance(error, UserError):
                    error.args = (loaded.told(str(error)),)
                _end_together(error, watch)
                raise
            finally:
                watch.end()
    except Interrupted as interrupted:  # out of the session, which would wait for the others
        saved = "in the middle of a step" if interrupted.in_step else "before there was a step to save"
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun ends the others so where one has found a mistake
            with suppress(OSError):  # the terminal may have gone
                print(f"stopped by {interrupted} {saved}: start again", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED


def _end_together(error: Exception, watch: Watch) -> None:
    """Tells the other processes of an error, unless it only follows from one of theirs: then ends as quietly."""
    ours = isinstance(error, UserError | StorageError | NonFiniteLossError)
    first = None if ours else watch.another_failed()
    if first is None and is_lost_connection(error):
        reason = "it was killed, or its machine or the network is gone; start again to resume"
        raise FollowingError(f"the connection to another process is lost: {reason}", EXIT_FAILED) from None
    if first is None:
        watch.failed(error)
        return
    raise FollowingError(f"process {first['rank']} has ended the run: {first['text']}", first["code"]) from None


def _train(
    loaded: LoadedConfig, distributed: Distributed, stop: StopSignal, watch: Watch, stack: ExitStack,
    *, dry_run: bool, quiet: bool,
) -> int:  # fmt: skip
    config, notes = loaded.config, [*loaded.notes, *loaded.ineffective_keys()]
    folder = None if dry_run else Path(config.run.dir)
    check_same_config(config, distributed)
    check_trackers(config.run.used_trackers)
    locked = folder is not None and _lock_existing(folder, distributed, stack)  # before anything of it is read
    check_precision(distributed.device, config.train.precision)
    check_optimizer(config.optim)
    notes += mps_notes(distributed.device)
    task = create_task(config)
    check_same_data(task, distributed)
    if dry_run:
        config, dry_notes = _dry_run_config(config, distributed, task.train_images)
        notes += dry_notes
        task = create_task(config)
    plan = plan_run(config, world_size=distributed.world_size, train_images=task.train_images)
    if dry_run:
        plan = replace(plan, total_steps=DRY_RUN_STEPS)

    # cuDNN times its convolutions anew for each size; what is fastest may differ from start to start.
    torch.backends.cudnn.benchmark = task.fixed_input_size and not config.train.deterministic
    if config.train.deterministic:
        make_deterministic(stack)
    torch.manual_seed(config.run.seed)
    model = task.build_model()
    config, format_notes = trainable_format(config, model, distributed.device)
    task.config = config
    notes += [*task.notes, *format_notes]  # after the network: a task may have something to say of it
    if config.train.sync_bn and distributed.world_size == 1:
        notes.append("note: train.sync_bn has no effect: there is one process")
    resumes = folder is not None and bool(resumable(folder))
    if config.model.start and not resumes:
        meta = task.meta() if config.model.init_checkpoint else {**task.meta(), "preprocessing": None}  # noted before
        with about("model.init_checkpoint" if config.model.init_checkpoint else "model.name"):
            notes.append(load_initial_weights(model, config.model.start, meta=meta))
    if not resumes:
        task.prepare_start(model)
    if folder is not None:
        notes += check_same_run(folder, loaded)
    trackers = _trackers(loaded, task, folder) if folder is not None and distributed.is_main else Trackers()
    log = RunLog(
        folder, active=distributed.is_main, total_steps=plan.total_steps,
        epochs=plan.total_steps / plan.steps_per_epoch, trackers=trackers, quiet=quiet,
    )  # fmt: skip
    stack.callback(log.close)
    for line in (*_summary(config, plan, distributed, model, task), *notes):
        log.message(line)
    task.open_data(writes=not dry_run)
    limit = DRY_RUN_EVAL_BATCHES if dry_run else None
    trainer = Trainer(
        config, plan, task, model, distributed, folder=folder, log=log, max_eval_batches=limit, watch=watch
    )
    for line in resume_notes(trainer.state, config, plan):
        log.warning(line)
    if folder is not None and distributed.is_main:  # only now: no mistake of the user may leave a folder behind
        if note := check_free_space(folder, trainer.state, plan):
            log.message(note)
        if not locked:
            stack.enter_context(run_folder_lock(folder))
        with storage_errors(folder):
            write_run_folder(folder, loaded, plan, {"parameters": sum(p.numel() for p in model.parameters())})
            if note := restore_run(folder, trainer.state, several=config.checkpoints.best > 1):
                log.warning(note)
    with storage_errors(folder) if folder is not None else nullcontext():
        log.start(trainer.state.step, evaluation_due=trainer.state.evaluation_due)
    finished = trainer.fit(stop)
    trackers.outcome = "finished" if finished else "interrupted"
    log.message(farewell(finished, trainer.state, folder, stop.received))
    return 0 if finished else EXIT_INTERRUPTED


def _lock_existing(folder: Path, distributed: Distributed, stack: ExitStack) -> bool:
    """Whether the run folder was there, and is the main process's now. ConfigError, on all processes, where another
    run has it."""
    error, locked = None, distributed.is_main and folder.is_dir()
    if locked:
        try:
            stack.enter_context(run_folder_lock(folder))
        except ConfigError as other:
            error = str(other)
    error = distributed.gather_objects(error)[0]
    if error is not None:
        raise ConfigError(error)
    return locked


def _trackers(loaded: LoadedConfig, task: Task, folder: Path) -> Trackers:
    config = loaded.config
    kinds = ("val",) if config.train.ema is None else ("val", "val_ema")
    metrics = tuple(f"{kind}/{task.best_metric}" for kind in kinds)
    facts = RunFacts(folder, flat(config.model_dump(mode="json")), loaded.to_yaml(), metrics)
    return Trackers(config.run.used_trackers, facts)


def load_initial_weights(model: nn.Module, path: str | Path, *, meta: dict[str, Any] | None = None) -> str:
    """Loads weights to start from; a classifier for another number of classes keeps its random start.

    Args:
        model: gets the weights.
        path: see `ddfnet.models.weights.read_source`.
        meta: of this run's task, to be compared with what the file says of itself.

    Returns:
        What was loaded and changed on the way, and where the weights come from other images or classes; one line each.

    Raises:
        UserError: they cannot be had or read, or do not fit the model otherwise.
    """
    weights = read_source(str(path))
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    changes = load_weights(model, weights, source=path, name=name, new_classifier=True)
    lines = [f"weights from {path}{kind_note(weights.kind)}" + (f"; {changes}" if changes else "")]
    meta = meta or {}
    about = weights.meta
    if about is None:
        channels = len((meta.get("preprocessing") or {}).get("mean") or "RGB")
        about = {"preprocessing": trained_with(weights.origin or {}, channels=channels)}
    return "\n".join(lines + _differences(about, meta, new_classifier="new classifier" in changes))


def _differences(weights: dict[str, Any], run: dict[str, Any], *, new_classifier: bool) -> list[str]:
    """Notes on weights of other images or classes: it may be meant, but should not go unnoticed."""
    lines = []
    then, now = weights.get("preprocessing"), run.get("preprocessing")
    if then and now:
        before, here = described(then), described(now)
        changed = [f"{key} {value}, here {here[key]}" for key, value in before.items() if here.get(key, value) != value]
        if changed:
            lines.append(f"note: these weights were trained with data.input {'; '.join(changed)}")
    then, now = weights.get("classes"), run.get("classes")
    if then and now and then != now and not new_classifier:
        lines.append("note: these weights were trained on other classes; their classifier is kept as a start")
    return lines


def _dry_run_config(config: Config, distributed: Distributed, train_images: int) -> tuple[Config, list[str]]:
    """The configuration with a batch that two quick steps can afford, and what has to be said of it."""
    train, world_size = config.train, distributed.world_size
    # The real batch must divide, too; whether the images suffice for it is a note.
    plan_run(config, world_size=world_size, train_images=max(train_images, train.batch_size))
    notes = []
    if train_images < train.batch_size:
        notes.append(
            f"note: train.batch_size={train.batch_size} exceeds the {train_images} training images: "
            "the real run will refuse it"
        )
    device_batch = train.device_batch_size
    if distributed.device.type == "cpu":
        device_batch = min(device_batch, DRY_RUN_CPU_IMAGES)
    accumulation = max(1, min(2, train.batch_size // (world_size * train.device_batch_size)))
    while device_batch > 2 and world_size * device_batch * accumulation > train_images:
        device_batch //= 2
        device_batch += device_batch % 2  # mixup pairs images
    batch = world_size * device_batch * accumulation
    notes.append(
        f"dry run: {DRY_RUN_STEPS} steps of {batch} images instead of {train.batch_size} "
        f"({plural(accumulation, 'micro-batch', 'micro-batches')} of {device_batch} per process), nothing is written"
    )
    lr = peak_learning_rate(config.optim, config.schedule, train.batch_size)  # not that of the smaller batch
    changes = {
        "train": train.model_copy(update={"batch_size": batch, "device_batch_size": device_batch}),
        "run": config.run.model_copy(update={"log_every": 1}),
        "optim": config.optim.model_copy(update={"lr": lr, "base_lr": None}),
    }
    return config.model_copy(update=changes), notes


def _summary(config: Config, plan: RunPlan, distributed: Distributed, model: nn.Module, task: Task) -> list[str]:
    train = config.train
    uses_ddf = any(isinstance(module, (CARAFE, DDF, DDFUp, Involution)) for module in model.modules())
    return [
        f"{config.model.name}: {sum(p.numel() for p in model.parameters()):,} parameters",
        f"{task.train_images:,} training and {task.val_images:,} validation images from {config.data.root}",
        *filter(None, (not_counted_text(task.samples(split)) for split in ("train", "val"))),
        f"{device_name(distributed.device)}, {train.precision}; batch {train.batch_size} = "
        f"{plural(plan.world_size, 'process', 'processes')} x {plural(train.device_batch_size, 'image')} x "
        f"{plural(plan.accumulation, 'micro-batch', 'micro-batches')}",
        f"{plural(plan.total_steps, 'step')} of {plan.steps_per_epoch:,} per epoch; {config.optim.name}, "
        f"peak learning rate {plan.lr:g}",
        *([_operator_path(distributed.device.type, train.compile)] if uses_ddf else []),
    ]


def _operator_path(device: str, compiled: bool) -> str:
    where = {"cuda": "the GPU: Triton kernels, compiled once per image size", "mps": "mps: their PyTorch formulation"}
    return f"DDF operators on {where[device]}" if device in where else cpu_path(compiled=compiled)
