"""Writing while training continues: one thread, one job at a time."""

import threading
from collections.abc import Callable


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
