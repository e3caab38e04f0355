"""Exact metrics and reports, the same in training and in `eval.py`."""
