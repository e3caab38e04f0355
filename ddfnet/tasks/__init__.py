"""Tasks: what differs between kinds of training."""

from ddfnet.tasks.base import Task
from ddfnet.tasks.classification import ClassificationTask

TASKS = {"classification": ClassificationTask}

__all__ = ["TASKS", "ClassificationTask", "Task"]
