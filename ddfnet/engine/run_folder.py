"""The run folder: what was run, with what, where; and whether a run may be continued in it."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: runs are not kept out of each other's folder
    fcntl = None

import torch

from ddfnet.checkpoint import write_atomically
from ddfnet.config import Derived, LoadedConfig, validate
from ddfnet.config.yaml_reader import read_yaml
from ddfnet.errors import ConfigError

# Keys that may change between two starts of one run: they say where and how often, not what is computed.
FREE_KEYS = {"run", "data.root", "data.workers", "eval.batch_size"}


def check_same_run(folder: Path, loaded: LoadedConfig) -> None:
    """Checks that a run may start or go on in a folder; writes nothing.

    Raises:
        ConfigError: it was started with a configuration that computes something else, or holds a `best.pt` without the
            `last.pt` to go on from.
    """
    if not (folder / "last.pt").exists():
        if (folder / "best.pt").exists():
            raise ConfigError(
                f"{folder} holds best.pt but no last.pt to go on from, and a new run would write over it: "
                f"take run.dir=NEW_FOLDER, with model.init_checkpoint={folder / 'best.pt'} if you like"
            )
        return
    saved = folder / "config.yaml"
    if loaded.config.run.allow_changes or not saved.exists():
        return
    old, _ = read_yaml(saved)
    with suppress(ConfigError):  # written by a version with other keys: compared as it is
        old = validate(old).model_dump(mode="json")  # keys that were added since have their defaults
    before, now = _flat(old), _flat(loaded.config.model_dump(mode="json"))
    differences = [
        f"{key}: {before.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
        for key in sorted({*before, *now})
        if before.get(key, "absent") != now.get(key, "absent") and not _is_free(key)
    ]
    if differences:
        raise ConfigError(
            f"{folder} holds a run with another configuration:\n    " + "\n    ".join(differences) + "\n"
            "  start a new run with run.dir=NEW_FOLDER, or continue this one with run.allow_changes=true"
        )


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
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is training in {folder}: wait for it, stop it, or take another run.dir"
                ) from None
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def write_run_folder(folder: Path, loaded: LoadedConfig, derived: Derived, model_facts: dict[str, Any]) -> None:
    """Writes `config.yaml` and `run.json` (one entry per start) into the run folder."""
    header = "".join(f"# derived: {key} = {value}\n" for key, value in derived.as_dict().items())
    _write_text(folder / "config.yaml", header + loaded.to_yaml())
    facts = {**environment(), "command": sys.argv, "derived": derived.as_dict(), **model_facts}
    history = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {"starts": []}
    history["starts"].append({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts})
    _write_text(folder / "run.json", json.dumps(history, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Versions, machine and git commit of this process."""
    packages = ("ddfnet", "torch", "torchvision", "timm", "triton", "numpy", "pillow")
    return {
        "git": git_commit(),
        "python": platform.python_version(),
        "packages": {**{name: _version(name) for name in packages}, "torch": str(torch.__version__)},
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with `-dirty` if it was changed; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _is_free(key: str) -> bool:
    return key != "run.seed" and any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):  # an empty one has nothing to compare
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
