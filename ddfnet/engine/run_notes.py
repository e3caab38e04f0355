"""What a run says at its start, of settings that do not do what was expected because of its step, and at its end."""

from pathlib import Path

from ddfnet.engine.run_checkpoints import BEST, LAST
from ddfnet.engine.training_state import TrainingState
from ddfnet.tasks import Config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.text import plural


def resume_notes(state: TrainingState, config: Config, plan: RunPlan) -> list[str]:
    """One line each; none where all is as before."""
    notes, now = [], state.step / plan.steps_per_epoch
    if state.optimizer_note is not None:
        notes.append(state.optimizer_note)
    then = state.resumed_meta.get("epoch")
    if then is not None and abs(then - now) > 1e-6:
        notes.append(
            f"step {state.step} ended epoch {then:.2f} and is epoch {now:.2f} of this run, whose epochs "
            f"have {plural(plan.steps_per_epoch, 'step')}: the number of steps is what continues"
        )
    if state.step > plan.total_steps:
        notes.append(
            f"{state.resumed_from} is at step {state.step}, and the run ends at {plan.total_steps}: nothing is left to "
            "train; raise train.epochs"
        )
    if config.profile.range is not None and state.step < plan.total_steps:
        first, end = config.profile.range
        if end <= state.step or first >= plan.total_steps:
            notes.append(
                f"profile.steps={config.profile.steps} has no effect: this start trains steps {state.step} to "
                f"{plan.total_steps - 1}"
            )
    return notes


def farewell(finished: bool, state: TrainingState, folder: Path | None, signal: str | None) -> str:
    """The last line of a run. `signal`: that this process got, if any."""
    if folder is None:
        return "dry run finished"
    if not finished:
        if state.step == 0:
            return f"stopped by {signal} before there was a step to save: start again"
        signal = signal or "a signal to another process"
        return f"stopped by {signal} at step {state.step}; saved {folder / LAST}: start again to resume"
    if state.best["step"] is None:
        return f"finished at step {state.step}; no evaluation gave a finite {state.metric}: there is no {BEST}"
    where = folder / BEST if (folder / BEST).is_file() else f"its file is gone; {LAST} is the newest"
    return f"finished at step {state.step}; best {state.metric} {state.best['value']:.2f}: {where}"
