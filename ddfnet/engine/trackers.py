"""The trackers of a run, `run.trackers`: started together, and each left out once it fails."""

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddfnet.engine.tracker_libraries import LIBRARIES, RunFacts
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.files import write_json

_log = logging.getLogger("ddfnet")
_FILE = "trackers.json"
_LOGGED = "logged"  # of the file: the last step of each kind of record
_REASON_CHARACTERS = 600


class Tracker(Protocol):
    """One library. It may raise whatever it likes: see `Trackers`."""

    id: str | None
    """Names the run in the library's store, so that a new start continues it."""
    purges: bool
    """Whether `rewind`, and a start at an earlier step, take away the records of later steps."""

    def rewind(self, step: int) -> None:
        """Takes away the records of later steps; called only where it can."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

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
    Steps that a run repeats, after a start or a rollback, are not logged again where the first records stay: most
    libraries keep both, or refuse to go back.

    Args:
        names: of `LIBRARIES`.
        facts: the run, for all of them; None where there are no names.
    """

    def __init__(self, names: Sequence[str] = (), facts: RunFacts | None = None) -> None:
        self.outcome = "failed"  # until somebody knows better
        self._names, self._facts = list(names), facts
        self._trackers: dict[str, Tracker] = {}
        self._ids: dict[str, str] = {}
        self._epoch_step = -1  # whose epoch was the last to be logged
        self._logged: dict[str, int] = {}  # the last step of each kind of record, in any start
        self._kept: dict[str, dict[str, int]] = {}  # of each tracker: up to which step its records of a kind stay

    @property
    def active(self) -> bool:
        """Whether anything that is logged reaches a tracker: before the start, whether it might."""
        return bool(self._trackers or self._names)

    def start(self, step: int, logged: Mapping[str, int] | None = None) -> None:
        """Opens all trackers at a step of the run; those that were started in the run folder before are continued.

        Args:
            step: the run resumes after it.
            logged: the last step of each kind of record that the start before has logged.

        Raises:
            ConfigError: one that is new in this run folder cannot be started.
        """
        names, self._names = self._names, []
        if self._facts is None or not names:
            return
        folder = self._facts.folder
        # What begins at step 0 is another run, whose records those of a former one in the folder must not stand for.
        ids, before = _read_file(folder) if step else ({}, {})
        logged = logged if step else None
        self._logged = {kind: max(kinds.get(kind, 0) for kinds in (before, logged or {}))
                        for kind in before | dict(logged or {})}  # fmt: skip
        for name in names:
            try:
                self._trackers[name] = LIBRARIES[name](self._facts, step, ids.get(name))
            except Exception as error:
                if name in ids:  # it worked before: the run need not wait until it works again
                    self._lost(name, error)
                    continue
                self.close()
                raise ConfigError(f"run.trackers: {name} cannot be started: {_reason(error)}") from error
            tracker = self._trackers[name]
            new = tracker.id is not None and name not in ids
            self._kept[name] = {} if new else self._staying(tracker, step)
        self._ids = ids | {name: tracker.id for name, tracker in self._trackers.items() if tracker.id is not None}
        self._write_file()

    def rewind(self, step: int) -> None:
        """The run goes back to a step, and takes another way from there."""
        self._each(lambda tracker: tracker.rewind(step) if tracker.purges else None)
        self._kept = {name: self._staying(tracker, step) for name, tracker in self._trackers.items()}
        self._epoch_step = -1
        self._write_file()

    def scalars(self, kind: str, values: dict[str, Any], step: int, epoch: float) -> None:
        """Numbers of one kind (`train`, `val`), each called `kind/key`, and once a step `epoch`; what is no number is
        left out."""
        numbers = {f"{kind}/{key}": float(value) for key, value in values.items() if isinstance(value, int | float)}
        if step != self._epoch_step:
            self._epoch_step, numbers["epoch"] = step, epoch
        kind = _kind(kind)
        self._logged[kind] = max(step, self._logged.get(kind, 0))
        self._each(lambda tracker: tracker.scalars(numbers, step), kind, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._each(lambda tracker: tracker.image(name, pixels, step), _kind(name), step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        self._each(lambda tracker: tracker.histogram(name, values, step), _kind(name), step)

    def close(self) -> None:
        self._each(lambda tracker: tracker.close(self.outcome))
        self._trackers = {}

    def _staying(self, tracker: Tracker, step: int) -> dict[str, int]:
        return {kind: min(last, step) if tracker.purges else last for kind, last in self._logged.items()}

    def _write_file(self) -> None:
        if self._ids and self._facts is not None:
            write_json(self._facts.folder / _FILE, {**self._ids, _LOGGED: self._logged})

    def _each(self, action: Callable[[Tracker], None], kind: str = "", step: int = 0) -> None:
        for name, tracker in list(self._trackers.items()):
            if kind and step <= self._kept.get(name, {}).get(kind, -1):
                continue
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


def _kind(name: str) -> str:
    """Which records a name belongs to: `filters_val/layer1` to those of `val`, the groups' to `train`."""
    kind = name.split("/")[0].removeprefix("filters_")
    return "train" if kind == "groups" else kind


def _read_file(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """(ids, last steps) that earlier starts in the run folder wrote; a damaged file means new runs in the stores of the
    libraries."""
    try:
        content = json.loads((folder / _FILE).read_text())
    except (OSError, ValueError):
        return {}, {}
    content = content if isinstance(content, dict) else {}
    logged = content.get(_LOGGED)
    logged = logged if isinstance(logged, dict) else {}
    return (
        {key: value for key, value in content.items() if isinstance(value, str)},
        {key: value for key, value in logged.items() if isinstance(value, int)},
    )
