"""The run folder: what was run, with what, where; and whether a run may be continued in it."""

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddfnet.config import Derived, LoadedConfig
from ddfnet.config.yaml_reader import read_yaml
from ddfnet.engine.checkpoint import write_atomically
from ddfnet.errors import ConfigError

# Keys that may change between two starts of one run: they say where and how often, not what is computed.
FREE_KEYS = {"run", "data.root", "data.workers", "eval.batch_size"}


def write_run_folder(folder: Path, loaded: LoadedConfig, derived: Derived, model_facts: dict[str, Any]) -> None:
    """Creates the run folder and writes `config.yaml` and `run.json` (one entry per start) into it.

    Raises:
        ConfigError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the run folder run.dir={folder}: {error.strerror}") from None
    header = "".join(f"# derived: {key} = {value}\n" for key, value in derived.as_dict().items())
    _write_text(folder / "config.yaml", header + loaded.to_yaml())
    facts = {**environment(), "command": sys.argv, "derived": derived.as_dict(), **model_facts}
    history = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {"starts": []}
    history["starts"].append({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts})
    _write_text(folder / "run.json", json.dumps(history, indent=2) + "\n")


def check_same_run(folder: Path, loaded: LoadedConfig) -> None:
    """Raises ConfigError if the folder was started with a configuration that computes something else."""
    saved = folder / "config.yaml"
    if loaded.config.run.allow_changes or not saved.exists():
        return
    old, _ = read_yaml(saved)
    new = loaded.config.model_dump(mode="json")
    differences = [
        f"{key}: {before!r} -> {after!r}"
        for key in sorted({*_flat(old), *_flat(new)})
        if key == "run.seed" or not any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
        for before, after in [(_flat(old).get(key, "absent"), _flat(new).get(key, "absent"))]
        if before != after
    ]
    if differences:
        raise ConfigError(
            f"{folder} holds a run with another configuration:\n    " + "\n    ".join(differences) + "\n"
            "  start a new run with run.dir=NEW_FOLDER, or continue this one with run.allow_changes=true"
        )


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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
