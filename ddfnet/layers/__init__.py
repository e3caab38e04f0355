"""Layers with content-adaptive filters."""

from ddfnet.layers.ddf import DDF
from ddfnet.layers.filter_norm import FilterNorm

__all__ = ["DDF", "FilterNorm"]
