"""The run folder: what was run, with what, where; and whether a run may be continued in it."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: runs are not kept out of each other's folder
    fcntl = None  # type: ignore[assignment]

from ddfnet.config import LoadedConfig
from ddfnet.config.reader import read_yaml
from ddfnet.config.sections import with_present_names
from ddfnet.engine.run_checkpoints import HISTORY, best_files, resumable
from ddfnet.tasks import check_config
from ddfnet.tasks.checkpoints import CheckpointsConfig
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.environment import environment
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.files import note_once, set_aside, write_json, write_text

# Keys that may change between two starts of one run: they say where and how often, not what is computed.
FREE_KEYS = {"run", "data.root", "data.workers", "data.timeout", "data.start_method", "eval.batch_size"}
FREE_KEYS |= {"data.cache", "data.val_cache", "profile", "train.non_finite", "train.max_non_finite"}
FREE_KEYS |= {f"checkpoints.{key}" for key in CheckpointsConfig.model_fields if key != "metric"}

_log = logging.getLogger("ddfnet")


def check_same_run(folder: Path, loaded: LoadedConfig) -> list[str]:
    """Checks that a run may start or resume in a folder; writes nothing.

    Returns:
        With `run.allow_changes`, what is changed: one line, or none.

    Raises:
        ConfigError: it was started with a configuration that computes something else, or holds a `best.pt` without the
            `last.pt` to resume from.
    """
    if not resumable(folder):
        best = next(iter(best_files(folder)), None)
        if best is not None:
            raise ConfigError(
                f"{folder} holds {best.name} but no last.pt to resume from, and a new run would write over it: "
                f"take run.dir=NEW_FOLDER, with model.init_checkpoint={best} if you like"
            )
        return []
    saved = folder / "config.yaml"
    if not saved.exists():
        return []
    try:
        old = with_present_names(type(loaded.config), read_yaml(saved)[0])
    except ConfigError:
        if loaded.config.run.allow_changes:
            return [f"{saved} cannot be read: what is changed is not known"]
        raise
    with suppress(ConfigError):  # written by a version with other keys: compared as it is
        old = check_config(old).model_dump(mode="json")  # keys that were added since have their defaults
    before, now = flat(old), flat(loaded.config.model_dump(mode="json"))
    differences = [
        f"{key}: {before.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
        for key in sorted({*before, *now})
        if before.get(key, "absent") != now.get(key, "absent") and not _is_free(key)
    ]
    if differences and loaded.config.run.allow_changes:
        return [f"run.allow_changes: {'; '.join(differences)}"]
    if differences:
        new_model = before.get("model.name") != now.get("model.name")  # which has no place for the old one's weights
        raise ConfigError(
            f"{folder} holds a run with another configuration:\n    " + "\n    ".join(differences) + "\n"
            "  start a new run with run.dir=NEW_FOLDER"
            + ("" if new_model else ", or continue this one with run.allow_changes=true")
        )
    return []


@contextmanager
def run_folder_lock(folder: Path) -> Iterator[None]:
    """Creates the run folder and keeps other runs out of it; also removes what a killed save left behind.

    Raises:
        ConfigError: the folder cannot be created, or another process is training in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write into the run folder run.dir={folder}: {error.strerror}") from None
    _locks.add(lock)
    try:
        _lock(lock, folder)
        for leftover in (*folder.glob(".*.tmp"), *(folder / HISTORY).glob(".*.tmp")):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        _locks.discard(lock)
        lock.close()


def _lock(lock: IO[str], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            fix = "wait for it, stop it, or take another run.dir"
            raise ConfigError(f"another process is training in {folder}: {fix}") from None
        text = f"the disk of {folder} has no locks ({error.strerror}): see to it that one run alone uses the folder"
        note_once(text, key="locks")


# A forked process has the lock of its parent, and would keep it for as long as it hangs after the parent has died.
_locks: set[IO[str]] = set()


def _drop_locks() -> None:
    while _locks:
        _locks.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


def write_run_folder(folder: Path, loaded: LoadedConfig, plan: RunPlan, model_facts: dict[str, Any]) -> None:
    """Writes `config.yaml` and `run.json` (one entry per start) into the run folder."""
    header = "".join(f"# derived: {key} = {value}\n" for key, value in vars(plan).items())
    write_text(folder / "config.yaml", header + loaded.to_yaml())
    facts = {**environment(), "command": sys.argv, "derived": vars(plan), **model_facts}
    history = _history(folder / "run.json")
    history["starts"].append({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts})
    write_json(folder / "run.json", history)


def _history(path: Path) -> dict[str, Any]:
    """What `run.json` holds; of one that is damaged a copy is kept, and the record begins anew."""
    if not path.exists():
        return {"starts": []}
    try:
        history = json.loads(path.read_text())
        if isinstance(history, dict) and isinstance(history.get("starts"), list):
            return history
    except (OSError, ValueError):
        pass
    _log.warning("%s is damaged: kept as %s, a new one is begun", path, set_aside(path).name)
    return {"starts": []}


def _is_free(key: str) -> bool:
    return key != "run.seed" and any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):  # an empty one has nothing to compare
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result
