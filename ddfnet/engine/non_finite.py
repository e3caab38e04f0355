"""What a run does about a loss or gradient that is not finite: stop, skip the step, or go back (`train.non_finite`)."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ddfnet.engine.distributed import Distributed
from ddfnet.engine.logging import RunLog
from ddfnet.engine.numerics import FiniteCheck, NonFinite
from ddfnet.engine.pacing import paced_learning_rate
from ddfnet.engine.run_checkpoints import best_goes_back, storage_errors
from ddfnet.engine.saver import CheckpointSaver
from ddfnet.engine.training_state import TrainingState
from ddfnet.tasks import Config, Task
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import NonFiniteLossError
from ddfnet.utils.files import write_json

_MOST_NAMES = 3  # in a message
_CURES = "Lower the learning rate, lengthen the warm-up, clip gradients (optim.clip_grad=1) or use bf16"


class NonFinitePolicy:
    """Finds steps whose loss or gradient is not finite, and does about them what the configuration says.

    Args:
        config, plan, task, distributed: of the run.
        state: is set back by `roll_back`.
        folder: run folder; None in a dry run.
        log: gets the warnings.
    """

    def __init__(
        self, config: Config, plan: RunPlan, task: Task, state: TrainingState, distributed: Distributed,
        *, folder: Path | None, log: RunLog,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.task, self.state, self.distributed = config, plan, task, state, distributed
        self.folder, self.log = folder, log
        self.check = FiniteCheck(distributed.device)

    def stop_if_found(self, last_finite_loss: float | None) -> None:
        """NonFiniteLossError if any loss since the last call was not finite (waits for the device)."""
        found, what = self.check.read(self.distributed), "is not finite"
        scaler = self.state.scaler
        if found is None and scaler.is_enabled() and scaler.get_scale() < 1:
            found = NonFinite(self.state.step - 1, math.nan)
            what = "is beyond fp16 at any loss scale down to 1, as those before"
        if found is None:
            return
        facts, where = self._facts(found), ""
        if self.folder is not None and self.distributed.is_main:
            path = self.folder / f"nonfinite_step{found.step}.json"
            with suppress(OSError):  # a disk that is full must not hide what has happened
                write_json(path, {**facts, "last_finite_loss": last_finite_loss}, indent=1)
                where = f" Its samples are listed in {path}."
        older = f"; older checkpoints: python -m ddfnet checkpoint list {self.folder}" if self.folder else ""
        raise NonFiniteLossError(
            f"the loss or gradient of step {found.step} {what} (epoch {facts['epoch']:.2f}, lr "
            f"{facts['lr']:.3g}, gradient norm {found.grad_norm:.3g}; {_names_text(facts['samples'])}); last finite "
            f"mean loss {last_finite_loss}. Nothing was saved since the last checkpoint.{where} {_CURES}{older}",
            step=found.step,
        )

    def is_met(self, loss: Tensor) -> bool:
        """Whether a loss is not finite on any process; waits for the device."""
        return bool(self.distributed.reduce_((~loss.isfinite()).float(), "max"))

    def give_up_step(self, grad_norm: float) -> None:
        """Counts a step of which nothing stays. NonFiniteLossError where there are too many."""
        state, most = self.state, self.config.train.max_non_finite
        found = NonFinite(state.step, grad_norm)
        state.non_finite += 1
        facts = self._facts(found)
        text = (
            f"loss or gradient of step {found.step} is not finite (lr {facts['lr']:.3g}, gradient norm "
            f"{grad_norm:.3g}; {_names_text(facts['samples'])})"
        )
        if state.non_finite > most:
            raise NonFiniteLossError(f"{text}: one more than the {most} of train.max_non_finite. {_CURES}")
        self.log.warning(f"{text}: the step is skipped, number {state.non_finite} of at most {most}")

    def roll_back(self, error: NonFiniteLossError, saver: CheckpointSaver) -> None:
        """Loads the checkpoint before, and sets the data to what follows the failed step; all processes call this.

        It is saved at once as the newest one: a start afterwards resumes as this run continues.

        A failure that is not behind the last one has not been cured by other data: then it is one checkpoint further
        back.

        Raises:
            NonFiniteLossError: there is none, or there were too many failures.
        """
        state, most, failed = self.state, self.config.train.max_non_finite, error.step
        count, position = state.non_finite + 1, failed + state.data_offset
        if self.folder is None or count > most:
            raise NonFiniteLossError(f"{error}. It went back {count - 1} times, train.max_non_finite={most}") from None
        last = state.rollback
        before = last["to"] if failed <= last["failed"] else None
        saver.wait()
        self.distributed.gather_objects(None)  # the main process has written; only now may the others read
        local = state.resume(self.folder, last_step=self.plan.total_steps, before=before)
        if local is None:
            raise NonFiniteLossError(f"{error}. There is no checkpoint to go back to") from None
        state.load_local(local)
        if self.distributed.is_main:
            best_goes_back(self.folder, state.ranking)
        state.non_finite, state.data_offset = count, position + 1 - state.step
        state.rollback = {"failed": max(failed, last["failed"]), "to": state.step}
        state.optimizer.zero_grad(set_to_none=True)
        self.check.reset()
        self.log.warning(
            f"{error}\nback to {state.resumed_from}, step {state.step}, number {count} of at most {most}: the data "
            f"continues after that of step {failed}"
        )
        with storage_errors(self.folder):
            self.log.rewind(state.step, evaluation_due=state.evaluation_due)
        saver.save(state.resumed_meta.get("metrics"))

    def _facts(self, found: NonFinite) -> dict[str, Any]:
        return {
            "step": found.step,
            "epoch": found.step / self.plan.steps_per_epoch,
            "lr": paced_learning_rate(found.step, self.config, self.plan, self.state.plateau),
            "grad_norm": found.grad_norm,
            "samples": self.task.sample_names(self.plan, found.step + self.state.data_offset),
        }


def _names_text(names: list[str]) -> str:
    """The first samples of a step, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
