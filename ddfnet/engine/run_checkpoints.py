"""The checkpoints of a run folder: their names, which of them stay, and the newest from which training can resume."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddfnet.checkpoint import read_checkpoint, save_checkpoint, save_safetensors
from ddfnet.tasks.checkpoints import CheckpointsConfig
from ddfnet.utils.errors import CheckpointError, DamagedCheckpointError, StorageError
from ddfnet.utils.files import NoSpaceError, set_aside, sync_folder, write_atomically

LAST, BEST, BEST_WEIGHTS, HISTORY = "last.pt", "best.pt", "best.safetensors", "checkpoints"
_STEP, _BEST = re.compile(r"step_(\d+)\.pt"), re.compile(r"best_step_(\d+)\.pt")
Ranking = Sequence[Sequence[Any]]  # (value, step) of the best evaluations, best first


def resumable(folder: Path) -> list[Path]:
    """The files from which training can resume, if they are whole: `last.pt`, then the others, newest first."""
    last = folder / LAST
    return [last] * last.is_file() + [path for _, path in sorted(_by_step(folder, _STEP), reverse=True)]


def best_files(folder: Path) -> list[Path]:
    """The files of the best evaluations: those in `checkpoints/` by step, or `best.pt` alone."""
    kept = [path for _, path in sorted(_by_step(folder, _BEST))]
    return kept or [folder / BEST] * (folder / BEST).is_file()


def later_files(folder: Path, step: int) -> list[Path]:
    """The checkpoints of steps after `step`, which a run that went back does not build upon."""
    return [path for later, path in sorted(_by_step(folder, _STEP)) if later > step]


def best_goes_back(folder: Path, ranking: Ranking) -> list[Path]:
    """Makes the files of the best evaluations those of `ranking`, for a run that went back to a step at which these
    were the best. Others are kept beside their names; returns their new paths.

    Where no file of the best evaluation is left, there is no `best.pt`.
    """
    steps, aside = [entry[1] for entry in ranking], []
    aside += [set_aside(path, "former") for step, path in sorted(_by_step(folder, _BEST)) if step not in steps]
    best, weights = folder / BEST, folder / BEST_WEIGHTS
    if steps and _step_of(best) == steps[0]:
        return aside
    aside += [set_aside(path, "former") for path in (best, weights) if path.exists()]
    candidates = [path for step, path in (*_by_step(folder, _BEST), *_by_step(folder, _STEP)) if step in steps[:1]]
    for path in candidates:
        with contextlib.suppress(CheckpointError):
            payload = read_checkpoint(path)
            save_checkpoint(best, _weights_of(payload))
            _save_best_weights(weights, payload)
            break
    return aside


def name_best(folder: Path, step: int) -> None:
    """Gives `best.pt`, of step `step`, the name it has among several best ones, which one that was alone has not."""
    if (folder / BEST).is_file():
        path = folder / HISTORY / _best_name(step)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            link_or_copy(folder / BEST, path)


class Resumed(Protocol):
    """What a run that starts has found in its folder: a `TrainingState`."""

    step: int
    resumed_from: Path | None
    damaged: list[tuple[Path, DamagedCheckpointError]]
    ranking: list[tuple[float, int]]


def restore_run(folder: Path, found: Resumed, *, several: bool) -> str | None:
    """Makes the files of a run folder those that a run continues with.

    Damaged checkpoints are kept beside their names, the one that takes the place of `last.pt` becomes that file, and
    the best ones are those of its step.

    Args:
        several: best ones are kept.

    Returns:
        What is to be said of `best.pt`, where it was not that of the best evaluation.
    """
    last = folder / LAST
    for path, _ in found.damaged:
        set_aside(path)
    if last.exists() and not last.is_file():
        set_aside(last)
    if found.resumed_from is not None and not last.exists():
        link_or_copy(found.resumed_from, last)
    if not found.ranking:
        return None
    best, wanted, note = folder / BEST, found.ranking[0][1], None
    step = _step_of(best)
    if step is None or step > found.step:
        best_goes_back(folder, found.ranking)
        lost = f"the best evaluation so far, of step {wanted}, has lost its file {best}, until there is a better one"
        note = f"{best} is made again from the checkpoint of step {wanted}" if best.is_file() else lost
    if several:
        name_best(folder, wanted)
    return note


class RunCheckpoints:
    """Writes the checkpoints of one run, and removes those that it need not keep.

    Args:
        folder: of the run.
        settings: which are kept.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, folder: Path, settings: CheckpointsConfig, steps_per_epoch: int) -> None:
        self.folder, self.settings = folder, settings
        self._milestone = settings.every_epochs * steps_per_epoch if settings.every_epochs else None

    def write(self, payload: dict[str, Any], ranking: Ranking, *, ranked: bool) -> None:
        """Writes `last.pt`, and if it is `ranked`, newly among the best, its weights as one of those.

        `checkpoints/` has the same file under the name of its step: `last.pt` is a link to it where the disk has links,
        else a copy. It outlives `last.pt` as one of those to resume from.

        Raises:
            StorageError: the disk is full or fails; what was there before is whole.
        """
        with storage_errors(self.folder):
            self._write(payload, ranking, ranked)

    def _write(self, payload: dict[str, Any], ranking: Ranking, ranked: bool) -> None:
        step, steps = payload["step"], [entry[1] for entry in ranking]
        if ranked:  # before last.pt, which says that they are there
            self._write_best(payload, is_best=step == steps[0])
        last = self.folder / LAST
        if self.settings.keep or self._is_milestone(step):
            path = self.folder / HISTORY / f"step_{step:08d}.pt"
            save_checkpoint(path, payload)
            link_or_copy(path, last)
        else:
            save_checkpoint(last, payload)
        self._prune(step, steps)

    def _write_best(self, payload: dict[str, Any], *, is_best: bool) -> None:
        weights, best = _weights_of(payload), self.folder / BEST
        if self.settings.best > 1:
            path = self.folder / HISTORY / _best_name(payload["step"])
            save_checkpoint(path, weights)
            if is_best:
                link_or_copy(path, best)
        elif is_best:
            save_checkpoint(best, weights)
        if is_best:
            _save_best_weights(self.folder / BEST_WEIGHTS, weights)

    def _is_milestone(self, step: int) -> bool:
        return self._milestone is not None and step > 0 and step % self._milestone == 0

    def _prune(self, step: int, best_steps: Sequence[int]) -> None:
        for path in later_files(self.folder, step):
            path.unlink(missing_ok=True)
        older = sorted((step for step, _ in _by_step(self.folder, _STEP)), reverse=True)
        stays = {*older[: self.settings.keep + 1 if self.settings.keep else 0], *filter(self._is_milestone, older)}
        for pattern, steps in ((_STEP, stays), (_BEST, set(best_steps))):
            for number, path in _by_step(self.folder, pattern):
                if number not in steps:
                    path.unlink(missing_ok=True)


