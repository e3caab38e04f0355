"""Whether the checkpoints of a run fit on its disk: asked before it begins."""

import shutil
from pathlib import Path

from timm.optim import get_optimizer_info

from ddfnet.checkpoint import tensor_bytes
from ddfnet.engine.run_checkpoints import BEST, HISTORY, LAST
from ddfnet.engine.training_state import TrainingState
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import StorageError
from ddfnet.utils.files import size_text


def check_free_space(folder: Path, state: TrainingState, plan: RunPlan) -> str | None:
    """Compares what the checkpoints of a run will take with what is free.

    Returns:
        A note, where the first ones fit and all that are to be kept will not.

    Raises:
        StorageError: not even the next ones fit.
    """
    settings, weights, whole = state.config.checkpoints, *_sizes(state)
    each_best = weights + (weights // 2 if state.ema is not None else weights)  # best.pt and best.safetensors
    next_ones = 2 * whole + each_best  # a new file is written beside the old one
    milestones = plan.total_steps // (settings.every_epochs * plan.steps_per_epoch) if settings.every_epochs else 0
    links = settings.keep > 0  # last.pt is one of those in checkpoints/ then
    all_of_them = (settings.keep + 2 + milestones + (0 if links else 1)) * whole
    all_of_them += each_best + (settings.best - 1) * weights
    folder = folder.absolute()
    try:
        total, _, free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists()))
    except OSError:
        return None
    if total == 0:  # some network disks do not say
        return None
    there = _taken(folder)
    if free + there < next_ones or free < whole:
        raise StorageError(
            f"no space left on run.dir={folder}: its checkpoints need {size_text(next_ones)} to begin with, "
            f"{size_text(free)} are free: make space, or take another run.dir"
        )
    if free + there < all_of_them:
        return (
            f"note: the checkpoints to be kept need {size_text(all_of_them)}, {size_text(free + there)} are free or "
            f"theirs on run.dir={folder}: lower checkpoints.keep or checkpoints.best, or make space"
        )
    return None


def _sizes(state: TrainingState) -> tuple[int, int]:
    """Bytes of the weights (with the EMA weights), and of all that `last.pt` holds."""
    weights = tensor_bytes(state.model.state_dict())
    if state.ema is not None:
        weights *= 2
    optimizer = tensor_bytes(state.optimizer.state_dict())
    if not optimizer:  # before the first step it has nothing: one or two numbers for each that it trains
        trained = sum(p.nbytes for group in state.optimizer.param_groups for p in group["params"])
        info = get_optimizer_info(state.config.optim.name.lower().removeprefix("lookahead_"))
        optimizer = trained * (2 if info.has_betas else 1)
    return weights, weights + optimizer


def _taken(folder: Path) -> int:
    """Bytes of the checkpoints that are there, a file with two names counted once."""
    paths = [folder / LAST, folder / BEST, folder / "best.safetensors", *(folder / HISTORY).glob("*.pt")]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in (path.stat() for path in paths if path.is_file())}.values())
