"""The trackers of a run, `run.trackers`: started together, and each left out once it fails."""

import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddfnet.engine.tracker_libraries import LIBRARIES, RunFacts
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.files import write_json

_log = logging.getLogger("ddfnet")
_FILE = "trackers.json"
_REASON_CHARACTERS = 600


class Tracker(Protocol):
    """One library. It may raise whatever it likes: see `Trackers`."""

    id: str | None
    """Names the run in the library's store, so that a new start continues it."""

    def scalars(self, values: dict[str, float], step: int, epoch: float) -> None: ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image (H, W, 3) uint8."""

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """The distribution of values (N,) float32."""

    def close(self, outcome: str) -> None:
        """outcome: `finished`, `interrupted` (a new start continues) or `failed`."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError where the package of a tracker is missing."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder: wandb leaves one of its name in the working directory
            raise ConfigError(
                f"run.trackers={list(names)}: the package {name} is missing: pip install {name}, or leave it out"
            )


class Trackers:
    """The trackers of the main process; of others it has none, and every method does nothing.

    A tracker that raises, because the network is gone, say, is left out for the rest of the run, with one warning.

    Args:
        names: of `LIBRARIES`.
        facts: the run, for all of them; None where there are no names.
    """

    def __init__(self, names: Sequence[str] = (), facts: RunFacts | None = None) -> None:
        self.outcome = "failed"  # until somebody knows better
        self._names, self._facts = list(names), facts
        self._trackers: dict[str, Tracker] = {}

    @property
    def active(self) -> bool:
        """Whether anything that is logged reaches a tracker: before the start, whether it might."""
        return bool(self._trackers or self._names)

    def start(self, step: int) -> None:
        """Opens all trackers at a step of the run; those that were started in the run folder before are continued.

        Raises:
            ConfigError: one that is new in this run folder cannot be started.
        """
        names, self._names = self._names, []
        if self._facts is None or not names:
            return
        folder = self._facts.folder
        ids = _read_ids(folder)
        for name in names:
            try:
                self._trackers[name] = LIBRARIES[name](self._facts, step, ids.get(name))
            except Exception as error:
                if name in ids:  # it worked before: the run need not wait until it works again
                    self._lost(name, error)
                    continue
                self.close()
                raise ConfigError(f"run.trackers: {name} cannot be started: {_reason(error)}") from error
        ids.update({name: tracker.id for name, tracker in self._trackers.items() if tracker.id is not None})
        if ids:
            write_json(folder / _FILE, ids)

    def scalars(self, kind: str, values: dict[str, Any], step: int, epoch: float) -> None:
        """Numbers of one kind (`train`, `val`), each called `kind/key`; what is no number is left out."""
        numbers = {f"{kind}/{key}": float(value) for key, value in values.items() if isinstance(value, int | float)}
        self._each(lambda tracker: tracker.scalars(numbers, step, epoch))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._each(lambda tracker: tracker.image(name, pixels, step))

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._each(lambda tracker: tracker.histogram(name, values, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close(self.outcome))
        self._trackers = {}

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._trackers[name]
                self._lost(name, error)

    def _lost(self, name: str, error: Exception) -> None:
        reason = _reason(error)
        _log.warning("the records of %s cannot be written (%s): training continues without them", name, reason)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:_REASON_CHARACTERS]}"


def _read_ids(folder: Path) -> dict[str, str]:
    """What earlier starts in the run folder wrote; a damaged file means new runs in the stores of the libraries."""
    try:
        ids = json.loads((folder / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}
