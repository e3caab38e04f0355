"""Exact metrics, the same in training and in `eval.py`."""

from ddfnet.evaluation.classification import ClassificationEvaluator

__all__ = ["ClassificationEvaluator"]
