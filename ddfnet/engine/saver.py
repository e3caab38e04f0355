"""Writing while training continues: one thread, one job at a time; and the checkpoints that are written so."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ddfnet.engine.run_checkpoints import RunCheckpoints
from ddfnet.engine.training_state import TrainingState


class Saver:
    """Runs jobs that write, each in a thread of its own, one after the other.

    The thread is no daemon: a process that ends, by an exception or by itself, waits for it.

    Args:
        background: False runs each job in the caller's thread.
    """

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Starts a job once the one before has ended. What it works on must not change any more.

        Raises:
            Exception: of the job before.
        """
        self.wait()
        if not self.background:
            job()
            return
        self._thread = threading.Thread(target=self._run, args=(job,), name="saver")
        self._thread.start()

    def check(self) -> None:
        """Raises what the last job raised, if it has ended; for every step, as it costs nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written; raises what the job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # for the main thread
            self._error = error


class CheckpointSaver(Saver):
    """Saves the state of a run into its folder.

    Args:
        state: what is saved; all processes call `save`, the main one writes.
        folder: of the run; None saves nothing (dry run).
        steps_per_epoch: optimizer steps.

    Attributes:
        step: of the last checkpoint of this process.
    """

    def __init__(self, state: TrainingState, folder: Path | None, steps_per_epoch: int) -> None:
        self.settings = state.config.checkpoints
        super().__init__(background=self.settings.background)
        self.state, self.folder, self.steps_per_epoch = state, folder, steps_per_epoch
        self.step: int | None = None
        self._saved_at = time.monotonic()
        self._files = None
        if folder is not None and state.distributed.is_main:
            self._files = RunCheckpoints(folder, self.settings, steps_per_epoch)

    def save(self, metrics: dict[str, float] | None = None, *, ranked: bool = False) -> None:
        """Copies the state and starts to write it, once the save before has ended.

        Args:
            metrics: of the evaluation of this step, if there was one.
            ranked: they are among the best.
        """
        if self.folder is None:
            return
        payload = self.state.snapshot(self.state.step / self.steps_per_epoch, metrics or {})
        if self._files is not None:
            self.submit(partial(self._files.write, payload, list(self.state.ranking), ranked=ranked))
        self.step, self._saved_at = self.state.step, time.monotonic()

    def is_old(self) -> bool:
        """Whether the last checkpoint is older than `checkpoints.max_age`."""
        age = self.settings.max_age
        return age is not None and time.monotonic() - self._saved_at > 60 * age
