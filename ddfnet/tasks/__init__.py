"""Tasks, the kinds of training. Each is found by its name, and imported when it is asked for."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfnet.checkpoint import DEFAULT_TASK
from ddfnet.config import LoadedConfig, check
from ddfnet.config.inheritance import apply_override, read_with_bases
from ddfnet.config.loaded import DEFAULT
from ddfnet.config.reader import KeyPath, flow
from ddfnet.tasks.base import Task
from ddfnet.tasks.config import Config
from ddfnet.utils.errors import ConfigError

_MODULES = {
    "classification": "ddfnet.tasks.classification",
    "detection": "ddfnet.tasks.detection.task",
    "depth": "ddfnet.tasks.depth.task",
}


def task_names() -> list[str]:
    """The tasks there are: those whose folder was not removed."""
    return [name for name, module in _MODULES.items() if importlib.util.find_spec(module.removesuffix(".task"))]


def task_class(name: str) -> type[Task]:
    """The class of a task; `TASK` of its module."""
    return importlib.import_module(_MODULES[name]).TASK


def create_task(config: Config) -> Task:
    """The task of a configuration."""
    return task_class(config.task)(config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig[Config]:
    """Loads and checks a configuration; what it leaves open and its task can tell (`Task.fill_in`) is filled in.

    Args:
        path: YAML file. Its key `base` names one or several parents (relative to the file), merged in order before it.
        overrides: `a.b=value` strings, merged last; the value is read as YAML.

    Raises:
        ConfigError: anything that is not exactly right, all faults of one run in one message; those between sections
            once each section is right by itself.
    """
    path = Path(path)
    values, origins = read_with_bases(path)
    for override in overrides:
        apply_override(override, values, origins)
    run = values.setdefault("run", {})
    if isinstance(run, dict) and run.get("dir") is None:
        run["dir"] = str(Path("runs") / path.stem)
        origins[("run", "dir")] = f"{DEFAULT}, from the name of {path.name}"
    task = values.get("task", DEFAULT_TASK)
    if task in task_names():
        task_class(task).fill_in(values, origins)
    config = check_config(values, origins)
    return LoadedConfig(config, origins, (*config.remarks(), *task_class(config.task).describe(config, origins)))


def check_config(values: dict[str, Any], origins: dict[KeyPath, str] | None = None) -> Config:
    """Checks a nested dict against the configuration of its task; ConfigError as in `load_config`."""
    task = values.get("task", DEFAULT_TASK)
    if not isinstance(task, str) or task not in task_names():
        where = f" ({origins['task',]})" if origins and ("task",) in origins else ""
        raise ConfigError(f"task={flow(task)}{where} must be {' or '.join(task_names())}")
    return check(task_class(task).config_class, values, origins)


__all__ = ["Config", "Task", "check_config", "create_task", "load_config", "task_class", "task_names"]
