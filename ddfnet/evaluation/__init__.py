"""Exact metrics, the same in training and in `eval.py`."""

from ddfnet.evaluation.classification import ClassificationEvaluator
from ddfnet.evaluation.evaluate import evaluate

__all__ = ["ClassificationEvaluator", "evaluate"]
