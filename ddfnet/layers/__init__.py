"""Layers with content-adaptive filters; the public ones are importable from here."""

from ddfnet.layers.carafe import CARAFE
from ddfnet.layers.ddf import DDF
from ddfnet.layers.ddf_up import DDFUp
from ddfnet.layers.filter_norm import FilterNorm
from ddfnet.layers.involution import Involution

__all__ = ["CARAFE", "DDF", "DDFUp", "FilterNorm", "Involution"]
