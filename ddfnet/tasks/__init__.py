"""Tasks: what differs between kinds of training."""

from ddfnet.config import Config
from ddfnet.tasks.base import Task
from ddfnet.tasks.classification import ClassificationTask


def create_task(config: Config) -> Task:
    """The task of a configuration. Detection and depth are imported only here: they need packages of their own."""
    if config.task == "detection":
        from ddfnet.tasks.detection import DetectionTask

        return DetectionTask(config)
    if config.task == "depth":
        from ddfnet.tasks.depth import DepthTask

        return DepthTask(config)
    return ClassificationTask(config)


__all__ = ["ClassificationTask", "Task", "create_task"]
