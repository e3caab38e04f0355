"""What depends on a run's own metric: the plateau schedule's learning rate, and whether the run ends early."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ddfnet.optim import learning_rate
from ddfnet.tasks import Config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.text import plural

Plateau = dict[str, float | int]
_KEPT = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def paced_learning_rate(step: int, config: Config, plan: RunPlan, plateau: Plateau) -> float:
    """`learning_rate`, after the falls of the plateau schedule that `plateau_after` has noted.

    Their number is noted, and not the rate they led to: a run that resumes with another rate or schedule gets it.
    """
    if config.schedule.name == "plateau" and step >= plan.warmup_steps:
        return _fallen(int(plateau.get("falls", 0)), config, plan)
    return learning_rate(step, config.schedule, plan)


def _fallen(falls: int, config: Config, plan: RunPlan) -> float:
    return max(config.schedule.min_lr, plan.lr * config.schedule.gamma**falls)


def plateau_after(
    value: float, step: int, config: Config, plan: RunPlan, plateau: Plateau, *, lower_is_better: bool
) -> Plateau:
    """The state of the plateau schedule after an evaluation at a step; it is empty before the first one.

    torch's ReduceLROnPlateau, as timm sets it: relative threshold 1e-4, and nothing counts during the warm-up. "falls"
    counts those that lowered the rate: none at min_lr, so that a min_lr lowered later is approached step by step.
    """
    schedule = config.schedule
    if schedule.name != "plateau" or step < plan.warmup_steps:
        return plateau
    # Its rate is 1 or, after a fall, gamma: it says when, the plan's rate how far.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode="min" if lower_is_better else "max",
        factor=schedule.gamma,
        patience=schedule.patience,
        eps=0.0,  # its default ignores falls of less than 1e-8
    )
    if "best" in plateau:  # without it, the metric that ranks has changed
        scheduler.load_state_dict({key: plateau[key] for key in _KEPT})
    scheduler.step(value)
    state: dict[str, Any] = scheduler.state_dict()
    falls = int(plateau.get("falls", 0))
    if optimizer.param_groups[0]["lr"] < 1 and _fallen(falls, config, plan) > schedule.min_lr:
        falls += 1
    return {"falls": falls, **{key: state[key] for key in _KEPT}}


def stops_early(step: int, best: dict[str, Any], config: Config, plan: RunPlan) -> bool:
    """Whether a run that has evaluated this step ends there: its best evaluation is `train.early_stop` epochs ago.

    A function of the step and of that of the best evaluation, so a run that starts again decides alike.

    Args:
        best: of a `TrainingState`: "step" of the best evaluation; where there is none, "since" when one is looked for.
    """
    patience, epoch = config.train.early_stop, step / plan.steps_per_epoch
    if patience is None or step % plan.steps_per_epoch or round(epoch) % config.eval.every:
        return False
    return step - _best_step(best) >= patience * plan.steps_per_epoch


def _best_step(best: dict[str, Any]) -> int:
    return int(best.get("since", 0) if best["step"] is None else best["step"])


class Progress(Protocol):
    """How far a run is: a `TrainingState`."""

    step: int
    best: dict[str, Any]
    metric: str
    lower_is_better: bool
    plateau: Plateau
    evaluation_due: bool


def next_plateau(metrics: dict[str, float], state: Progress, config: Config, plan: RunPlan) -> Plateau:
    """`plateau_after` an evaluation of the step that a run has come to."""
    lower = state.lower_is_better
    return plateau_after(metrics[state.metric], state.step, config, plan, state.plateau, lower_is_better=lower)


def is_finished(state: Progress, config: Config, plan: RunPlan, *, log: Callable[[str], object]) -> bool:
    """Whether a run has nothing left to do; says so if it stops early."""
    if state.evaluation_due:
        return False
    if state.step < plan.total_steps and stops_early(state.step, state.best, config, plan):
        epochs = (state.step - _best_step(state.best)) // plan.steps_per_epoch
        log(f"stopped early: {state.metric} has not been better for {plural(epochs, 'epoch')}")
        return True
    return state.step >= plan.total_steps