def _best_name(step: int) -> str:
    return f"best_step_{step:08d}.pt"


def _weights_of(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: payload[key] for key in ("meta", "config", "model", "ema")}


def _save_best_weights(path: Path, payload: dict[str, Any]) -> None:
    kind = "model" if payload["ema"] is None else "ema"
    save_safetensors(path, payload[kind], payload["meta"], kind=kind)


def _step_of(path: Path) -> int | None:
    try:
        meta = read_checkpoint(path).get("meta") or {}
    except CheckpointError:
        return None
    return meta.get("step")


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target`, which may exist, the same file as `source`; a copy on disks without hard links."""
    temporary = target.with_name(f".{target.name}.link.tmp")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # still there if both were one file already
        sync_folder(target.parent)
        return
    size = source.stat().st_size
    with source.open("rb") as file:
        write_atomically(target, lambda out: shutil.copyfileobj(file, out, 1 << 22), size=size)


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """What the system says of a disk as a StorageError that names the run folder."""
    try:
        yield
    except NoSpaceError as error:
        text = f"{error.strerror}. Checkpoints written before are whole: make space, then start again to resume"
        raise StorageError(f"run.dir={folder}: {text}") from None
    except OSError as error:
        raise StorageError(
            f"cannot write into run.dir={folder} ({error.strerror or error}). Checkpoints written before are whole: "
            "start again to resume once the disk works"
        ) from None


def _by_step(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    inside = (folder / HISTORY).iterdir() if (folder / HISTORY).is_dir() else iter(())
    return [(int(match[1]), path) for path in inside if (match := pattern.fullmatch(path.name))]
